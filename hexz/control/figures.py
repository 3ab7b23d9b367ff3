"""The counters as the control API asks for them: pure functions that give the JSON shapes of the Nydus API.

Clients decode these strictly (Go and Rust structs): every number is a non-negative
integer, every array has exactly the length given, no field is missing.  Fields that
Nydus does not have come on top; its clients ignore them.

`id` is a mountpoint (``/NAME``, ``/`` for the default snapshot) or a name; None means
all snapshots together.  An unknown one raises ControlError (404).  `ControlFigures` asks by mountpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from email.utils import formatdate
from typing import Any, Optional

from hexz.catalog import Catalog
from hexz.control.mounts import MountTable
from hexz.metrics import labels
from hexz.metrics.errorlog import MAX_EVENT_BYTES, MAX_EVENTS
from hexz.metrics.figures import NO_SIZES, Collected, OperationFigures, SnapshotFigures
from hexz.metrics.files import total_ahead, total_storage
from hexz.metrics.histograms import coarser
from hexz.protocol.nydus.errors import ControlError, no_counter

__all__ = ["ControlFigures", "backend", "blobcache", "events", "files", "fs", "inflight", "latest", "pattern"]

FS_BOUNDS = (200e-6, 1e-3, 20e-3, 50e-3, 500e-3, 1.0, 2.0)
BACKEND_BOUNDS = (1e-3, 20e-3, 50e-3, 100e-3, 500e-3, 1.0, 2.0)
FOPS = 15
"""getattr, readlink, open, release, read, statfs, getxattr, listxattr, opendir, lookup, readdir, readdirplus,
access, forget, batchforget"""
FOP_OF = {labels.INFO: 0, labels.EXTENTS: 0, labels.OPEN: 2, labels.CLOSE: 3, labels.READ: 4, labels.LIST: 10}
OPCODE_OF = {
    labels.INFO: 3, labels.EXTENTS: 3, labels.READ: 15, labels.PREFETCH: 15, labels.WRITE: 16, labels.LIST: 28,
}  # fmt: skip
"""FUSE's numbers (linux/fuse.h): GETATTR, READ, WRITE, READDIR."""
INODES = {"disk": 1, "memory": 2}
STREAM_SHIFT = 48
"""A stretch of a stream has the inode ``stream << 48 | number``: exact in a JavaScript number too."""

Id = Optional[str]

_FS, _FILES, _PATTERN = "GlobalMetrics", "FsFilesMetrics", "Pattern"
_BACKEND, _CACHE = "BackendMetrics", "BlobcacheMetrics"
"""What the message that nothing is counted begins with, by what was asked for (Nydus API)."""


def _chosen(collected: Collected, id: Id, wrapper: str) -> list[SnapshotFigures]:
    if id is None:
        return list(collected.snapshots.values())
    name = id[1:] if id.startswith("/") else id
    found = collected.snapshots.get(name or collected.default or "")
    if found is None:
        raise no_counter(wrapper)
    return [found]


def _micros(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)


def _millis(seconds: float) -> int:
    return max(round(seconds * 1e3), 0)


def _sum(rows: Iterable[Sequence[int]], length: int) -> list[int]:
    sums = [0] * length
    for row in rows:
        sums = [mine + its for mine, its in zip(sums, row)]
    return sums


def _operations(operations: Sequence[OperationFigures]) -> dict[str, Any]:
    """What the answers for a snapshot and for one stream of it have in common."""
    hits, errors = [0] * FOPS, [0] * FOPS
    for one in operations:
        fop = FOP_OF.get(one.op)
        if fop is not None:
            hits[fop] += one.ok
            errors[fop] += one.bad
    reads = [one for one in operations if one.op == labels.READ]
    return {
        "data_read": sum(one.size for one in reads),
        "block_count_read": _sum((one.sizes for one in reads), len(NO_SIZES)),
        "fop_hits": hits,
        "fop_errors": errors,
    }


def fs(collected: Collected, id: Id = None) -> dict[str, Any]:
    """``GET /metrics``: requests of clients, as operations of a file system.

    `nr_opens` are the NBD clients attached now; latencies are microseconds.
    """
    operations = [one for figures in _chosen(collected, id, _FS) for one in figures.operations]
    latencies = [0] * FOPS
    for one in operations:
        if one.op in FOP_OF:
            latencies[FOP_OF[one.op]] += _micros(one.seconds)
    common = _operations(operations)
    reads = (coarser(one.latencies, FS_BOUNDS) for one in operations if one.op == labels.READ)
    return {
        "files_account_enabled": True,
        "access_pattern_enabled": True,
        "record_latest_read_files_enabled": True,
        "measure_latency": True,
        "id": id or "",
        "nr_opens": max(common["fop_hits"][2] - common["fop_hits"][3], 0),
        **common,
        "fop_cumulative_latency_total": latencies,
        "read_latency_dist": _sum(reads, len(FS_BOUNDS) + 1),
    }


def files(collected: Collected, id: Id = None) -> dict[str, dict[str, Any]]:
    """``GET /metrics/files``: the same by stream, which stands for an inode (disk 1, memory 2)."""
    operations = [one for figures in _chosen(collected, id, _FILES) for one in figures.operations]
    answer = {}
    for stream, inode in INODES.items():
        own = [one for one in operations if one.stream == stream]
        if own:
            common = _operations(own)
            answer[str(inode)] = {"total_fops": sum(common["fop_hits"]) + sum(common["fop_errors"]), **common}
    return answer


def latest(stretches: Iterable[tuple[str, int]]) -> list[list[int]]:
    """``GET /metrics/files?latest=true``: inodes as ``[ino]`` or ``[first, last]``, ascending.

    `stretches` are what `Heat.fresh` gives.
    """
    ranges: list[list[int]] = []
    for inode in sorted(_stretch_inode(*stretch) for stretch in stretches):
        if ranges and ranges[-1][-1] == inode - 1:
            ranges[-1][1:] = [inode]
        else:
            ranges.append([inode])
    return ranges


def _stretch_inode(stream: str, number: int) -> int:
    return INODES[stream] << STREAM_SHIFT | number


def pattern(collected: Collected, id: Id = None, top: int | None = None) -> list[dict[str, Any]]:
    """``GET /metrics/pattern``: which stretches were brought into the cache, how often, and first when.

    With `top` only so many, the most wanted first; else in their order.
    """
    heat = [one for figures in _chosen(collected, id, _PATTERN) for one in figures.heat]
    if top is not None:
        heat = sorted(heat, key=lambda one: -one.loads)[:top]
    return [
        {
            "ino": _stretch_inode(one.stream, one.number),
            "nr_read": one.loads,
            "first_access_time_secs": int(one.first),
            "first_access_time_nanos": int(one.first % 1 * 1e9),
            "stream": one.stream,
            "offset": one.offset,
            "length": one.length,
        }
        for one in heat
    ]


def backend(collected: Collected, id: Id = None) -> dict[str, Any]:
    """``GET /metrics/backend``: reads of the stored, compressed bytes."""
    storage = total_storage([figures.storage for figures in _chosen(collected, id, _BACKEND)])
    by_size = [coarser(row, BACKEND_BOUNDS) for row in storage.matrix]
    return {
        "backend_type": "localfs",
        "read_count": storage.reads,
        "read_errors": storage.errors,
        "read_amount_total": storage.size,
        "read_cumulative_latency_millis_total": _millis(storage.seconds),
        "read_cumulative_latency_millis_dist": _sum(by_size, len(BACKEND_BOUNDS) + 1),
        "read_count_block_size_dist": list(map(sum, by_size)),
        "read_latency_sizes_dist": by_size,
    }


def blobcache(collected: Collected, id: Id = None) -> dict[str, Any]:
    """``GET /metrics/blobcache``: the cache of decompressed blocks, and what was read ahead into it.

    Hits and misses are requests: a whole hit waited for no block, a partial one for some of its bytes.
    `evictions` and `capacity_bytes` are the whole cache's, which all snapshots share.
    """
    chosen = _chosen(collected, id, _CACHE)
    reads = [one for figures in chosen for one in figures.operations if one.op == labels.READ]
    ahead = total_ahead([figures.ahead for figures in chosen])
    total = sum(one.ok for one in reads)
    partial, missed = sum(one.partial for one in reads), sum(one.missed for one in reads)
    return {
        "underlying_files": list(dict.fromkeys(file for figures in chosen for file in figures.files)),
        "store_path": "",
        "partial_hits": partial,
        "whole_hits": total - partial - missed,
        "total": total,
        "entries_count": sum(figures.blocks for figures in chosen),
        "prefetch_data_amount": ahead.size,
        "prefetch_requests_count": ahead.runs,
        "prefetch_mr_count": ahead.runs,
        "prefetch_workers": collected.workers,
        "prefetch_unmerged_chunks": ahead.blocks,
        "prefetch_cumulative_time_millis": _millis(ahead.seconds),
        "prefetch_begin_time_secs": int(ahead.began),
        "prefetch_begin_time_millis": int(ahead.began % 1 * 1e3),
        "prefetch_end_time_secs": int(ahead.ended),
        "prefetch_end_time_millis": int(ahead.ended % 1 * 1e3),
        "buffered_backend_size": sum(figures.held for figures in chosen),
        "data_all_ready": False,
        "misses": missed,
        "evictions": collected.cache.evictions,
        "capacity_bytes": collected.cache.budget,
    }


def inflight(collected: Collected, min_age_ms: int = 0) -> list[dict[str, Any]]:
    """``GET /metrics/inflight``: requests under way for at least `min_age_ms`.

    Nydus answers 204 when there are none.
    """
    return [
        {
            "inode": INODES.get(flight.stream, 0),
            "opcode": OPCODE_OF.get(flight.op, 0),
            "unique": flight.number,
            "timestamp_secs": int(flight.since),
            "snapshot": flight.snapshot,
            "protocol": flight.protocol,
            "op": flight.op,
            "peer": flight.peer,
            "offset": flight.offset,
            "length": flight.length,
            "age_ms": _millis(flight.age),
        }
        for flight in collected.flights
        if _millis(flight.age) >= min_age_ms
    ]


def events(collected: Collected, since: float = 0.0) -> dict[str, Any]:
    """``GET /daemon/events``: the errors kept, or those after `since` (seconds since 1970).

    The totals describe what is given; `errors_seen` counts every error since the start.
    """
    kept = [event for event in collected.events if event.time > since]
    return {
        "max_errors": MAX_EVENTS,
        "total_errors": len(kept),
        "max_size": MAX_EVENT_BYTES,
        "total_size": sum(len(event.text.encode()) for event in kept),
        "errors": [f"{formatdate(event.time, usegmt=True)} - {event.text}" for event in kept],
        "errors_seen": collected.events_seen,
    }


class ControlFigures:
    """Every method answers for the snapshot mounted at `wanted`, or for all of them together if it is None.

    Each raises ControlError (404) where nothing is mounted.
    """

    def __init__(self, catalog: Catalog, mounts: MountTable) -> None:
        self._catalog = catalog
        self._metrics = catalog.context.metrics
        self._mounts = mounts

    def _name_at(self, wanted: str | None, wrapper: str) -> str | None:
        if wanted is None:
            return None
        try:
            # Clients of the cache's figures leave the slash out at times.
            return self._mounts.name_at(wanted if wanted.startswith("/") else f"/{wanted}")
        except ControlError:
            raise no_counter(wrapper) from None

    def events(self, since: float) -> dict[str, Any]:
        """The last errors, those after `since` (seconds since 1970)."""
        return events(self._metrics.collect(), since)

    def fs(self, wanted: str | None) -> dict[str, Any]:
        """Requests of clients, under the id that was asked for as it was written."""
        answer = fs(self._metrics.collect(), self._name_at(wanted, _FS))
        return answer if wanted is None else {**answer, "id": wanted}

    def files(self, wanted: str | None) -> dict[str, dict[str, Any]]:
        """Requests by stream."""
        return files(self._metrics.collect(), self._name_at(wanted, _FILES))

    def latest(self, wanted: str | None, clear: bool) -> list[list[int]]:
        """The stretches of streams that were read since this was last cleared."""
        name = self._name_at(wanted, _FILES)
        names = list(self._metrics.collect().snapshots) if name is None else [name]
        found = [self._metrics.find(one) for one in names]
        heats = [one.file.heat for one in found if one is not None and one.file is not None]
        return latest(stretch for heat in heats for stretch in heat.fresh(clear))

    def pattern(self, wanted: str | None, top: int | None) -> list[dict[str, Any]]:
        """How often which stretch was wanted, at most `top` of them."""
        return pattern(self._metrics.collect(heat=True), self._name_at(wanted, _PATTERN), top)

    def backend(self, wanted: str | None) -> dict[str, Any]:
        """Reads of snapshot files."""
        return backend(self._metrics.collect(), self._name_at(wanted, _BACKEND))

    def blobcache(self, wanted: str | None) -> dict[str, Any]:
        """The block cache."""
        return blobcache(self._metrics.collect(), self._name_at(wanted, _CACHE))

    def inflight(self, min_age_ms: int) -> list[dict[str, Any]]:
        """Requests being executed for at least so long."""
        return inflight(self._metrics.collect(), min_age_ms)
