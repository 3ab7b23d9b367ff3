"""The Range header: which spans of a representation a client wants (RFC 9110 section 14)."""

from __future__ import annotations

import re
from typing import NamedTuple

from hexz.protocol.http.errors import Unsatisfiable

__all__ = ["MAX_RANGES", "ByteRange", "parse_range"]

MAX_RANGES = 100
"""Most ranges answered; beyond it the header is ignored (RFC 9110 section 17.15)."""
MAX_OVERLAPS = 2
PART_OVERHEAD = 128
"""A gap between two ranges of up to so many bytes is sent too: it is shorter than another part's head."""

_SET = re.compile(r"[ \t,]*([0-9]*-[0-9]*(?:[ \t]*,(?:[ \t]*[0-9]*-[0-9]*)?)*)[ \t]*")
_MANY_DIGITS = 19


class ByteRange(NamedTuple):
    """`length` bytes from `start` on."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.start + self.length


def parse_range(value: str, size: int) -> list[ByteRange] | None:
    """The spans that `value` asks of a representation of `size` bytes, joined where they touch.

    None means to ignore the header: another unit, malformed, or abusive.
    Raises: Unsatisfiable.
    """
    unit, equals, listed = value.partition("=")
    if unit.strip(" \t").lower() != "bytes" or not equals or _SET.fullmatch(listed) is None:
        return None
    specs = [spec.strip(" \t").partition("-") for spec in listed.split(",") if "-" in spec]
    if len(specs) > MAX_RANGES:
        return None
    spans: list[ByteRange] = []
    for first_digits, _, last_digits in specs:
        if not first_digits and not last_digits:
            return None
        first, last = _number(first_digits), _number(last_digits)
        if first_digits:
            if last_digits and last < first:
                return None
            if first < size:
                stop = min(last + 1, size) if last_digits else size
                spans.append(ByteRange(first, stop - first))
        elif last:
            if not size:
                return None  # satisfiable by section 14.1.2, yet no Content-Range can say "nothing"
            spans.append(ByteRange(max(size - last, 0), min(last, size)))
    if not spans:
        raise Unsatisfiable
    return spans if len(spans) == 1 else _coalesce(spans, size)


def _number(digits: str) -> int:
    # So many digits are larger than any size; int() of thousands of them would be slow, or refuse.
    if len(digits) > _MANY_DIGITS:
        digits = digits.lstrip("0")
        if len(digits) > _MANY_DIGITS:
            return int(10**_MANY_DIGITS)
    return int(digits) if digits else 0


def _coalesce(spans: list[ByteRange], size: int) -> list[ByteRange] | None:
    """The spans in the order asked for, neighbours joined; None when they overlap like an attack."""
    joined = [spans[0]]
    overlaps = 0
    for span in spans[1:]:
        before = joined[-1]
        overlaps += any(span.start < other.end and other.start < span.end for other in joined)
        if before.start <= span.start <= before.end + PART_OVERHEAD:
            joined[-1] = ByteRange(before.start, max(before.end, span.end) - before.start)
        else:
            joined.append(span)
    total = sum(span.length for span in joined)
    return None if overlaps > MAX_OVERLAPS or (len(joined) > 1 and total > size) else joined
