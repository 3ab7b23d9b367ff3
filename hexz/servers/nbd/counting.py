"""What one NBD client's requests count as."""

from __future__ import annotations

from time import perf_counter

from hexz.errors import HexzError
from hexz.metrics.counters import Metrics, SnapshotMetrics, waited
from hexz.metrics.labels import ABORTED, CLOSE, EXTENTS, FAILED, OK, OPEN, OTHER, PREFETCH, READ, REFUSED
from hexz.protocol.nbd import constants as c

__all__ = ["NbdCounting"]

PROTOCOL = "nbd"
_OPS = {c.CMD_READ: READ, c.CMD_CACHE: PREFETCH, c.CMD_BLOCK_STATUS: EXTENTS}


class NbdCounting:
    """The figures of one client; used by the thread that serves it.

    Reads from the cache are counted in a `cell`, by the loop that answers them where nothing is odd: nearly all of a
    client's have the same length.  It puts others into `odd`, and says with `sent` how many such reads went out.
    """

    def __init__(self, metrics: SnapshotMetrics, totals: Metrics, stream: str, peer: str) -> None:
        self._metrics = metrics
        self._stream = stream
        self._peer = peer
        self._totals = totals
        self.cell = metrics.meter(PROTOCOL, READ, stream).cell()
        self._flights: set[int] = set()
        self.odd: list[int] = []
        self.began = perf_counter()
        """When something was received last (``perf_counter``)."""
        self.troubles = 0
        """Replies that could not be given for want of good data, so far."""
        metrics.meter(PROTOCOL, OPEN, stream).add(OK, 0, 0.0)

    def sent(self, count: int) -> None:
        """`count` reads, at least one, were answered from the cache; the cell's usual length may be another one now."""
        seconds = perf_counter() - self.began
        cell, odd = self.cell, self.odd
        if count > len(odd):
            cell.add(cell.usual, seconds, count - len(odd))
        for length in odd:
            cell.add(length, seconds)
        odd.clear()

    def lost(self, count: int, error: OSError) -> None:
        """`count` reads from the cache that the client, or a block that is gone and damaged, left without an answer."""
        self.odd.clear()
        for _ in range(count):
            self.add(c.CMD_READ, FAILED if isinstance(error.__cause__, HexzError) else ABORTED, 0, self.began)

    def add(self, command: int, outcome: str, size: int, began: float, missing: int = 0) -> None:
        """A request of its own, received at `began` (``perf_counter``), which waited for `missing` bytes."""
        meter = self._metrics.meter(PROTOCOL, _OPS.get(command, OTHER), self._stream)
        meter.add(outcome, size, perf_counter() - began, missing)

    def refused(self, command: int) -> None:
        """A request that the client may not make."""
        self.add(command, REFUSED, 0, self.began)

    def mark(self, missed: int = 0) -> tuple[int, int]:
        """How things stand before a request, for `answered`; `missed` bytes were loaded for it already."""
        return self.troubles, waited.size - missed

    def answered(self, command: int, size: int, before: tuple[int, int]) -> None:
        """The request that came last was answered in this thread, from cache or file; or failed."""
        troubles, size_before = before
        outcome = OK if troubles == self.troubles else FAILED
        self.add(command, outcome, size if outcome is OK else 0, self.began, waited.size - size_before)

    def trouble(self, error: BaseException) -> None:
        """Good data could not be had."""
        self.troubles += 1
        self._totals.events.add(str(error), self._metrics.name)

    def departs(self, offset: int, length: int) -> int:
        """A read has to wait for its blocks; the number to give to `landed`."""
        flights = self._totals.flights
        flight = flights.begin(PROTOCOL, READ, self._peer, self._metrics.name, self._stream, offset, length)
        self._flights.add(flight)
        return flight

    def landed(self, flight: int) -> None:
        """Its blocks are there, or will never be."""
        self._flights.discard(flight)
        self._totals.flights.end(flight)

    def close(self) -> None:
        """The client has gone."""
        self.cell.close()
        for flight in self._flights:
            self._totals.flights.end(flight)
        self._metrics.meter(PROTOCOL, CLOSE, self._stream).add(OK, 0, 0.0)
