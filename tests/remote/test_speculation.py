"""How much comes along with what is read of a server, and what is known of the way to it."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.storage.interface import Around
from hexz.storage.remote.server import WINDOW_S, Measured
from hexz.storage.remote.speculation import (
    BRIDGE,
    FREE,
    LISTED_WASTE,
    MOST_CREDIT,
    NEAR,
    REQUEST_S,
    Speculation,
    joined,
    widened,
)

MOST = 1 << 20
START, STOP = 1 << 22, (1 << 22) + 4096
FAST = 1e9
PIECES = st.lists(st.integers(1, 1 << 17), max_size=8)


def far(trip: float = 1.0, speed: float = FAST, share: float = 0.4) -> Speculation:
    measured = Measured()
    measured.round_trip_s, measured.bytes_per_s = trip, speed
    return Speculation(share, measured)


def around(before: list[int], behind: list[int], met_before: bool = False, met_behind: bool = False) -> Around:
    """Neighbours of these lengths, the nearest first."""
    return Around(
        [START - at for at in accumulate(before)], [STOP + at for at in accumulate(behind)], met_before, met_behind
    )


@given(
    PIECES, PIECES, st.booleans(), st.booleans(), st.integers(0, 1 << 20), st.integers(0, 1 << 20),
    st.integers(0, 1 << 24), st.integers(0, 1 << 24), st.integers(0, 1 << 24), st.sampled_from([0.0, 0.4]),
    st.floats(0, 0.1), st.floats(1, 1e9), st.integers(0, 20),
)  # fmt: skip
def test_whole_neighbours_come_along_within_all_bounds(
    before: list[int], behind: list[int], met_before: bool, met_behind: bool, below: int, above: int,
    fetched: int, used: int, hits: int, share: float, trip: float, speed: float, in_flight: int,
) -> None:  # fmt: skip
    speculation = far(trip, speed, share)
    speculation.fetched, speculation.used, speculation.hits = fetched, used, hits
    measured = Measured()
    measured.round_trip_s, measured.bytes_per_s, measured.in_flight = trip, speed, in_flight
    speculation._measured = measured
    beside = around(before, behind, met_before, met_behind)
    room = speculation.room()
    first, last = widened(START, STOP, beside, START - below, STOP + above, room)
    assert START - below <= first <= START and STOP <= last <= STOP + above
    assert first in (START, *beside.before) and last in (STOP, *beside.behind)
    more = last - first - (STOP - START)
    assert more <= max(0, room)
    assert room <= max(0, share * used + min(FREE + hits, MOST_CREDIT) - max(0, fetched - used))
    assert room <= (trip + REQUEST_S) * speed / max(in_flight, 1)
    assert share or room == 0


@pytest.mark.parametrize(
    ("pieces", "met", "taken"),
    [(1, False, NEAR), (5, False, NEAR), (5, True, 5), (BRIDGE, True, BRIDGE), (BRIDGE + 1, True, NEAR), (0, True, 0)],
)
def test_one_neighbour_comes_along_and_all_up_to_what_was_read(pieces: int, met: bool, taken: int) -> None:
    lengths = [4096] * pieces
    first, last = widened(START, STOP, around(lengths, [], met_before=met), 0, 1 << 30, MOST)
    assert (first, last) == (START - 4096 * taken, STOP)
    first, last = widened(START, STOP, around([], lengths, met_behind=met), 0, 1 << 30, MOST)
    assert (first, last) == (START, STOP + 4096 * taken)


def test_a_reader_that_uses_nothing_of_it_gets_no_more() -> None:
    speculation = far()
    assert speculation.room() == FREE
    speculation.fetched = FREE
    assert speculation.room() == 0
    speculation.hits = 4096  # what came along and was used opens the account again
    assert speculation.room() == 4096
    speculation.used = FREE
    assert speculation.room() > FREE


@pytest.mark.parametrize(("size", "now"), [(1, 100.0), (255 << 10, 100.0), (1, 0.0)])
def test_short_answers_do_not_say_how_fast_a_server_is(size: int, now: float) -> None:
    measured = Measured()
    measured.note(now, now + 0.5, now + 0.5001, size)
    assert (measured.round_trip_s, measured.bytes_per_s) == (0.5, 50e6)
    measured.note(now + 1, now + 1.1, now + 1.2, 1 << 20)
    assert measured.round_trip_s == pytest.approx(0.1) and measured.bytes_per_s < 50e6


def test_the_shortest_round_trip_is_one_of_late() -> None:
    measured = Measured()
    measured.note(100.0, 100.1, 100.1, 1)
    for at in range(1, int(WINDOW_S)):  # load makes answers late, and the way no longer
        measured.note(100.0 + at, 100.5 + at, 100.5 + at, 1)
    assert measured.round_trip_s == pytest.approx(0.1)
    for at in range(int(WINDOW_S), int(3 * WINDOW_S)):
        measured.note(100.0 + at, 100.5 + at, 100.5 + at, 1)
    assert measured.round_trip_s == pytest.approx(0.5)


def test_a_list_fetches_little_between_what_it_names() -> None:
    ranges = [(at, at + 100) for at in range(0, 4000, 120)]  # a fifth lies between
    assert joined(ranges, MOST) == [(0, 3960 + 100)]
    pieces = joined(ranges, MOST, LISTED_WASTE)
    listed, fetched = (sum(last - first for first, last in spans) for spans in (ranges, pieces))
    assert 1 < len(pieces) < len(ranges) and listed < fetched <= (1 + LISTED_WASTE) * listed
