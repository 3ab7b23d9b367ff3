"""The JSON of the Nydus API, decoded as strictly as its Go and Rust clients do."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.control import figures as nydus
from hexz.metrics import Metrics
from hexz.metrics.figures import CacheFigures, Collected
from hexz.metrics.files import FileCounts, ReadCounts
from hexz.protocol.nydus.errors import ControlError

U64 = 1 << 64
FS = {
    "files_account_enabled": bool, "access_pattern_enabled": bool, "record_latest_read_files_enabled": bool,
    "measure_latency": bool, "id": str, "nr_opens": int, "data_read": int, "block_count_read": [8], "fop_hits": [15],
    "fop_errors": [15], "fop_cumulative_latency_total": [15], "read_latency_dist": [8],
}  # fmt: skip
FILE = {"total_fops": int, "data_read": int, "block_count_read": [8], "fop_hits": [15], "fop_errors": [15]}
PATTERN = {"ino": int, "nr_read": int, "first_access_time_secs": int, "first_access_time_nanos": int}
BACKEND = {
    "backend_type": str, "read_count": int, "read_errors": int, "read_amount_total": int,
    "read_cumulative_latency_millis_total": int, "read_cumulative_latency_millis_dist": [8],
    "read_count_block_size_dist": [8], "read_latency_sizes_dist": [8, 8],
}  # fmt: skip
CACHE = {
    "underlying_files": list, "store_path": str, "partial_hits": int, "whole_hits": int, "total": int,
    "entries_count": int, "prefetch_data_amount": int, "prefetch_requests_count": int, "prefetch_workers": int,
    "prefetch_unmerged_chunks": int, "prefetch_cumulative_time_millis": int, "prefetch_begin_time_secs": int,
    "prefetch_begin_time_millis": int, "prefetch_end_time_secs": int, "prefetch_end_time_millis": int,
    "buffered_backend_size": int, "data_all_ready": bool, "prefetch_mr_count": int,
}  # fmt: skip
INFLIGHT = {"inode": int, "opcode": int, "unique": int, "timestamp_secs": int}
EVENTS = {"max_errors": int, "total_errors": int, "max_size": int, "total_size": int, "errors": list}


def check(value: Any, shape: Any) -> None:
    """Fail unless `value` has every field of `shape`; integers are unsigned 64-bit, arrays as long as given."""
    if isinstance(shape, dict):
        for key, wanted in shape.items():
            assert key in value, key
            check(value[key], wanted)
        for one in value.values():
            assert one is not None
            assert type(one) is not float
    elif isinstance(shape, list) and shape:
        assert isinstance(value, list)
        assert len(value) == shape[0]
        for one in value:
            check(one, shape[1:] or int)
    elif shape is int or shape == []:
        assert type(value) is int
        assert 0 <= value < U64
    else:
        assert type(value) is shape


def decoded(value: Any) -> Any:
    """What a client has after the value went over the wire."""
    return json.loads(json.dumps(value, allow_nan=False))


def check_all(collected: Collected, id: str | None) -> None:
    check(decoded(nydus.fs(collected, id)), FS)
    answer = decoded(nydus.files(collected, id))
    for inode, file in answer.items():
        assert re.fullmatch(r"[0-9]+", inode)
        check(file, FILE)
    for one in decoded(nydus.pattern(collected, id)):
        check(one, PATTERN)
        assert one["ino"] < 1 << 53
    check(decoded(nydus.backend(collected, id)), BACKEND)
    check(decoded(nydus.blobcache(collected, id)), CACHE)
    for one in decoded(nydus.inflight(collected)):
        check(one, INFLIGHT)
    check(decoded(nydus.events(collected)), EVENTS)


def example() -> Metrics:
    metrics = Metrics()
    metrics.default = lambda: "base"
    base = FileCounts(1, "/s/base.hxz", ReadCounts(), {"disk": 1 << 30})
    child = FileCounts(2, "/s/child.hxz", ReadCounts(), {"disk": 1 << 30, "memory": 1 << 20}, (base,))
    metrics.publish("base", base)
    metrics.publish("child", child)
    metrics.holdings = lambda: {1: (3, 3 << 16), 2: (1, 1 << 16)}
    metrics.cache = lambda: CacheFigures(4, 4 << 16, 1 << 20, 9, 0, 0, 5)
    metrics.workers = 1
    base.reads.add(20_000, 0.0005)
    base.reads.add(20_000, 0.030)
    base.reads.add(2 << 20, 0.030)
    child.reads.add(700, 3.0)
    child.reads.fail()
    base.ahead.add(4, 1 << 18, 0.0104)
    return metrics


def meter_of(metrics: Metrics, name: str, *key: str) -> Any:
    found = metrics.find(name)
    assert found is not None
    return found.meter(*key)


def test_every_shape_with_nothing_counted_yet() -> None:
    check_all(Metrics().collect(), None)
    check_all(example().collect(heat=True), None)
    check_all(example().collect(heat=True), "/base")


def test_requests_become_operations_of_a_file_system() -> None:
    metrics = example()
    cell = meter_of(metrics, "base", "nbd", "read", "disk").cell()
    cell.add(4096, 100e-6, 10)
    cell.add(1 << 20, 0.3)
    reads = meter_of(metrics, "base", "http", "read", "memory")
    reads.add("ok", 1000, 5.0, 1000)
    reads.add("ok", 1000, 150e-6, 400)
    reads.add("failed", 0, 0.1)
    meter_of(metrics, "base", "nbd", "open", "disk").add("ok", 0, 0.0)
    meter_of(metrics, "base", "http", "info").add("ok", 0, 0.001)
    meter_of(metrics, "child", "http", "read", "disk").add("ok", 512, 0.001)
    collected = metrics.collect()
    check_all(collected, "base")
    found = nydus.fs(collected, "/base")
    assert found["data_read"] == 40960 + (1 << 20) + 2000
    assert found["block_count_read"] == [2, 0, 10, 0, 0, 0, 0, 1]
    assert [found["fop_hits"][fop] for fop in (0, 2, 3, 4)] == [1, 1, 0, 13]
    assert found["fop_errors"][4] == 1
    assert found["nr_opens"] == 1
    assert found["read_latency_dist"] == [11, 0, 0, 0, 1, 0, 0, 1]
    assert found["fop_cumulative_latency_total"][4] == 10 * 100 + 300_000 + 5_000_000 + 150
    by_stream = nydus.files(collected, "base")
    assert by_stream["1"]["data_read"] == 40960 + (1 << 20)
    assert (by_stream["2"]["fop_hits"][4], by_stream["2"]["fop_errors"][4], by_stream["2"]["total_fops"]) == (2, 1, 3)
    cache = nydus.blobcache(collected, "base")
    assert (cache["total"], cache["whole_hits"], cache["partial_hits"], cache["misses"]) == (13, 11, 1, 1)
    # Without an id: all of them together.
    assert nydus.fs(collected)["data_read"] == found["data_read"] + 512


def test_storage_and_cache() -> None:
    collected = example().collect()
    base, child, both = (nydus.backend(collected, id) for id in ("/", "/child", None))
    assert (base["read_count"], base["read_amount_total"]) == (3, 40_000 + (2 << 20))
    assert base["read_cumulative_latency_millis_dist"] == [1, 0, 2, 0, 0, 0, 0, 0]
    assert base["read_count_block_size_dist"] == [0, 0, 0, 2, 0, 0, 0, 1]
    assert base["read_latency_sizes_dist"][3] == [1, 0, 1, 0, 0, 0, 0, 0]
    assert (child["read_count"], child["read_errors"]) == (1, 1)
    assert child["read_latency_sizes_dist"][0] == [0, 0, 0, 0, 0, 0, 0, 1]
    # The base is served itself: its reads count for it alone.
    assert both["read_count"] == 4
    cache = nydus.blobcache(collected, "child")
    assert cache["underlying_files"] == ["/s/child.hxz", "/s/base.hxz"]
    assert (cache["entries_count"], cache["buffered_backend_size"]) == (1, 1 << 16)
    ahead = nydus.blobcache(collected)
    assert (ahead["prefetch_data_amount"], ahead["prefetch_requests_count"]) == (1 << 18, 1)
    assert (ahead["prefetch_unmerged_chunks"], ahead["prefetch_cumulative_time_millis"]) == (4, 10)
    assert ahead["prefetch_end_time_secs"] >= ahead["prefetch_begin_time_secs"] > 0


def test_a_parent_without_a_name_counts_for_its_child() -> None:
    metrics = example()
    base = metrics.find("base")
    assert base is not None
    metrics.withdraw(base)
    collected = metrics.collect()
    assert nydus.backend(collected, "child")["read_count"] == 4
    assert nydus.blobcache(collected)["entries_count"] == 4
    with pytest.raises(ControlError):
        nydus.fs(collected, "/base")


def test_pattern_and_latest() -> None:
    metrics = example()
    child = metrics.find("child")
    assert child is not None
    assert child.file is not None
    heat = child.file.heat
    for start in (0, 1 << 20, 5 << 20, 5 << 20):
        heat.note("disk", start, start + 65536)
    heat.note("memory", 100, 200)
    found = nydus.pattern(metrics.collect(heat=True), "/child")
    assert [(one["ino"], one["nr_read"]) for one in found] == [
        (1 << 48, 1), ((1 << 48) + 1, 1), ((1 << 48) + 5, 2), (2 << 48, 1),
    ]  # fmt: skip
    assert nydus.pattern(metrics.collect(heat=True), "child", top=1)[0]["offset"] == 5 << 20
    assert nydus.latest(heat.fresh(clear=True)) == [[1 << 48, (1 << 48) + 1], [(1 << 48) + 5], [2 << 48]]
    assert nydus.latest(heat.fresh(clear=False)) == []


def test_inflight_and_events() -> None:
    metrics = example()
    metrics.flights.begin("nbd", "read", "127.0.0.1:99", "base", "disk", 4096, 512)
    metrics.events.add("block at 65536 is damaged: bad \udc80 name", "base")
    collected = metrics.collect()
    check_all(collected, None)
    (one,) = nydus.inflight(collected)
    assert (one["inode"], one["opcode"], one["offset"], one["length"]) == (1, 15, 4096, 512)
    assert nydus.inflight(collected, 3_600_000) == []
    found = nydus.events(collected)
    assert (found["max_errors"], found["max_size"], found["total_errors"], found["errors_seen"]) == (500, 51200, 1, 1)
    date, dash, text = found["errors"][0].partition(" - ")
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert dash
    assert found["total_size"] == len(text.encode())
    assert nydus.events(collected, since=collected.events[0].time)["errors"] == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["nbd", "http"]), st.sampled_from(["read", "info", "open", "close", "list", "other"]),
            st.sampled_from(["", "disk", "memory"]), st.sampled_from(["ok", "failed", "refused", "aborted"]),
            st.integers(0, 1 << 40), st.floats(0, 1e6), st.integers(0, 1 << 40),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_whatever_was_counted_fits_the_clients(requests: list[tuple[str, str, str, str, int, float, int]]) -> None:
    metrics = example()
    for protocol, op, stream, *figures in requests:
        meter_of(metrics, "base", protocol, op, stream).add(*figures)
    check_all(metrics.collect(), None)
    check_all(metrics.collect(), "base")
