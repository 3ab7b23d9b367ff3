"""What one ``.hxz`` file costs: reads of its bytes, blocks decompressed ahead of need, and which parts are wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from hexz.metrics.buckets import latency_bucket, size_bucket
from hexz.metrics.figures import NO_LATENCIES, NO_SIZES, AheadFigures, HeatFigure, StorageFigures

__all__ = ["AheadCounts", "Heat", "ReadCounts"]

SMALLEST_STRETCH = 1 << 20
MAX_STRETCHES = 4096
"""Stretches in which the heat of one stream is kept."""


class ReadCounts:
    """Reads of a file.  Adding takes no lock: whoever reads the file holds its own."""

    def __init__(self) -> None:
        self._matrix = [list(NO_LATENCIES) for _ in NO_SIZES]
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
