"""BLAKE3-256, the hash that 52-byte entries carry of a block's logical bytes (format.md section 4).

The standard library does not have it: it is checked where the optional package ``blake3`` is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Union

__all__ = ["NO_HASH", "Hasher", "find_hasher"]

NO_HASH = bytes(32)
"""What is recorded for a block whose content was not hashed."""

Hasher = Callable[[Union[bytes, memoryview]], bytes]


@cache
def find_hasher() -> Hasher | None:
    """The hash as a function, None without the package."""
    try:
        blake3 = importlib.import_module("blake3").blake3
    except (ImportError, AttributeError):  # or it is a folder of that name
        return None

    def digest(data: bytes | memoryview) -> bytes:
        found: bytes = blake3(data).digest()
        return found

    return digest
