"""What one ``.hxz`` file costs: reads of its bytes, blocks decompressed ahead of need, and which parts are wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from hexz.metrics.figures import NO_LATENCIES, NO_SIZES, AheadFigures, HeatFigure, RemoteFigures, StorageFigures
from hexz.metrics.histograms import latency_bucket, size_bucket

__all__ = [
    "AheadCounts",
    "FileCounts",
    "Heat",
    "ReadCounts",
    "share_out",
    "total_ahead",
    "total_remote",
    "total_storage",
]

Name = TypeVar("Name")

SMALLEST_STRETCH = 1 << 20
MAX_STRETCHES = 4096
"""Stretches in which the heat of one stream is kept."""


class ReadCounts:
    """Reads of a file.  Adding takes no lock: whoever reads the file holds its own."""

    def __init__(self) -> None:
        self._matrix = [list(NO_LATENCIES) for _ in NO_SIZES]
        self.remote: Callable[[], RemoteFigures] | None = None
        """Gives what else there is to say of a file on a server."""
        self._errors = 0
        self._size = 0
        self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """One read of `size` bytes."""
        self._matrix[size_bucket(size)][latency_bucket(seconds)] += 1
        self._size += size
        self._seconds += seconds

    def fail(self) -> None:
        """One read that failed."""
        self._errors += 1

    def collect(self) -> StorageFigures:
        """The figures now."""
        matrix = tuple(map(tuple, self._matrix))
        return StorageFigures(sum(map(sum, matrix)), self._errors, self._size, self._seconds, matrix)


class AheadCounts:
    """Blocks of a file that were decompressed before anybody waited for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures = AheadFigures()  # replaced under _lock

    def add(self, blocks: int, size: int, seconds: float) -> None:
        """One run of `blocks`, `size` bytes decompressed, that ended just now."""
        now = time.time()
        with self._lock:
            had = self._figures
            self._figures = AheadFigures(
                had.runs + 1, had.blocks + blocks, had.size + size, had.seconds + seconds,
                had.began or now - seconds, now,
            )  # fmt: skip

    def collect(self) -> AheadFigures:
        """The figures now."""
        return self._figures


class Heat:
    """How often which stretch of a file's streams was brought into the cache.

    What stays in the cache is not noticed again: this shows what is wanted, at no cost to a cached read.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """`sizes` are the streams' in bytes."""
        self._sizes = dict(sizes)
        self._shifts = {name: _shift(size) for name, size in sizes.items()}
        self._lock = threading.Lock()  # guards what follows
        self._loads: dict[tuple[str, int], tuple[int, float]] = {}  # -> how often, first when
        self._fresh: set[tuple[str, int]] = set()

    def note(self, stream: str, start: int, end: int) -> None:
        """The blocks of [start, end) of a stream were loaded; not empty, and a short span."""
        shift = self._shifts[stream]
        with self._lock:
            for number in range(start >> shift, ((end - 1) >> shift) + 1):
                key = (stream, number)
                loads, first = self._loads.get(key, (0, 0.0))
                self._loads[key] = (loads + 1, first or time.time())
                self._fresh.add(key)

    def collect(self) -> list[HeatFigure]:
        """Every stretch that was wanted, in the order of the streams."""
        with self._lock:
            items = sorted(self._loads.items())
        figures = []
        for (stream, number), (loads, first) in items:
            length = 1 << self._shifts[stream]
            offset = number * length
            length = min(length, self._sizes[stream] - offset)
            figures.append(HeatFigure(stream, number, offset, length, loads, first))
        return figures

    def fresh(self, clear: bool) -> list[tuple[str, int]]:
        """The stretches (stream, number) wanted since they were last cleared."""
        with self._lock:
            keys = sorted(self._fresh)
            if clear:
                self._fresh.clear()
        return keys


def _shift(size: int) -> int:
    stretch = max(SMALLEST_STRETCH, -(-size // MAX_STRETCHES))
    return (stretch - 1).bit_length()


class FileCounts:
    """All counters of one open file; `uid` is its number in the cache's keys, `parents` are those of its parents."""

    def __init__(
        self, uid: int, path: str, reads: ReadCounts, sizes: Mapping[str, int], parents: Sequence[FileCounts] = ()
    ) -> None:
        """`sizes` are the streams' in bytes."""
        self.uid = uid
        self.path = path
        self.reads = reads
        self.ahead = AheadCounts()
        self.heat = Heat(sizes)
        self.parents = tuple(parents)

    def family(self) -> Iterator[FileCounts]:
        """This file and its ancestors, nearest first, each once."""
        seen = {self.uid}
        level: list[FileCounts] = [self]
        while level:
            yield from level
            parents = {parent.uid: parent for file in level for parent in file.parents if parent.uid not in seen}
            seen |= parents.keys()
            level = list(parents.values())


def share_out(published: Sequence[tuple[Name, FileCounts | None]]) -> list[tuple[Name, list[FileCounts]]]:
    """For each name the files that count for it: its own, and parents that have no name; each file once in all."""
    taken: set[int] = set()
    shares: list[tuple[Name, list[FileCounts]]] = []
    for name, file in published:
        own = file is not None and file.uid not in taken
        shares.append((name, [file] if own and file is not None else []))
        if file is not None:
            taken.add(file.uid)
    for (_, file), (_, share) in zip(published, shares):
        for ancestor in file.family() if file is not None else ():
            if ancestor.uid not in taken:
                taken.add(ancestor.uid)
                share.append(ancestor)
    return shares


def total_storage(parts: Sequence[StorageFigures]) -> StorageFigures:
    """The reads of several files together."""
    if len(parts) == 1:
        return parts[0]
    matrix = [list(row) for row in StorageFigures().matrix]
    for part in parts:
        for row, more in zip(matrix, part.matrix):
            row[:] = [mine + its for mine, its in zip(row, more)]
    return StorageFigures(
        sum(part.reads for part in parts),
        sum(part.errors for part in parts),
        sum(part.size for part in parts),
        sum(part.seconds for part in parts),
        tuple(map(tuple, matrix)),
    )


def total_remote(counts: Sequence[ReadCounts]) -> RemoteFigures | None:
    """What several files on servers cost together; None where none is on one."""
    parts = [one.remote() for one in counts if one.remote is not None]
    return RemoteFigures(*map(sum, zip(*parts))) if parts else None


def total_ahead(parts: Sequence[AheadFigures]) -> AheadFigures:
    """The read-ahead of several files together."""
    return AheadFigures(
        sum(part.runs for part in parts),
        sum(part.blocks for part in parts),
        sum(part.size for part in parts),
        sum(part.seconds for part in parts),
        min((part.began for part in parts if part.began), default=0.0),
        max((part.ended for part in parts), default=0.0),
    )
