"""Sequential reads are seen by their misses, and the blocks after them are decompressed ahead.

A stream remembers where its last misses ended.  A miss that begins at such a place
is sequential: the next window is queued, and its first block carries a callback
that queues the window after it as soon as somebody uses that block.  So one
client that reads on keeps every core busy, and a random reader costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Optional

__all__ = ["ReadAhead"]

MAX_SEQUENCES = 64
"""Sequential readers of one stream told apart; beyond it the oldest is forgotten."""
REACHES = 2
"""A window has so many times the stored bytes that have to be on their way: they are about half of what they hold."""


class Pace(NamedTuple):
    """How reading ahead begins and grows: windows in bytes, from `first` to `last`, each `growth` times the one before.

    It begins with the second miss in a row, or not before `steps` of them, or `run` bytes, were in a row; `sequences`
    are told apart.  With `proven` short steps go on when the middle of the first window is used, and not its beginning.
    """

    first: int
    last: int
    growth: int
    steps: int = 1
    run: int = 0
    sequences: int = MAX_SEQUENCES
    proven: bool = False


NEAR = Pace(256 << 10, 4 << 20, 2)
FAR = Pace(4 << 20, 64 << 20, 4, steps=3, run=1 << 20, sequences=16, proven=True)
"""Neighbours that were met by accident cost more than a wait, and a whole round trip has to be covered."""

Queue = Callable[[int, int, Callable[[], None]], Optional[int]]
"""(position, bytes, callback) -> where the queued window ends, or None when nothing was queued."""
Later = Callable[[Callable[[], None]], object]
"""Has a piece of work done by another thread, or not at all where there is none free."""


class _Reader(NamedTuple):
    """One sequential reader: the next window in bytes, and how many misses and bytes were in a row so far."""

    window: int
    steps: int
    run: int


class ReadAhead:
    """The sequential readers of one stream; `queue` decompresses a window in the background."""

    def __init__(
        self, queue: Queue, later: Later, largest: int, pace: Pace = NEAR, reach: Callable[[], int] = lambda: 0
    ) -> None:
        """`later` runs what must not wait for a disk here; `largest` bounds the window in bytes, for small caches.

        `reach` tells how many stored bytes have to be on their way at a time.
        """
        self._queue = queue
        self._later = later
        self._pace = pace
        self._largest = min(pace.last, largest)
        self._reach = reach
        self._lock = threading.Lock()
        self._expected: dict[int, _Reader] = {}  # by where a miss ended; guarded by _lock

    def missed(self, start: int, end: int) -> None:
        """A reader had to wait for the blocks of [start, end)."""
        with self._lock:
            reader = self._expected.pop(start, None)
            if reader is None:
                return self._remember(end, _Reader(min(self._pace.first, self._largest), 1, end - start))
            reader = reader._replace(steps=reader.steps + 1, run=reader.run + end - start)
            goes_on = reader.steps > self._pace.steps or (reader.steps > 1 and reader.run >= self._pace.run)
            if not goes_on:
                self._remember(end, reader)
        if goes_on and self._pace.proven and reader.run < self._pace.run:
            half = reader.window // 2
            middle = self._queue(end, half, _go_on)
            if middle is not None:
                self._extend(middle, reader._replace(window=half))
        elif goes_on:
            window = min(max(reader.window, self._reach() // 2), self._largest)
            self._extend(end, reader._replace(window=window))

    def _remember(self, position: int, reader: _Reader) -> None:
        if len(self._expected) >= self._pace.sequences:
            del self._expected[next(iter(self._expected))]
        self._expected[position] = reader

    def _extend(self, position: int, reader: _Reader) -> None:
        window = max(reader.window * self._pace.growth, REACHES * self._reach())
        following = reader._replace(window=min(window, self._largest))
        end: int | None = None

        def use() -> None:
            # Whoever uses a block serves others too, perhaps, and the index behind it may still be on the disk.
            if end is not None:
                self._later(partial(self._extend, end, following))

        end = self._queue(position, reader.window, use)
        if end is not None:
            # Should the callback never run (the block was evicted first), a miss at the end picks the thread up.
            with self._lock:
                self._remember(end, following)


def _go_on() -> None:
    """Nothing is to be done when this is used."""
