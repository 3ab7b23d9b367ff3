"""Which bytes of a remote file lie where in the disk cache: an index that takes little memory.

A file's offsets are divided into cells; what lies in a cell is one packed string of entries, sorted by where they
begin.  An entry never reaches beyond its cell.  Not thread-safe: the cache's lock guards it.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["CELL", "GRAIN", "STRIDE", "KeptPiece", "PieceIndex", "stored_length"]

CELL = 1 << 20
"""Bytes of a cell, and of the longest piece."""
GRAIN = 4096
"""Bytes that are checked by themselves: a short read of a long piece costs no more than a grain at each end.

It is short enough that ``zlib.crc32`` keeps the interpreter's lock: to give it up and to wait for it costs more.
"""
STRIDE = GRAIN + 4
"""Bytes that a grain takes on the disk, its CRC-32 included."""
PIECE_COST = 24
"""Bytes of memory that a piece takes: its entry, and the number of its cell in what its segment remembers."""
CELL_COST = 256
"""Bytes of memory that a cell takes, however little lies in it."""
_ENTRY = struct.Struct("=IIII")  # begin and end within the cell, segment, place in the segment


class KeptPiece(NamedTuple):
    """Bytes `start` to `end` of a file, which begin at `place` of a segment's file; cut into grains from `start` on."""

    start: int
    end: int
    segment: int
    place: int


def stored_length(length: int) -> int:
    """Bytes that a piece of `length` bytes takes in its segment."""
    return length + 4 * -(-length // GRAIN)


class PieceIndex:
    """The pieces of one file; no two of them overlap."""

    def __init__(self) -> None:
        self._cells: dict[int, bytes] = {}
        self.pieces = 0
        self.held = 0
        """Bytes of the file that lie in the cache."""

    @property
    def cost(self) -> int:
        """Bytes of memory that this takes, about and rather too many."""
        return PIECE_COST * self.pieces + CELL_COST * len(self._cells)

    def find(self, start: int, end: int) -> list[KeptPiece]:
        """The pieces with a part in the span, in order."""
        found = []
        for cell in self._between(start, end):
            data, base = self._cells[cell], cell * CELL
            starts = memoryview(data).cast("I")[::4]
            at = max(bisect_right(starts, max(start - base, 0)) - 1, 0)
            for begin, stop, segment, place in _ENTRY.iter_unpack(memoryview(data)[at * _ENTRY.size :]):
                if base + begin >= end:
                    break
                if base + stop > start:
                    found.append(KeptPiece(base + begin, base + stop, segment, place))
        return found

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of the span is not there, in order."""
        gaps = []
        for piece in self.find(start, end):
            if piece.start > start:
                gaps.append((start, piece.start))
            start = piece.end
        if start < end:
            gaps.append((start, end))
        return gaps

    def add(self, piece: KeptPiece) -> None:
        """Put a piece, which has to lie in one cell, in the place of the grains that it overlaps."""
        cell = piece.start // CELL
        if self.find(piece.start, piece.end):
            self.cut(piece.start, piece.end)
        base, data = cell * CELL, self._cells.get(cell, b"")
        begin = piece.start - base
        at = bisect_right(memoryview(data).cast("I")[::4], begin) * _ENTRY.size if data else 0
        entry = _ENTRY.pack(begin, piece.end - base, piece.segment, piece.place)
        self._cells[cell] = data[:at] + entry + data[at:]
        self.pieces += 1
        self.held += piece.end - piece.start

    def cut(self, start: int, end: int, segment: int | None = None) -> None:
        """Forget every grain with a part in the span; only those in `segment`, if one is given."""
        for cell in self._between(start, end):
            base = cell * CELL
            self._replace(cell, _without(self._cells[cell], start - base, end - base, segment))

    def drop(self, segment: int, cells: Iterable[int]) -> None:
        """Forget what lies in a segment, which are pieces in these cells."""
        for cell in cells:
            data = self._cells.get(cell)
            if data is not None:
                self._replace(cell, (entry for entry in _ENTRY.iter_unpack(data) if entry[2] != segment))

    def _replace(self, cell: int, entries: Iterable[tuple[int, ...]]) -> None:
        old = self._cells[cell]
        new = b"".join(_ENTRY.pack(*entry) for entry in entries)
        self.pieces += (len(new) - len(old)) // _ENTRY.size
        self.held += _bytes_in(new) - _bytes_in(old)
        if new:
            self._cells[cell] = new
        else:
            del self._cells[cell]

    def _between(self, start: int, end: int) -> Iterable[int]:
        """The cells with something in them that have a part in the span, in order."""
        if start >= end:
            return ()
        cells = range(start // CELL, (end - 1) // CELL + 1)
        if len(cells) > len(self._cells):
            return sorted(cell for cell in self._cells if cell in cells)
        return [cell for cell in cells if cell in self._cells]


def _bytes_in(data: bytes) -> int:
    return sum(entry[1] - entry[0] for entry in _ENTRY.iter_unpack(data))


def _without(data: bytes, start: int, end: int, only: int | None) -> Iterator[tuple[int, int, int, int]]:
    """A cell's entries without the grains that have a part in the span."""
    for begin, stop, segment, place in _ENTRY.iter_unpack(data):
        if stop <= start or begin >= end or (only is not None and segment != only):
            yield begin, stop, segment, place
            continue
        left = max(start - begin, 0) // GRAIN
        right = -(-(min(end, stop) - begin) // GRAIN)
        if left:
            yield begin, begin + left * GRAIN, segment, place
        if begin + right * GRAIN < stop:
            yield begin + right * GRAIN, stop, segment, place + right * STRIDE
