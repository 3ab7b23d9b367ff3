"""Who uses a block that was loaded ahead neither waits nor reads for the next window."""

from __future__ import annotations

from collections.abc import Callable

from hexz.snapshot.readahead import FIRST_WINDOW, ReadAhead


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
    assert queued == [(2000, FIRST_WINDOW)]
    uses[0]()
    assert len(queued) == 1
    later[0]()
    assert queued[1] == (2000 + FIRST_WINDOW, 2 * FIRST_WINDOW)
