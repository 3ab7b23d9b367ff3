"""Lists of what is read first of a snapshot, such as while a machine boots: text that people can read and edit.

    hexz-prefetch 1
    file 74359132 0123456789abcdef0123456789abcdef
    478010 65536
    74146135 212997

A ``file`` line has the size of the ``.hxz`` file in bytes and its fingerprint; behind it come its spans in the order
in which they were wanted, offset and length in bytes.  Parents follow as files of their own.  Lines that begin with
``#`` are comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hexz.format.errors import DamagedList

__all__ = ["MAX_LIST", "MAX_SPANS", "PrefetchList", "format_prefetch", "parse_prefetch"]

FIRST_LINE = "hexz-prefetch 1"
MAX_LIST = 32 << 20
"""Longest list, bytes."""
MAX_SPANS = 1_000_000
"""Most spans of one list."""
_FILE = re.compile(r"file ([0-9]{1,18}) ([0-9a-f]{32})")
_SPAN = re.compile(r"([0-9]{1,18}) ([0-9]{1,18})")


class PrefetchList(NamedTuple):
    """What is wanted of one file: its size in bytes, its fingerprint, and the spans (start, end) in order."""

    size: int
    fingerprint: str
    spans: Sequence[tuple[int, int]]


def format_prefetch(lists: Iterable[PrefetchList]) -> str:
    """The text of a list."""
    lines = [FIRST_LINE]
    for one in lists:
        lines.append(f"file {one.size} {one.fingerprint}")
        lines += [f"{start} {end - start}" for start, end in one.spans]
    return "\n".join(lines) + "\n"


def parse_prefetch(text: str) -> list[PrefetchList]:
    """What a text lists.

    Raises: DamagedList, with the number of the line.
    """
    if len(text) > MAX_LIST:
        raise DamagedList(f"more than {MAX_LIST} characters")
    lines = text.splitlines()
    if not lines or lines[0].strip() != FIRST_LINE:
        raise DamagedList(f"line 1: it does not begin with {FIRST_LINE!r}")
    found: list[tuple[int, str, list[tuple[int, int]]]] = []
    count = 0
    for number, line in enumerate(lines[1:], 2):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        file, span = _FILE.fullmatch(stripped), _SPAN.fullmatch(stripped)
        if file is not None:
            found.append((int(file[1]), file[2], []))
        elif span is not None and found:
            size, _, spans = found[-1]
            start, length = int(span[1]), int(span[2])
            if not length or start + length > size:
                raise DamagedList(f"line {number}: {length} bytes at {start} are not in a file of {size}")
            count += 1
            if count > MAX_SPANS:
                raise DamagedList(f"line {number}: more than {MAX_SPANS} spans")
            spans.append((start, start + length))
        else:
            raise DamagedList(
                f"line {number}: neither a file nor, behind one, an offset and a length: {stripped[:40]!r}"
            )
    return [PrefetchList(*one) for one in found]
