"""Lanes: what waits for one server shares threads and budgets with nothing else, so that it holds nothing else up."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import NamedTuple

from hexz.cache import ByteBudget, Workers

__all__ = ["Lane", "Lanes"]

FAR_WORKERS = 4
"""Threads of a server's lane that decompress ahead: most of the time they wait for it."""


class Lane(NamedTuple):
    """The threads that decompress ahead, and the bytes that may be decompressed at once.

    `scouts` find out what is to be decompressed next: behind the work of `workers` that would come too late where
    that waits for a server.
    """

    workers: Workers
    decoding: ByteBudget
    scouts: Workers


class Lanes:
    """The lane of local files, and one for each server."""

    def __init__(self, near: Lane, budget: int, far: bool) -> None:
        """`budget` is what may be decompressed at once in each, bytes; without `far` nothing is loaded ahead."""
        self._near = near
        self._budget = budget
        self._far = FAR_WORKERS if far else 0
        self._lock = threading.Lock()
        self._lanes: dict[Hashable, Lane] = {}  # guarded by _lock

    def of(self, lane: Hashable) -> Lane:
        """The lane of a `Storage.lane`."""
        if lane is None:
            return self._near
        with self._lock:
            found = self._lanes.get(lane)
            if found is None:
                found = Lane(Workers(self._far), ByteBudget(self._budget), Workers(min(self._far, 1)))
                self._lanes[lane] = found
            return found

    def stop(self) -> None:
        """Wait until what was queued is done, in all lanes."""
        with self._lock:
            lanes = [self._near, *self._lanes.values()]
        for lane in lanes:
            lane.scouts.stop()
            lane.workers.stop()
