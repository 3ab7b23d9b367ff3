"""JSON from clients and files, parsed only once it is known not to be nested deeply.

The standard parser calls itself for each bracket.  What stops it is a count of the
interpreter's, which knows nothing of how large the stack of a thread is: with a
small one the process would end before the count does (Python 3.13 counts to 10,000).
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

from hexz.errors import JsonError

__all__ = ["MAX_DEPTH", "load_json"]

MAX_DEPTH = 64
"""Deepest nesting of lists and objects accepted; what this package and its clients write has at most eight."""

# The closing quote may be missing: then the text is no JSON, and the string reaches to its end.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = re.compile(r"[^][{}]+")
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")


def load_json(data: bytes | str, deepest: int = MAX_DEPTH) -> Any:
    """The value that `data` is, as `json.loads` gives it; bytes are UTF-8 (RFC 8259 section 8.1).

    The caller bounds the length of `data`.
    Raises: JsonError when it is no JSON, or has more than `deepest` lists and objects in each other.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise JsonError("not UTF-8") from None
    if text.count("[") + text.count("{") > deepest and _depth(text) > deepest:
        raise JsonError(f"nested deeper than {deepest} lists and objects")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.lineno, error.colno) from None
    except (ValueError, RecursionError):
        raise JsonError("a number beyond what can be read") from None


def _depth(text: str) -> int:
    """How deep the brackets outside of strings go, in time that grows as the text does."""
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text)).encode()
    return max(accumulate(memoryview(brackets.translate(_STEPS)).cast("b")), default=0)
