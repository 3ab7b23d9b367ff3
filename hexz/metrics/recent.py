"""The requests that are being executed, and the errors of late."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque

from hexz.metrics.figures import Event, Flight

__all__ = ["MAX_EVENTS", "MAX_EVENT_BYTES", "Events", "Flights"]

MAX_EVENTS = 500
MAX_EVENT_BYTES = 51_200
"""Errors kept, and the bytes of their texts together (Nydus API, `max_errors` and `max_size`)."""
MAX_TEXT = 2048
"""Longest text of one error, characters; what is longer is cut."""

_Request = tuple[str, str, str, str, str, int, int]


class Events:
    """The last errors, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._kept: deque[Event] = deque()
        self._size = 0
        self.seen = 0

    def add(self, text: str, snapshot: str = "") -> None:
        """Something went wrong just now."""
        raw = text[:MAX_TEXT].encode("utf-8", "replace")
        size, text = len(raw), raw.decode()
        with self._lock:
            self.seen += 1
            self._kept.append(Event(self.seen, time.time(), snapshot, text))
            self._size += size
            while len(self._kept) > MAX_EVENTS or self._size > MAX_EVENT_BYTES:
                self._size -= len(self._kept.popleft().text.encode())

    def kept(self) -> list[Event]:
        """The errors kept, the oldest first."""
        with self._lock:
            return list(self._kept)


class Flights:
    """Requests under way, but for those that are answered from the cache at once."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._now: dict[int, tuple[_Request, float]] = {}  # with the start; changed as entries, which is atomic

    def begin(
        self, protocol: str, op: str, peer: str, snapshot: str = "", stream: str = "", offset: int = 0, length: int = 0
    ) -> int:
        """A request is being executed; the number to give to `end`."""
        number = next(self._numbers)
        self._now[number] = (snapshot, stream, protocol, op, peer, offset, length), time.monotonic()
        return number

    def describe(
        self, number: int, protocol: str, op: str, snapshot: str, stream: str, offset: int, length: int
    ) -> None:
        """More is known of the request now."""
        found = self._now.get(number)
        if found is not None:
            (*_, peer, _, _), began = found
            self._now[number] = (snapshot, stream, protocol, op, peer, offset, length), began

    def end(self, number: int) -> None:
        """The request was answered, or given up."""
        self._now.pop(number, None)

    def now(self) -> list[Flight]:
        """The requests under way, the oldest first."""
        present, clock = time.monotonic(), time.time()
        return [
            Flight(number, *request, clock - (present - began), present - began)
            for number, (request, began) in sorted(self._now.copy().items())
        ]
