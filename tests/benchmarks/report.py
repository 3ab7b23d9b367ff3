"""Results as a table, as JSON, as a picture, and as lines of a history."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.noise import NOISE_LIMIT

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "bench"
LESS_IS_BETTER = {"s", "ms", "KiB", "MiB", "MB", "round trips"}
"""Units; of all others, which are rates, more is better."""


class Row(NamedTuple):
    """One comparison: the figures of every contender by round, ours, and those of whom the best counts.

    A ratio above 1 is for us, whichever way the unit goes.  A goal of 0 is only for information.
    """

    work: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    ours: str
    peers: tuple[str, ...]
    goal: float = 0
    noise: float = 1

    def median(self, name: str) -> float:
        """Of one contender."""
        return statistics.median(self.samples[name])

    @property
    def against(self) -> str:
        """The best of the peers."""
        return (min if self.unit in LESS_IS_BETTER else max)(self.peers, key=self.median)

    @property
    def ratios(self) -> list[float]:
        """Of each round."""
        pairs = zip(self.samples[self.ours], self.samples[self.against])
        return [theirs / ours if self.unit in LESS_IS_BETTER else ours / theirs for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool:
        """The goal, if there is one."""
        return not self.goal or self.ratio >= self.goal

    @property
    def too_noisy(self) -> bool:
        """The machine did other things meanwhile."""
        return self.noise > NOISE_LIMIT


def table(rows: Sequence[Row]) -> str:
    """The rows as lines of text."""
    lines = []
    for row in rows:
        figures = f"{short(row.median(row.ours))} to {short(row.median(row.against))} {row.unit} of {row.against}"
        spread = f"{row.ratio:5.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        goal = f"goal {row.goal:g}: {'reached' if row.reached else 'MISSED'}" if row.goal else ""
        noise = f"too noisy ({row.noise:.2f})" if row.too_noisy else ""
        lines.append(f"{row.work:<46} {spread:<22} {goal:<19} {figures:<50} {noise}".rstrip())
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def circumstances() -> dict[str, object]:
    """What a line of the history needs to know of the run."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(changes),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def history_line(part: str, row: Row, run: Mapping[str, object]) -> str:
    """A row as one line of JSON."""
    measured = {
        "part": part,
        "row": row.work,
        "unit": row.unit,
        "ours": row.median(row.ours),
        "peer": row.median(row.against),
        "against": row.against,
        "ratio": row.ratio,
        "least": min(row.ratios),
        "greatest": max(row.ratios),
        "rounds": len(row.ratios),
        "goal": row.goal,
        "noise": row.noise,
    }
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in measured.items()}
    return json.dumps({**run, **rounded})


def remember(part: str, rows: Sequence[Row], run: Mapping[str, object], folder: Path = OUT) -> None:
    """Append a line for each row to ``history.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "history.jsonl").open("a") as file:
        file.writelines(f"{history_line(part, row, run)}\n" for row in rows)


def save(name: str, rows: Sequence[Row], folder: Path = OUT) -> None:
    """``NAME.json`` and ``NAME.png`` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    draw(name, rows, folder / f"{name}.png")


def draw(name: str, rows: Sequence[Row], path: Path) -> None:
    """Each ratio as a bar with its spread, its goal as a mark."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(rows)))
    places = range(len(rows))
    spread = [
        [max(row.ratio - min(row.ratios), 0) for row in rows],
        [max(max(row.ratios) - row.ratio, 0) for row in rows],
    ]
    colors = ["#3b6fd4" if row.reached else "#d4653b" for row in rows]
    axes.barh(places, [row.ratio for row in rows], color=colors, xerr=spread, ecolor="#888888")
    for place, row in zip(places, rows):
        if row.goal:
            axes.plot([row.goal, row.goal], [place - 0.42, place + 0.42], color="black", linewidth=2)
        axes.text(max(row.ratios), place, f" {row.ratio:.2f}", va="center", fontsize=8)
    axes.set_yticks(list(places), [f"{row.work}\nto {row.against}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ratio, least to greatest of the rounds (black mark: goal)")
    axes.set_title(f"{name}: hexz-serve against others, side by side in one run")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
