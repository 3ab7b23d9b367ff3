"""Who is measured beside whom: all take their turn in every round, within seconds of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.benchmarks.noise import Probe, judged
from tests.benchmarks.report import Row

__all__ = ["Pair", "Race", "Work"]

ROUNDS = 5


class Work(NamedTuple):
    """What a client does with a URL: its figure in `unit`, and the ratio to reach."""

    name: str
    unit: str
    goal: float
    client: Callable[[str], float]


class Pair(NamedTuple):
    """One row of a race: whose figure is compared, with the best of which others, and the ratio to reach.

    A goal of 0 is only for information.
    """

    work: str
    ours: str
    peers: tuple[str, ...]
    goal: float = 0


class Race(NamedTuple):
    """Contenders by name, each a function that does the work once and returns a figure in `unit`."""

    unit: str
    contenders: Mapping[str, Callable[[], float]]
    pairs: tuple[Pair, ...]
    rounds: int = ROUNDS

    def run(self, probe: Probe, rounds: int | None = None) -> list[Row]:
        """Every round; the order turns round each time, so that nobody always follows the same one."""
        samples: dict[str, list[float]] = {name: [] for name in self.contenders}
        slowdowns = [probe.slowdown()]
        for turn in range(rounds or self.rounds):
            for name in list(samples)[:: -1 if turn % 2 else 1]:
                samples[name].append(self.contenders[name]())
            slowdowns.append(probe.slowdown())
        noise = judged(slowdowns)
        return [Row(pair.work, self.unit, samples, pair.ours, pair.peers, pair.goal, noise) for pair in self.pairs]
