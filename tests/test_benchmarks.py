"""What the benchmarks compute from what they measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.growth import Fit
from tests.benchmarks.noise import NOISE_LIMIT, Probe, judged, noisy
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.report import Row, remember, table

RATES = {"ours": [90.0, 120.0, 150.0], "slow": [10.0, 10.0, 10.0], "fast": [100.0, 100.0, 100.0]}


@pytest.mark.parametrize(
    ("unit", "against", "ratio", "least", "greatest"),
    [("reads/s", "fast", 1.2, 0.9, 1.5), ("ms", "slow", 10 / 120, 10 / 150, 10 / 90)],
)
def test_a_ratio_above_one_is_for_us_and_the_best_peer_counts(
    unit: str, against: str, ratio: float, least: float, greatest: float
) -> None:
    row = Row("work", unit, RATES, "ours", ("slow", "fast"), 1.0)
    assert row.against == against
    assert (row.ratio, min(row.ratios), max(row.ratios)) == pytest.approx((ratio, least, greatest))
    assert row.reached is (ratio >= 1)
    assert ("reached" if row.reached else "MISSED") in table([row])


def test_each_run_adds_a_line_for_each_row_to_the_history(tmp_path: Path) -> None:
    run = {"commit": "c0ffee", "dirty": False, "date": "2026-01-01T00:00:00+00:00", "python": "3.11.2", "cores": 2}
    row = Row("work", "reads/s", RATES, "ours", ("slow", "fast"), 1.3, 1.5)
    remember("nbd", [row, row], run, tmp_path)
    remember("nbd", [row], run, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == [
        {
            **run, "part": "nbd", "row": "work", "unit": "reads/s", "ours": 120, "peer": 100, "against": "fast",
            "ratio": 1.2, "least": 0.9, "greatest": 1.5, "rounds": 3, "goal": 1.3, "noise": 1.5,
        }
    ] * 3  # fmt: skip


@pytest.mark.parametrize(
    ("slowdowns", "said"),
    [([1.0, 1.1, 1.05], False), ([1.0, 3.0, 1.1], False), ([1.0, 1.6, 1.5], True), ([NOISE_LIMIT] * 3, False)],
)
def test_a_row_is_too_noisy_when_most_of_its_rounds_were(slowdowns: Sequence[float], said: bool) -> None:
    row = Row("work", "reads/s", RATES, "ours", ("fast",), 0, judged(slowdowns))
    assert row.too_noisy is said
    assert ("too noisy" in table([row])) is said


@pytest.mark.parametrize(("noises", "said"), [([], False), ([1.0, 1.0, 1.0, 2.0], False), ([1.0, 1.0, 2.0, 2.0], True)])
def test_a_run_is_too_noisy_when_more_than_a_quarter_of_its_rows_are(noises: Sequence[float], said: bool) -> None:
    assert noisy(noises) is said


def test_contenders_take_turns_in_an_order_that_changes() -> None:
    order: list[str] = []

    def contender(name: str, figure: float) -> float:
        order.append(name)
        return figure

    contenders = {"ours": lambda: contender("ours", 2.0), "peer": lambda: contender("peer", 1.0)}
    (row,) = Race("MB/s", contenders, (Pair("work", "ours", ("peer",), 2),)).run(Probe(), rounds=3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert row.ratios == [2, 2, 2] and row.reached and row.noise > 0


@pytest.mark.parametrize(
    ("r_squared", "exponent", "verdict"),
    [
        (0.9, -0.3, "flat"),
        (0.9, 0.1, "flat"),
        (0.9, 0.5, "linear"),
        (1, 1.1, "linear"),
        (1, 2, "STEEPER THAN LINEAR"),
        (0.1, 2, "no trend"),
    ],
)
def test_growth_has_a_name(r_squared: float, exponent: float, verdict: str) -> None:
    assert Fit(0, 1, r_squared, exponent).verdict == verdict
