"""Whether the machine was at rest: the same small work on every core at once, timed between the measurements.

Time that others take from a core makes it longer on the clock, and so do a hypervisor that gives the core away and a
clock that slows down.  The load average tells of the minutes before, and of our own work too; the count of stolen time
comes in hundredths of a second and knows only of the hypervisor.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

__all__ = ["NOISE_LIMIT", "NOISY_SHARE", "Probe", "judged", "noisy"]

NOISE_LIMIT = 1.25
"""From here on a row is called too noisy.  At rest the work takes 1.0 to 1.1 times its least; beside one busy process
on two cores half as long again and more."""
NOISY_SHARE = 0.25
"""A run of which more rows are too noisy is so as a whole."""
ITERATIONS = 20_000
"""About 10 ms of a core, without the interpreter's lock."""


class Probe:
    """Takes the work's time; knows the least processor time that it took in this run."""

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._cores)
        self._least = math.inf
        self.slowdown()

    def slowdown(self) -> float:
        """How many times its least the work takes now on the slowest core, about 1 on a machine at rest."""
        took = list(self._pool.map(self._work, range(self._cores)))
        self._least = min(self._least, *(processor for _, processor in took))
        return max(clock for clock, _ in took) / self._least

    @staticmethod
    def _work(core: int) -> tuple[float, float]:
        began, used = time.perf_counter(), time.thread_time()
        hashlib.pbkdf2_hmac("sha256", b"noise", bytes([core]), ITERATIONS)
        return time.perf_counter() - began, time.thread_time() - used


def judged(slowdowns: Sequence[float]) -> float:
    """The noise of a row from the probes around its rounds: one disturbed round of several does not count."""
    return statistics.median(slowdowns)


def noisy(noises: Sequence[float]) -> bool:
    """Whether a run with rows of this noise says little."""
    return sum(noise > NOISE_LIMIT for noise in noises) > NOISY_SHARE * len(noises)
