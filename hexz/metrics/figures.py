"""What was counted, as plain values: what `Metrics.collect` gives and the formatters take.

Sizes are bytes, durations seconds, times seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hexz.metrics.histograms import LATENCY_BOUNDS, SIZE_BOUNDS

__all__ = [
    "AheadFigures",
    "CacheFigures",
    "Collected",
    "ErrorEvent",
    "InflightRequest",
    "HeatFigure",
    "ListenerFigures",
    "OperationFigures",
    "SnapshotFigures",
    "StorageFigures",
]

NO_SIZES = (0,) * (len(SIZE_BOUNDS) + 1)
NO_LATENCIES = (0,) * (len(LATENCY_BOUNDS) + 1)


class OperationFigures(NamedTuple):
    """One operation of one protocol on one stream (empty for the snapshot as a whole).

    `outcomes` counts requests by how they ended (``ok``, ``refused``, ``failed``, ``aborted``), `size` all
    bytes sent, and `unfinished` those of requests that did not end ``ok``.  The histograms and `seconds` are
    of those that did.  Of these, `partial` had to wait for some of their bytes to be decompressed, `missed`
    for all; the others found everything in the cache.
    """

    protocol: str
    op: str
    stream: str
    outcomes: dict[str, int]
    size: int
    seconds: float
    sizes: Sequence[int] = NO_SIZES
    latencies: Sequence[int] = NO_LATENCIES
    partial: int = 0
    missed: int = 0
    unfinished: int = 0

    @property
    def ok(self) -> int:
        """Requests that got what they asked for."""
        return self.outcomes.get("ok", 0)

    @property
    def bad(self) -> int:
        """Requests that did not."""
        return sum(self.outcomes.values()) - self.ok


class StorageFigures(NamedTuple):
    """Reads of the ``.hxz`` files; `matrix` counts them by size bucket, and within it by latency bucket."""

    reads: int = 0
    errors: int = 0
    size: int = 0
    seconds: float = 0.0
    matrix: Sequence[Sequence[int]] = (NO_LATENCIES,) * len(NO_SIZES)


class RemoteFigures(NamedTuple):
    """What a file on a server cost so far.

    `size` is the file's, `held` the bytes of it on the local disk or in memory, `fetched` those that came from the
    server, `used` those that readers wanted of what was there or came.  `fetches` are answers, `retries` what was asked
    once more.  `listed` bytes were to be fetched ahead, `listed_done` of them were.
    """

    size: int = 0
    held: int = 0
    fetched: int = 0
    used: int = 0
    fetches: int = 0
    retries: int = 0
    failures: int = 0
    listed: int = 0
    listed_done: int = 0


class ServerFigures(NamedTuple):
    """One server that snapshots are read from: requests so far, those under way, the shortest way there and back."""

    name: str
    requests: int
    retries: int
    received: int
    in_flight: int
    round_trip_s: float


class AheadFigures(NamedTuple):
    """What was decompressed before anybody asked for it; `began` and `ended` are 0 while nothing was."""

    runs: int = 0
    blocks: int = 0
    size: int = 0
    seconds: float = 0.0
    began: float = 0.0
    ended: float = 0.0


class HeatFigure(NamedTuple):
    """A stretch of a stream, and how often something of it was brought into the cache, first at time `first`."""

    stream: str
    number: int
    offset: int
    length: int
    loads: int
    first: float


class CacheFigures(NamedTuple):
    """The block cache of the process: its contents now, and what happened since the start."""

    blocks: int = 0
    held: int = 0
    budget: int = 0
    loads: int = 0
    failures: int = 0
    waits: int = 0
    evictions: int = 0


class SnapshotFigures(NamedTuple):
    """Everything about one published snapshot.

    `files` are its own and its parents'.  `blocks` and `held` are their share of the block cache.  A file under
    several names, or the parent of several snapshots, counts for one of them only, so that sums are right.
    """

    name: str
    files: Sequence[str]
    operations: Sequence[OperationFigures]
    storage: StorageFigures = StorageFigures()
    ahead: AheadFigures = AheadFigures()
    blocks: int = 0
    held: int = 0
    heat: Sequence[HeatFigure] = ()
    since: float = 0.0
    remote: RemoteFigures | None = None


class ListenerFigures(NamedTuple):
    """One listening socket: connections now, and how many were taken and turned away since the start."""

    protocol: str
    url: str
    connections: int
    accepted: int
    refused: int


class DiskCacheFigures(NamedTuple):
    """What a disk cache has, and what happened since the start.

    `files`: identities that something is kept of; `held` and `budget`: bytes on the disk, at most; `hits` and `misses`
    count reads; `evicted_bytes` are bytes on the disk, `hit_bytes` and `written_bytes` those of files; `damaged`:
    grains and segments whose checksum was wrong; `failures`: errors of the disk, one that is full among them.
    """

    files: int
    held: int
    budget: int
    hits: int
    hit_bytes: int
    misses: int
    written_bytes: int
    evicted_bytes: int
    damaged: int
    failures: int


class InflightRequest(NamedTuple):
    """A request that is being executed; `since` is a time, `age` a duration.  Lengths of 0 are unknown."""

    number: int
    snapshot: str
    stream: str
    protocol: str
    op: str
    peer: str
    offset: int
    length: int
    since: float
    age: float


class ErrorEvent(NamedTuple):
    """Something that went wrong."""

    number: int
    time: float
    snapshot: str
    text: str


class Collected(NamedTuple):
    """All figures of the process.

    `others` are requests that belong to no snapshot, `default` names the default one, `skipped` counts the files
    that should be served and cannot be.
    """

    snapshots: dict[str, SnapshotFigures]
    others: SnapshotFigures
    cache: CacheFigures = CacheFigures()
    listeners: Sequence[ListenerFigures] = ()
    flights: Sequence[InflightRequest] = ()
    events: Sequence[ErrorEvent] = ()
    events_seen: int = 0
    workers: int = 0
    began: float = 0.0
    default: str | None = None
    skipped: int = 0
    unreachable: int = 0
    servers: Sequence[ServerFigures] = ()
    disk_cache: DiskCacheFigures | None = None
