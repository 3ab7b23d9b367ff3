"""The figures as Prometheus text (exposition format 0.0.4): a pure function of them.

Units are seconds and bytes, counters end in ``_total``, and no label has a value that
clients choose.  Sizes are whole bytes, so that a bucket "below 4096" is ``le="4095"``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Union

from hexz import __version__
from hexz.installation import PYTHON
from hexz.metrics.figures import Collected, OperationFigures, SnapshotFigures
from hexz.metrics.histograms import LATENCY_BOUNDS, SIZE_BOUNDS
from hexz.metrics.labels import CLOSE, OPEN, READ
from hexz.metrics.process import ProcessFigures

__all__ = ["CONTENT_TYPE", "exposition"]

MOMENTS = (OPEN, CLOSE)
"""Operations that take no time."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Value = Union[int, float]
Sample = tuple[Labels, Value]
_SIZE_EDGES = [str(bound - 1) for bound in SIZE_BOUNDS]
_LATENCY_EDGES = [f"{bound:.6f}".rstrip("0").rstrip(".") for bound in LATENCY_BOUNDS]


def exposition(collected: Collected, process: ProcessFigures | None) -> str:
    """Everything, as text; what is not known of the process is left out."""
    families = (_about, _requests, _cache, _storage, _ahead, _remote, _disk_cache, _connections, _trouble)
    lines = [line for family in families for line in family(collected)]
    if process is not None:
        lines += _process(collected, process)
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    plain = text.encode("utf-8", "replace").decode()
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _line(name: str, labels: Labels, value: Value) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}"


def _family(kind: str, name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield _line(name, labels, value)


def _counter(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    return _family("counter", name, text, samples)


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    return _family("gauge", name, text, samples)


def _histogram(
    name: str, text: str, edges: Sequence[str], rows: Iterable[tuple[Labels, Sequence[int], Value]]
) -> Iterator[str]:
    """`rows` are labels, counts by bucket, and the sum of all values."""
    yield from _family("histogram", name, text, ())
    for labels, counts, total in rows:
        seen = 0
        for edge, count in zip((*edges, "+Inf"), counts):
            seen += count
            yield _line(f"{name}_bucket", {**labels, "le": edge}, seen)
        yield _line(f"{name}_sum", labels, total)
        yield _line(f"{name}_count", labels, seen)


def _about(collected: Collected) -> Iterator[str]:
    versions = {"version": __version__, "python": PYTHON}
    yield from _gauge("hexz_build_info", "The version that runs; always 1.", [(versions, 1)])
    yield from _gauge("hexz_snapshots", "Snapshots served.", [({}, len(collected.snapshots))])
    text = "Files that should be served and could not be opened when they were last looked for."
    yield from _gauge("hexz_snapshots_skipped", text, [({}, collected.skipped)])


def _operations(collected: Collected) -> list[tuple[Labels, OperationFigures]]:
    """Every operation with its labels; the streams of a snapshot are one."""
    joined: dict[tuple[str, str, str], OperationFigures] = {}
    for figures in (*collected.snapshots.values(), collected.others):
        for one in figures.operations:
            key = (figures.name, one.protocol, one.op)
            joined[key] = _join(joined[key], one) if key in joined else one
    return [
        ({"snapshot": snapshot, "protocol": protocol, "op": op}, one)
        for (snapshot, protocol, op), one in joined.items()
    ]


def _join(one: OperationFigures, other: OperationFigures) -> OperationFigures:
    return one._replace(
        outcomes=dict(Counter(one.outcomes) + Counter(other.outcomes)),
        size=one.size + other.size,
        unfinished=one.unfinished + other.unfinished,
        seconds=one.seconds + other.seconds,
        sizes=[mine + its for mine, its in zip(one.sizes, other.sizes)],
        latencies=[mine + its for mine, its in zip(one.latencies, other.latencies)],
        partial=one.partial + other.partial,
        missed=one.missed + other.missed,
    )


def _requests(collected: Collected) -> Iterator[str]:
    operations = _operations(collected)
    reads = [(labels, one) for labels, one in operations if one.op == READ]
    yield from _counter(
        "hexz_requests_total",
        "Requests by how they ended: ok, refused (the client's fault), failed (the server's), aborted by the client.",
        (
            ({**labels, "outcome": outcome}, count)
            for labels, one in operations
            for outcome, count in one.outcomes.items()
        ),
    )
    yield from _counter(
        "hexz_sent_bytes_total",
        "Bytes sent, without protocol heads.",
        ((labels, one.size) for labels, one in operations),
    )
    yield from _histogram(
        "hexz_request_duration_seconds",
        "Time from the receipt of a request that ended ok to its last byte sent.",
        _LATENCY_EDGES,
        ((labels, one.latencies, one.seconds) for labels, one in operations if one.op not in MOMENTS),
    )
    yield from _histogram(
        "hexz_read_size_bytes",
        "Bytes that a read that ended ok was answered with.",
        _SIZE_EDGES,
        ((labels, one.sizes, one.size - one.unfinished) for labels, one in reads),
    )
    yield from _counter(
        "hexz_cached_reads_total",
        "Reads that ended ok: hit found all in the cache, partial waited for some of their bytes, miss for all.",
        (
            ({**labels, "outcome": outcome}, count)
            for labels, one in reads
            for outcome, count in (
                ("hit", one.ok - one.partial - one.missed), ("partial", one.partial), ("miss", one.missed),
            )
        ),
    )  # fmt: skip


def _each(collected: Collected) -> list[tuple[Labels, SnapshotFigures]]:
    return [({"snapshot": name}, figures) for name, figures in collected.snapshots.items()]


def _cache(collected: Collected) -> Iterator[str]:
    cache, each = collected.cache, _each(collected)
    yield from _gauge("hexz_cache_capacity_bytes", "Most bytes of decompressed blocks kept.", [({}, cache.budget)])
    yield from _gauge(
        "hexz_cache_bytes", "Bytes of decompressed blocks in the cache.", ((labels, one.held) for labels, one in each)
    )
    yield from _gauge(
        "hexz_cache_blocks", "Decompressed blocks in the cache.", ((labels, one.blocks) for labels, one in each)
    )
    for name, text, value in (
        ("loads", "Blocks decompressed into the cache.", cache.loads),
        ("failures", "Blocks that could not be.", cache.failures),
        ("waits", "Readers that waited for a block that another was decompressing.", cache.waits),
        ("evictions", "Blocks that made room for others.", cache.evictions),
    ):
        yield from _counter(f"hexz_cache_{name}_total", text, [({}, value)])


def _storage(collected: Collected) -> Iterator[str]:
    each = _each(collected)
    yield from _counter(
        "hexz_storage_reads_total",
        "Reads of snapshot files.",
        (
            ({**labels, "outcome": outcome}, count)
            for labels, one in each
            for outcome, count in (("ok", one.storage.reads), ("failed", one.storage.errors))
        ),
    )
    yield from _counter(
        "hexz_storage_read_bytes_total",
        "Bytes read of snapshot files.",
        ((labels, one.storage.size) for labels, one in each),
    )
    yield from _histogram(
        "hexz_storage_read_duration_seconds",
        "Time of one read of a snapshot file.",
        _LATENCY_EDGES,
        ((labels, list(map(sum, zip(*one.storage.matrix))), one.storage.seconds) for labels, one in each),
    )


def _ahead(collected: Collected) -> Iterator[str]:
    each = _each(collected)
    yield from _counter(
        "hexz_readahead_runs_total",
        "Runs of blocks decompressed before anybody asked.",
        ((labels, one.ahead.runs) for labels, one in each),
    )
    yield from _counter(
        "hexz_readahead_bytes_total",
        "Bytes decompressed before anybody asked.",
        ((labels, one.ahead.size) for labels, one in each),
    )


def _remote(collected: Collected) -> Iterator[str]:
    text = "Snapshots that are not served because their servers do not answer; they are tried again."
    yield from _gauge("hexz_snapshots_unreachable", text, [({}, collected.unreachable)])
    far = [(labels, one.remote) for labels, one in _each(collected) if one.remote is not None]
    if not far:
        return
    for kind, name, text, attribute in (
        (_gauge, "size_bytes", "Bytes of the snapshot's files on servers.", "size"),
        (_gauge, "held_bytes", "Of these, bytes in the disk cache; without one, in memory as they are stored.", "held"),
        (_counter, "fetched_bytes_total", "Bytes fetched from servers.", "fetched"),
        (_counter, "used_bytes_total", "Bytes, as they are stored, that readers needed.", "used"),
        (_counter, "fetches_total", "Spans fetched from servers.", "fetches"),
        (_counter, "retries_total", "Requests that had to be made again.", "retries"),
        (_counter, "failures_total", "Spans that could not be fetched.", "failures"),
        (_gauge, "listed_bytes", "Bytes to be fetched ahead of all readers, by lists or to fill the cache.", "listed"),
        (_gauge, "listed_done_bytes", "Of these, bytes that were.", "listed_done"),
    ):
        yield from kind(f"hexz_remote_{name}", text, ((labels, getattr(one, attribute)) for labels, one in far))
    servers = [({"server": one.name}, one) for one in collected.servers]
    for kind, name, text, attribute in (
        (_counter, "requests_total", "Requests to a server.", "requests"),
        (_counter, "request_retries_total", "Tries that failed and were followed by another.", "retries"),
        (_counter, "received_bytes_total", "Bytes received from a server.", "received"),
        (_gauge, "inflight_requests", "Requests to a server under way.", "in_flight"),
        (_gauge, "round_trip_seconds", "Shortest time to the first byte of an answer.", "round_trip_s"),
    ):
        yield from kind(f"hexz_server_{name}", text, ((labels, getattr(one, attribute)) for labels, one in servers))


def _disk_cache(collected: Collected) -> Iterator[str]:
    disk = collected.disk_cache
    if disk is None:
        return
    for kind, name, text, value in (
        (_gauge, "capacity_bytes", "Most bytes that the disk cache takes.", disk.budget),
        (_gauge, "bytes", "Bytes that it takes.", disk.held),
        (_gauge, "files", "Versions of files that it has something of.", disk.files),
        (_counter, "hits_total", "Reads that it had all of.", disk.hits),
        (_counter, "misses_total", "Reads that it had not all of.", disk.misses),
        (_counter, "hit_bytes_total", "Bytes read from it.", disk.hit_bytes),
        (_counter, "written_bytes_total", "Bytes written to it.", disk.written_bytes),
        (_counter, "evicted_bytes_total", "Bytes that made room for others.", disk.evicted_bytes),
        (_counter, "damaged_total", "Pieces that were not what was written; they were fetched again.", disk.damaged),
        (_counter, "failures_total", "Errors of its disk.", disk.failures),
    ):
        yield from kind(f"hexz_disk_cache_{name}", text, [({}, value)])


def _connections(collected: Collected) -> Iterator[str]:
    now: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for one in collected.listeners:
        now[one.protocol] += one.connections
        accepted[one.protocol] += one.accepted
        refused[one.protocol] += one.refused
    flights = Counter({protocol: 0 for protocol in now})
    flights.update(flight.protocol for flight in collected.flights)

    def by_protocol(counts: Counter[str]) -> list[Sample]:
        return [({"protocol": protocol}, count) for protocol, count in counts.items()]

    yield from _gauge("hexz_connections", "Connections open.", by_protocol(now))
    yield from _counter("hexz_connections_accepted_total", "Connections taken.", by_protocol(accepted))
    yield from _counter("hexz_connections_refused_total", "Connections over the limit.", by_protocol(refused))
    yield from _gauge(
        "hexz_inflight_requests",
        "Requests under way that are not all cached; over HTTP this one too.",
        by_protocol(flights),
    )
    oldest = max((flight.age for flight in collected.flights), default=0.0)
    yield from _gauge("hexz_inflight_oldest_seconds", "Age of the oldest of them, or 0.", [({}, oldest)])


def _trouble(collected: Collected) -> Iterator[str]:
    text = "Errors that clients met because data could not be had."
    yield from _counter("hexz_errors_total", text, [({}, collected.events_seen)])


def _process(collected: Collected, process: ProcessFigures) -> Iterator[str]:
    yield from _counter("process_cpu_seconds_total", "CPU time used.", [({}, process.cpu)])
    for name, text, value in (
        ("resident_memory_bytes", "Memory in use.", process.resident),
        ("virtual_memory_bytes", "Address space in use.", process.virtual),
        ("open_fds", "Descriptors open.", process.open_fds),
        ("max_fds", "Most descriptors that may be open.", process.max_fds),
        ("threads", "Threads.", process.threads),
        ("start_time_seconds", "When the process began to serve, in seconds since 1970.", collected.began),
    ):
        yield from _gauge(f"process_{name}", text, [({}, value)])
