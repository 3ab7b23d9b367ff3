"""Fetching what nobody reads yet: the spans of a list, or a whole file; many at a time, no faster than is allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from hexz.storage.remote.fetchers import Urgency
from hexz.storage.remote.file import LARGEST, RemoteFile
from hexz.storage.remote.speculation import LISTED_WASTE, joined

__all__ = ["Filling"]

MOST_AT_ONCE = 48
"""Requests of one filling that are under way."""
FIRST_BATCH = 1 << 20
"""Bytes of a list that are brought into order first, so that what is wanted first comes first; then twice that."""
LOOK_S = 0.5


class Filling:
    """One piece of such work; `run` does it, in a thread of its own or not."""

    def __init__(self, file: RemoteFile, spans: Sequence[tuple[int, int]], urgency: Urgency, rate: int = 0) -> None:
        """`spans` (start, end) in the order in which they are wanted; at most `rate` bytes a second, 0 for any."""
        self.file = file
        self.total = sum(end - start for start, end in spans)
        self.done = 0
        self.failed = 0
        """Bytes that could not be had."""
        self._spans = spans
        file.listed += self.total
        self.urgency = urgency
        self._rate = rate
        self._lock = threading.Lock()  # guards the sums above
        self._places = threading.Semaphore(MOST_AT_ONCE)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped.set()

    def run(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Fetch everything; `progress` is told of bytes done.  What cannot be fetched is left out, and counted."""
        began, begun = time.monotonic(), 0
        for start, end in self._pieces():
            while not self._places.acquire(timeout=LOOK_S):
                progress(self.done)
                if self._stopped.is_set():
                    return
            if self._stopped.is_set() or self.file.closed:
                return
            begun += end - start
            if self._rate:
                self._stopped.wait(max(0.0, began + begun / self._rate - time.monotonic()))
            self.file.fetch_ahead(start, end, self.urgency, self._ended)
            progress(self.done)
        for _ in range(MOST_AT_ONCE):
            while not self._places.acquire(timeout=LOOK_S):
                progress(self.done)
                if self._stopped.is_set():
                    return
        progress(self.done)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """What to ask for, piece by piece."""
        measured = self.file.lane.measured
        most = max(FIRST_BATCH, int(measured.round_trip_s * measured.bytes_per_s / 2))
        batch: list[tuple[int, int]] = []
        size = 0
        for start, end in self._spans:
            batch.append((start, end))
            size += end - start
            if size >= most:
                yield from joined(batch, LARGEST, LISTED_WASTE)
                batch, size, most = [], 0, most * 2
        yield from joined(batch, LARGEST, LISTED_WASTE)

    def _ended(self, size: int, well: bool) -> None:
        with self._lock:
            self.done += size
            self.file.listed_done += size if well else 0
            self.failed += 0 if well else size
        self._places.release()


def whole(size: int) -> Iterable[tuple[int, int]]:
    """The spans of a whole file of `size` bytes."""
    return [(start, min(start + LARGEST, size)) for start in range(0, size, LARGEST)]
