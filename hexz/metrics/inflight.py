"""The requests that are being executed."""

from __future__ import annotations

import itertools
import time

from hexz.metrics.figures import InflightRequest

__all__ = ["InflightRequests"]

_Request = tuple[str, str, str, str, str, int, int]


class InflightRequests:
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

    def now(self) -> list[InflightRequest]:
        """The requests under way, the oldest first."""
        present, clock = time.monotonic(), time.time()
        return [
            InflightRequest(number, *request, clock - (present - began), present - began)
            for number, (request, began) in sorted(self._now.copy().items())
        ]
