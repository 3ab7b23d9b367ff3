"""The page records of a master index, kept as columns (format.md section 4).

A snapshot may have a million of them (an archive of small files begins a page for
each), so that each takes just the bytes that it has in the file.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["RECORD", "RECORD_SIZE", "PageRecord", "PageRecords"]

RECORD = struct.Struct("<QIQQ")
RECORD_SIZE = RECORD.size
AT_ONCE = 65536
"""Records taken apart at once, so that a long index is not in memory several times."""
_WORDS = RECORD_SIZE // 4
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)


class PageRecord(NamedTuple):
    """Where a page lies, and what it begins with; bytes, except the block number."""

    offset: int
    length: int
    first_block: int
    position: int


class PageRecords:
    """The records of one stream's pages, in the file's order; 28 bytes each."""

    __slots__ = ("first_blocks", "lengths", "offsets", "positions")

    def __init__(self, data: memoryview) -> None:
        """`data` is a whole number of records, as they are in the file."""
        self.offsets = array("Q")
        self.lengths = array("I")
        self.first_blocks = array("Q")
        self.positions = array("Q")
        for start in range(0, len(data), AT_ONCE * RECORD_SIZE):
            words = array("I")
            words.frombytes(data[start : start + AT_ONCE * RECORD_SIZE])
            if sys.byteorder == "big":
                words.byteswap()
            self.offsets.extend(_joined(words, 0))
            self.lengths.extend(words[2::_WORDS])
            self.first_blocks.extend(_joined(words, 3))
            self.positions.extend(_joined(words, 5))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> PageRecord:
        return PageRecord(self.offsets[number], self.lengths[number], self.first_blocks[number], self.positions[number])

    def __iter__(self) -> Iterator[PageRecord]:
        return map(PageRecord, self.offsets, self.lengths, self.first_blocks, self.positions)


def _joined(words: array[int], at: int) -> array[int]:
    """The 64-bit numbers whose halves are words `at` and `at` + 1 of each record."""
    halves = array("I", bytes(8 * (len(words) // _WORDS)))
    halves[_LOW::2] = words[at::_WORDS]
    halves[_HIGH::2] = words[at + 1 :: _WORDS]
    joined = array("Q")
    joined.frombytes(memoryview(halves).cast("B"))
    return joined
