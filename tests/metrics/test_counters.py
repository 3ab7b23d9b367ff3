"""The counters themselves: nothing is lost between threads, cells and names, and buckets are where they say."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.metrics import Metrics
from hexz.metrics.errorlog import MAX_EVENT_BYTES, MAX_EVENTS, ErrorLog
from hexz.metrics.figures import OperationFigures
from hexz.metrics.files import MAX_STRETCHES, AheadCounts, Heat, ReadCounts
from hexz.metrics.histograms import LATENCY_BOUNDS, SIZE_BOUNDS, coarser, latency_bucket, size_bucket
from hexz.metrics.inflight import InflightRequests

BACKEND = (0.001, 0.02, 0.05, 0.1, 0.5, 1.0, 2.0)


@given(st.integers(0, (1 << 64) - 1))
def test_a_size_is_below_its_bound_and_no_other(size: int) -> None:
    assert size_bucket(size) == sum(size >= bound for bound in SIZE_BOUNDS)


@given(st.lists(st.floats(0, 3) | st.sampled_from(LATENCY_BOUNDS)))
def test_coarse_latencies_are_those_that_direct_counting_gives(durations: list[float]) -> None:
    fine = [0] * (len(LATENCY_BOUNDS) + 1)
    wanted = [0] * (len(BACKEND) + 1)
    for seconds in durations:
        fine[latency_bucket(seconds)] += 1
        wanted[sum(seconds > bound for bound in BACKEND)] += 1
    assert coarser(fine, BACKEND) == wanted


def figures(metrics: Metrics, name: str = "a") -> OperationFigures:
    (found,) = metrics.collect().snapshots[name].operations
    return found


@given(st.lists(st.lists(st.integers(0, 1 << 40) | st.just(4096), min_size=1), min_size=1), st.data())
def test_batches_count_as_their_requests_do_one_by_one(batches: list[list[int]], data: Any) -> None:
    metrics = Metrics()
    published = metrics.publish("a")
    batched, single = published.meter("nbd", "read").cell(), published.meter("nbd", "one").cell()
    for batch in batches:
        seconds = data.draw(st.sampled_from((1e-5, 1e-3, 0.25, 7.0)))
        for size in set(batch):
            batched.add(size, seconds, batch.count(size))
        for size in batch:
            single.add(size, seconds)
    if data.draw(st.booleans()):
        batched.close()
    one, other = metrics.collect().snapshots["a"].operations
    assert one[3:5] + one[6:] == other[3:5] + other[6:]
    assert one.seconds == pytest.approx(other.seconds)


def test_threads_lose_nothing_while_others_read() -> None:
    metrics = Metrics()
    published = metrics.publish("a")
    start = threading.Barrier(5)

    def work() -> None:
        start.wait()
        for _ in range(200):
            cell = published.meter("nbd", "read").cell()
            for _ in range(10):
                cell.add(4096, 0.0001)
                published.meter("nbd", "read").add("ok", 1, 0.1, 1)
            cell.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        now = figures(metrics).ok if metrics.collect().snapshots["a"].operations else 0
        assert now >= seen
        seen = now
    for thread in threads:
        thread.join()
    found = figures(metrics)
    assert (found.ok, found.missed, found.size) == (16000, 8000, 8000 * 4097)


def test_outcomes_and_what_had_to_wait() -> None:
    metrics = Metrics()
    meter = metrics.publish("a").meter("http", "read", "disk")
    for outcome, size, waited in (
        ("ok", 100, 0),
        ("ok", 100, 40),
        ("ok", 100, 100),
        ("aborted", 50, 0),
        ("failed", 0, 0),
    ):
        meter.add(outcome, size, 0.01, waited)
    found = figures(metrics)
    assert found.outcomes == {"ok": 3, "aborted": 1, "failed": 1}
    assert (found.size, found.partial, found.missed, found.bad) == (350, 1, 1, 2)


def test_a_withdrawn_name_takes_its_figures_away_and_a_new_one_begins_at_nothing() -> None:
    metrics = Metrics()
    old = metrics.publish("a")
    old.meter("nbd", "read").add("ok", 1, 0.1)
    fresh = metrics.publish("a")
    metrics.withdraw(old)
    assert metrics.collect().snapshots["a"].operations == []
    metrics.withdraw(fresh)
    old.meter("nbd", "read").add("ok", 1, 0.1)
    assert metrics.collect().snapshots == {}


def test_events_are_bounded_in_number_and_bytes() -> None:
    events = ErrorLog()
    for number in range(MAX_EVENTS + 10):
        events.add(f"error {number}", "a")
    kept = events.kept()
    assert (len(kept), kept[0].number, kept[-1].text, events.seen) == (MAX_EVENTS, 11, "error 509", 510)
    for _ in range(100):
        events.add("é" * 5000)
    assert sum(len(event.text.encode()) for event in events.kept()) <= MAX_EVENT_BYTES


def test_flights_end() -> None:
    flights = InflightRequests()
    first = flights.begin("nbd", "read", "1.2.3.4:5", "a", "disk", 512, 4096)
    second = flights.begin("http", "read", "unix")
    assert [(flight.number, flight.op, flight.offset) for flight in flights.now()] == [(1, "read", 512), (2, "read", 0)]
    assert all(flight.age >= 0 for flight in flights.now())
    flights.end(first)
    flights.end(first)
    flights.end(second)
    assert flights.now() == []


def test_reads_of_a_file() -> None:
    reads = ReadCounts()
    reads.add(100, 0.0001)
    reads.add(100_000, 0.3)
    reads.fail()
    found = reads.collect()
    assert (found.reads, found.errors, found.size) == (2, 1, 100_100)
    assert found.matrix[size_bucket(100)][latency_bucket(0.0001)] == 1
    assert found.matrix[size_bucket(100_000)][latency_bucket(0.3)] == 1


def test_read_ahead() -> None:
    ahead = AheadCounts()
    ahead.add(4, 1 << 20, 0.25)
    ahead.add(2, 1 << 10, 0.25)
    found = ahead.collect()
    assert found[:4] == (2, 6, (1 << 20) + 1024, 0.5)
    assert 0 < found.began < found.ended


@pytest.mark.parametrize("size", [1, 1 << 20, (5 << 20) + 7, 1 << 40, (1 << 62) + 1])
def test_heat_has_a_bounded_number_of_stretches(size: int) -> None:
    heat = Heat({"disk": size})
    heat.note("disk", size - 1, size)
    heat.note("disk", 0, 1)
    heat.note("disk", 0, 1)
    found = heat.collect()
    last = found[-1]
    assert found[0].offset == 0
    assert last.offset + last.length == size
    assert last.number < MAX_STRETCHES
    assert sum(one.loads for one in found) == 3
    assert heat.fresh(clear=True) == [(one.stream, one.number) for one in found]
    assert heat.fresh(clear=False) == []
