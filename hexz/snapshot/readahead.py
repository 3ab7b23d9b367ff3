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
from typing import Optional

__all__ = ["ReadAhead"]

MAX_SEQUENCES = 64
"""Sequential readers of one stream told apart; beyond it the oldest is forgotten."""
FIRST_WINDOW = 256 << 10
LAST_WINDOW = 4 << 20
"""Bytes queued ahead: the window begins small and doubles up to this."""

Queue = Callable[[int, int, Callable[[], None]], Optional[int]]
"""(position, bytes, callback) -> where the queued window ends, or None when nothing was queued."""
Later = Callable[[Callable[[], None]], object]
"""Has a piece of work done by another thread, or not at all where there is none free."""


class ReadAhead:
    """The sequential readers of one stream; `queue` decompresses a window in the background."""

    def __init__(self, queue: Queue, later: Later, largest: int) -> None:
        """`later` runs what must not wait for a disk here; `largest` bounds the window in bytes, for small caches."""
        self._queue = queue
        self._later = later
        self._largest = min(LAST_WINDOW, largest)
        self._lock = threading.Lock()
        self._expected: dict[int, int] = {}  # where a miss ended -> next window; guarded by _lock

    def missed(self, start: int, end: int) -> None:
        """A reader had to wait for the blocks of [start, end)."""
        with self._lock:
            window = self._expected.pop(start, None)
            if window is None:
                self._remember(end, min(FIRST_WINDOW, self._largest))
        if window is not None:
            self._extend(end, window)

    def _remember(self, position: int, window: int) -> None:
        if len(self._expected) >= MAX_SEQUENCES:
            del self._expected[next(iter(self._expected))]
        self._expected[position] = window

    def _extend(self, position: int, window: int) -> None:
        following = min(window * 2, self._largest)
        end: int | None = None

        def use() -> None:
            # Whoever uses a block serves others too, perhaps, and the index behind it may still be on the disk.
            if end is not None:
                self._later(partial(self._extend, end, following))

        end = self._queue(position, window, use)
        if end is not None:
            # Should the callback never run (the block was evicted first), a miss at the end picks the thread up.
            with self._lock:
                self._remember(end, following)
