"""Where the daemon counts.

One `Metrics` belongs to a process (``context.metrics``).  The catalog publishes each
snapshot's name in it and hands the `SnapshotMetrics` out with every lease::

    meter = lease.metrics.meter("nbd", "read", "disk")      # one operation of one protocol
    meter.add("ok", sent_bytes, seconds, waited_bytes)      # any thread, takes a short lock

A loop that serves thousands of cached reads a second gets a cell of its own, which
takes no lock, and tells it about a whole batch at once::

    cell = meter.cell()                                     # one thread at a time
    cell.add(sent_bytes, seconds, count)                    # `count` replies of so many bytes each
    cell.close()                                            # gives the figures to the meter

    collected = metrics.collect()                           # plain values, hexz.metrics.figures

A cell that is not closed yet is counted all the same.  When a name is withdrawn its
figures go with it; requests that still run then count into an object nobody asks any more.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hexz.metrics.errorlog import ErrorLog
from hexz.metrics.figures import (
    NO_LATENCIES,
    NO_SIZES,
    CacheFigures,
    Collected,
    DiskCacheFigures,
    ListenerFigures,
    OperationFigures,
    ServerFigures,
    SnapshotFigures,
)
from hexz.metrics.files import FileCounts, share_out, total_ahead, total_remote, total_storage
from hexz.metrics.histograms import LATENCY_BOUNDS, latency_bucket, size_bucket
from hexz.metrics.inflight import InflightRequests
from hexz.metrics.labels import OK

__all__ = ["FAST_S", "Cell", "Meter", "Metrics", "Purpose", "SnapshotMetrics", "waited"]

MAX_NOTED = 3 * 256
"""Figures that a cell notes before they are counted: three for each batch of requests."""
FAST_S = LATENCY_BOUNDS[0]
"""What takes at most so many seconds is in the first bucket."""


class _Waited(threading.local):
    size = 0


waited = _Waited()
"""How many bytes the thread's reads had to wait for, because they were not in the cache.

A server takes the figure before and after a request; the difference tells a hit from a miss::

    before = waited.size
    stream.read(offset, length)
    meter.add(OK, length, seconds, waited.size - before)
"""


class Cell:
    """Requests that went well; only one thread at a time may add.

    Most requests of one client have one size and are fast: those cost two additions.  Others are
    noted first, and counted by the hundred.  A loop for which even a call is too much may do by
    itself what the beginning of `add` does.
    """

    __slots__ = ("_noted", "_odd", "fast", "fast_seconds", "meter", "usual")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.usual = 0
        """A size in bytes."""
        self.fast = 0
        """Requests of that size that took at most `FAST_S`, and how long these took together."""
        self.fast_seconds = 0.0
        self._odd = 0  # the last size that was another
        # Size, count and duration one behind the other: extended in one step, so that other threads read whole triples.
        self._noted: list[Any] = []

    def add(self, size: int, seconds: float, count: int = 1) -> None:
        """`count` requests, answered with `size` bytes each, together within `seconds`."""
        if size == self.usual and seconds <= FAST_S:
            self.fast += count
            self.fast_seconds += seconds * count
            return
        noted = self._noted
        noted += (size, count, seconds)
        if len(noted) >= MAX_NOTED:
            self.meter.fold(self, self.usual)
        if size != self.usual:
            if size == self._odd:
                self.meter.fold(self, size)
            self._odd = size

    def add_to(self, totals: Totals) -> None:
        """Count what was added so far.  The meter sees to it that `usual` does not change meanwhile."""
        noted = self._noted[:]
        totals.add_many(noted[0::3], noted[1::3], noted[2::3])
        totals.add_fast(self.usual, self.fast, self.fast_seconds)

    def clear(self, usual: int) -> None:
        """Forget what was added; in the thread that adds, while the meter lets nobody look."""
        self._noted.clear()
        self.usual = usual
        self.fast = 0
        self.fast_seconds = 0.0

    def close(self) -> None:
        """Give the figures to the meter; nothing may be added afterwards."""
        self.meter.fold(self, self.usual, last=True)


class Totals:
    """Requests by size and by duration."""

    __slots__ = ("latencies", "seconds", "size", "sizes")

    def __init__(self) -> None:
        self.sizes = list(NO_SIZES)
        self.latencies = list(NO_LATENCIES)
        self.size = 0
        self.seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """One request."""
        self.sizes[size_bucket(size)] += 1
        self.latencies[latency_bucket(seconds)] += 1
        self.size += size
        self.seconds += seconds

    def add_many(self, sizes: list[int], counts: list[int], waits: list[float]) -> None:
        """Batches of `counts` requests of the same size each."""
        if counts.count(1) == len(counts):
            for size, count in Counter(sizes).items():
                self.sizes[size_bucket(size)] += count
            for bucket, count in Counter(map(latency_bucket, waits)).items():
                self.latencies[bucket] += count
            self.size += sum(sizes)
            self.seconds += sum(waits)
            return
        for size, count, seconds in zip(sizes, counts, waits):
            self.sizes[size_bucket(size)] += count
            self.latencies[latency_bucket(seconds)] += count
            self.size += size * count
            self.seconds += seconds * count

    def add_fast(self, size: int, count: int, seconds: float) -> None:
        """`count` requests of one size that took at most `FAST_S` each."""
        self.sizes[size_bucket(size)] += count
        self.latencies[0] += count
        self.size += size * count
        self.seconds += seconds

    def copy(self) -> Totals:
        """The same figures, apart."""
        other = Totals()
        other.sizes, other.latencies = self.sizes[:], self.latencies[:]
        other.size, other.seconds = self.size, self.seconds
        return other


class Meter:
    """One operation of one protocol on one stream of a snapshot."""

    def __init__(self, protocol: str, op: str, stream: str = "") -> None:
        self.protocol = protocol
        self.op = op
        self.stream = stream
        self._lock = threading.Lock()  # guards everything below
        self._cells: set[Cell] = set()
        self._total = Totals()
        self._others: dict[str, int] = {}  # outcomes but for OK
        self._unfinished = 0  # bytes
        self._partial = 0
        self._missed = 0

    def add(self, outcome: str, size: int, seconds: float, waited: int = 0) -> None:
        """One request: how it ended, the bytes sent, how long it took, and the bytes it had to wait for."""
        with self._lock:
            if outcome != OK:
                self._others[outcome] = self._others.get(outcome, 0) + 1
                self._unfinished += size
                return
            self._total.add(size, seconds)
            if waited >= size > 0:
                self._missed += 1
            elif waited:
                self._partial += 1

    def cell(self) -> Cell:
        """A cell for a hot loop; `Cell.close` gives it back."""
        cell = Cell(self)
        with self._lock:
            self._cells.add(cell)
        return cell

    def fold(self, cell: Cell, usual: int, last: bool = False) -> None:
        """Count what a cell has, for good, and let `usual` be its usual size; in the thread that adds to it."""
        with self._lock:
            cell.add_to(self._total)
            cell.clear(usual)
            if last:
                self._cells.discard(cell)

    def collect(self) -> OperationFigures:
        """The figures now."""
        with self._lock:
            total = self._total.copy()
            for cell in self._cells:
                cell.add_to(total)
            outcomes = {OK: sum(total.sizes), **self._others}
            return OperationFigures(
                self.protocol, self.op, self.stream, outcomes, total.size + self._unfinished, total.seconds,
                tuple(total.sizes), tuple(total.latencies), self._partial, self._missed, self._unfinished,
            )  # fmt: skip


class SnapshotMetrics:
    """What is counted for one snapshot's name."""

    def __init__(self, name: str, file: FileCounts | None = None) -> None:
        self.name = name
        self.file = file  # the catalog puts another one here when another file takes the name
        self.since = time.time()
        self._lock = threading.Lock()
        self._meters: dict[tuple[str, str, str], Meter] = {}  # grows under _lock

    def meter(self, protocol: str, op: str, stream: str = "") -> Meter:
        """The meter of an operation, always the same one.  The words come from the code, never from a client."""
        key = (protocol, op, stream)
        meter = self._meters.get(key)
        if meter is None:
            with self._lock:
                meter = self._meters.setdefault(key, Meter(*key))
        return meter

    def collect(self) -> list[OperationFigures]:
        """The figures of every operation that was ever asked for."""
        return [meter.collect() for meter in list(self._meters.values())]


class Purpose(NamedTuple):
    """What a request is for: enough to find its meter.

    Without `metrics` it belongs to no snapshot; an empty `protocol` is that of the connection.
    """

    metrics: SnapshotMetrics | None
    op: str
    stream: str = ""
    protocol: str = ""


class Metrics:
    """All counters of a process; whoever owns further figures lends a function that gives them.

    These functions are put in place before the first request, and called by `collect` from any thread.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.events = ErrorLog()
        self.flights = InflightRequests()
        self.others = SnapshotMetrics("")
        """Requests that belong to no snapshot."""
        self.cache: Callable[[], CacheFigures] = CacheFigures
        self.holdings: Callable[[], Mapping[int, tuple[int, int]]] = dict
        """Gives the blocks and bytes that the cache has of each file."""
        self.listeners: Callable[[], Sequence[ListenerFigures]] = tuple
        self.default: Callable[[], str | None] = str
        self.skipped: Callable[[], int] = int
        """Gives how many files that should be served cannot be."""
        self.unreachable: Callable[[], int] = int
        """Gives how many snapshots are not served because their servers do not answer."""
        self.servers: Callable[[], Sequence[ServerFigures]] = tuple
        self.disk_cache: Callable[[], DiskCacheFigures | None] = _none
        self.workers = 0
        self._publishing = threading.Lock()
        self._published: dict[str, SnapshotMetrics] = {}  # changed under _publishing, as entries; read without it

    def publish(self, name: str, file: FileCounts | None = None) -> SnapshotMetrics:
        """Begin to count for `name`, from nothing."""
        metrics = SnapshotMetrics(name, file)
        with self._publishing:
            self._published[name] = metrics
        return metrics

    def withdraw(self, metrics: SnapshotMetrics) -> None:
        """Stop showing a name's figures; a newer snapshot of that name keeps its own."""
        with self._publishing:
            if self._published.get(metrics.name) is metrics:
                del self._published[metrics.name]

    def find(self, name: str) -> SnapshotMetrics | None:
        """What is counted for `name`, if it is published."""
        return self._published.get(name)

    def collect(self, heat: bool = False) -> Collected:
        """Every figure now; how wanted the stretches of streams are only with `heat`, since these are many."""
        published = list(self._published.values())
        holdings = self.holdings()
        snapshots = {}
        for one, files in share_out([(one, one.file) for one in published]):
            snapshots[one.name] = SnapshotFigures(
                one.name,
                tuple(file.path for file in one.file.family()) if one.file else (),
                one.collect(),
                total_storage([file.reads.collect() for file in files]),
                total_ahead([file.ahead.collect() for file in files]),
                sum(holdings.get(file.uid, (0, 0))[0] for file in files),
                sum(holdings.get(file.uid, (0, 0))[1] for file in files),
                one.file.heat.collect() if heat and one.file else (),
                one.since,
                total_remote([file.reads for file in files]),
            )
        return Collected(
            snapshots,
            SnapshotFigures("", (), self.others.collect(), since=self.began),
            self.cache(),
            self.listeners(),
            self.flights.now(),
            self.events.kept(),
            self.events.seen,
            self.workers,
            self.began,
            self.default(),
            self.skipped(),
            self.unreachable(),
            self.servers(),
            self.disk_cache(),
        )


def _none() -> None:
    return None
