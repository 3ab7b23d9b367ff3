"""Who uses a block that was loaded ahead neither waits nor reads for the next window."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexz.snapshot.readahead import FAR, NEAR, ReadAhead


def test_the_next_window_is_queued_by_another_thread() -> None:
    queued: list[tuple[int, int]] = []
    uses: list[Callable[[], None]] = []
    later: list[Callable[[], None]] = []

    def queue(position: int, length: int, use: Callable[[], None]) -> int:
        queued.append((position, length))
        uses.append(use)
        return position + length

    ahead = ReadAhead(queue, later.append, 64 << 20)
    ahead.missed(0, 1000)
    ahead.missed(1000, 2000)
    assert queued == [(2000, NEAR.first)]
    uses[0]()
    assert len(queued) == 1
    later[0]()
    assert queued[1] == (2000 + NEAR.first, 2 * NEAR.first)


class Queue:
    """What was queued: where, how much, and what runs when it is used."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []
        self.uses: list[Callable[[], None]] = []

    def __call__(self, position: int, length: int, use: Callable[[], None]) -> int:
        self.windows.append((position, length))
        self.uses.append(use)
        return position + length


def far(reach: int = 0) -> tuple[Queue, ReadAhead]:
    queue = Queue()
    return queue, ReadAhead(queue, lambda action: action(), 64 << 20, FAR, lambda: reach)


def test_short_steps_far_away_have_to_prove_themselves() -> None:
    queue, ahead = far()
    for start in range(0, FAR.steps * 4096, 4096):  # neighbours by accident
        ahead.missed(start, start + 4096)
    assert not queue.windows
    ahead.missed(FAR.steps * 4096, (FAR.steps + 1) * 4096)
    begin, half = (FAR.steps + 1) * 4096, FAR.first // 2
    assert queue.windows == [(begin, half), (begin + half, half)]
    queue.uses[0]()
    assert len(queue.windows) == 2
    queue.uses[1]()
    assert queue.windows[2:] == [(begin + 2 * half, half * FAR.growth)]


@pytest.mark.parametrize(
    ("reach", "first", "second"),
    [(0, FAR.first, FAR.first * FAR.growth), (16 << 20, 8 << 20, 32 << 20), (1 << 30, 64 << 20, 64 << 20)],
)
def test_two_long_steps_are_enough_and_windows_are_as_large_as_the_way(reach: int, first: int, second: int) -> None:
    queue, ahead = far(reach)
    ahead.missed(0, FAR.run)
    assert not queue.windows
    ahead.missed(FAR.run, 2 * FAR.run)
    queue.uses[0]()
    assert queue.windows == [(2 * FAR.run, first), (2 * FAR.run + first, second)]


@pytest.mark.parametrize("others", [FAR.sequences - 1, FAR.sequences])
def test_a_neighbour_met_again_after_many_others_begins_anew(others: int) -> None:
    queue, ahead = far()
    ahead.missed(0, FAR.run)
    for number in range(1, others + 1):
        ahead.missed(number << 30, (number << 30) + 4096)
    ahead.missed(FAR.run, 2 * FAR.run)
    assert bool(queue.windows) == (others < FAR.sequences)
