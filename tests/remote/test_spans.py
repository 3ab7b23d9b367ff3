"""The spans of a file against a model, and what is fetched together."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from hexz.storage.remote.speculation import LARGEST_GAP, MOST_WASTE, joined
from hexz.storage.remote.table import MOST_SPENT, FetchedSpan, Memory, SpanState, SpanTable

SIZE = 64
BUDGET = 24


class Step(NamedTuple):
    """Something done to the table, at a place."""

    what: str
    start: int
    length: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["add", "begin", "done", "fail", "use", "drop queued", "clear"]),
        st.integers(0, SIZE - 1),
        st.integers(1, 12),
    ),
    max_size=60,
)


@given(STEPS)
def test_a_table_against_a_model(steps: list[Step]) -> None:
    memory = Memory(BUDGET)
    table = SpanTable(memory)
    owner: dict[int, FetchedSpan] = {}  # by position
    known: list[FetchedSpan] = []
    for step in steps:
        found = table.at(step.start)
        if step.what == "add":
            for first, last in table.gaps(step.start, min(step.start + step.length, SIZE)):
                span = table.add(first, last, ahead=True)
                known.append(span)
                owner.update(dict.fromkeys(range(first, last), span))
        elif step.what == "begin" and found is not None:
            queued = found.state is SpanState.QUEUED
            assert table.begin(found) == queued and not table.begin(found)
        elif step.what == "done" and found is not None and found.state is SpanState.RUNNING:
            table.done(found, memoryview(bytes(found.end - found.start)))
        elif step.what == "fail" and found is not None and found.state is not SpanState.DONE:
            table.failed(found)
        elif step.what == "use" and found is not None and found.state is SpanState.DONE:
            table.used(found, step.length)
        elif step.what == "drop queued":
            table.drop_queued()
        elif step.what == "clear":
            table.clear()
        # What went by itself made room, was used, or failed; nothing that is on its way goes.
        for place in [place for place, span in owner.items() if table.at(place) is not span]:
            assert owner[place].state in (SpanState.DONE, SpanState.FAILED)
            del owner[place]
        check(table, owner)
    assert all(span.data is not None for span in known if span.state is SpanState.DONE), "who holds one still has it"


def check(table: SpanTable, owner: dict[int, FetchedSpan]) -> None:
    """The table says of every position what the model says."""
    for place in range(SIZE):
        assert table.at(place) is owner.get(place)
    gaps = [place for place in range(SIZE) if place not in owner]
    assert [place for first, last in table.gaps(0, SIZE) for place in range(first, last)] == gaps
    spans = set(owner.values())
    assert table.queued_bytes == sum(one.end - one.start for one in spans if one.state is SpanState.QUEUED)
    done = [one.end - one.start for one in spans if one.state is SpanState.DONE]
    assert table.memory.held == sum(done) and (sum(done) <= BUDGET or len(done) == 1)
    for place in gaps:
        low, high = table.free(place, 0, SIZE)
        assert low <= place < high and not any(one in owner for one in range(low, high))
        assert (low == 0 or low - 1 in owner) and (high == SIZE or high in owner)


def test_what_was_used_goes_soon_and_what_lasts_stays() -> None:
    table = SpanTable(Memory(64 << 20))
    length = 1 << 20
    data = memoryview(bytes(length))
    spans = [table.add(n * length, (n + 1) * length, ahead=True) for n in range(12)]
    spans[0].lasting = True
    for span in spans:
        table.begin(span)
        table.done(span, data)
        table.used(span, length)
    kept = [span for span in spans if table.at(span.start) is span]
    assert spans[0] is kept[0] and sum(span.end - span.start for span in kept[1:]) == MOST_SPENT
    table.used(kept[1], length)  # a reader that was slower
    assert table.at(kept[1].start) is kept[1]


# What is fetched together

RANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 300)).map(lambda one: (one[0], sum(one))), max_size=30)


def positions(ranges: list[tuple[int, int]]) -> set[int]:
    return {place for first, last in ranges for place in range(first, last)}


@given(RANGES, st.integers(1, 2000))
@example([(at, at + 100) for at in range(0, 2000, 200)], 10_000)
def test_neighbours_are_joined(ranges: list[tuple[int, int]], most: int) -> None:
    pieces = joined(ranges, most)
    wanted, got = positions(ranges), positions(pieces)
    assert wanted <= got and len(got) == sum(last - first for first, last in pieces)
    assert all(0 < last - first <= most for first, last in pieces) and pieces == sorted(pieces)
    assert len(got - wanted) <= MOST_WASTE * len(wanted)
    assert all(first in wanted and last - 1 in wanted for first, last in pieces)


def test_the_smallest_gaps_are_bridged_and_large_ones_never() -> None:
    assert joined([(0, 100), (110, 200), (500, 600)], 1000) == [(0, 200), (500, 600)]
    far = LARGEST_GAP + 1
    assert joined([(0, 100 * far), (101 * far, 102 * far)], 1000 * far) == [(0, 100 * far), (101 * far, 102 * far)]
    assert joined([], 10) == [] and joined([(5, 5)], 10) == []
    assert joined([(0, 25)], 10) == [(0, 10), (10, 20), (20, 25)]
