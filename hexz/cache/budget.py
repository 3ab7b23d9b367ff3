"""Bytes that may be in use at once, for work whose memory counts only while it runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ByteBudget"]


class ByteBudget:
    """A semaphore that counts bytes.  Who asks first is let in first; one piece of work alone may be of any size."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()  # guards everything below; never held while the work is done
        self._used = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and have them while the block runs."""
        gate = None
        with self._lock:
            if self._waiting or not self._fits(size):
                gate = threading.Lock()
                gate.acquire()  # no time-out: it is new
                self._waiting.append((size, gate))
            else:
                self._used += size
        if gate is not None:
            gate.acquire()  # no time-out: released by those before it, whose work reads files and nothing slower
        try:
            yield
        finally:
            self._give_back(size)

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self.most

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size
            while self._waiting and self._fits(self._waiting[0][0]):
                following, gate = self._waiting.popleft()
                self._used += following
                gate.release()
