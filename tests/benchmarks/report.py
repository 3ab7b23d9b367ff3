"""Results as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One comparison: figures by contender, and the ratio of ours to `against`, with the ratio to reach.

    `at_most` says that the ratio is to stay below the goal and not above it.
    """

    work: str
    unit: str
    figures: dict[str, float]
    ratio: float
    goal: float
    against: str
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """The goal is met; a goal of 0 is only for information."""
        return not self.goal or (self.ratio <= self.goal if self.at_most else self.ratio >= self.goal)


def table(rows: Sequence[Row]) -> str:
    """The rows as lines of text."""
    lines = []
    for row in rows:
        figures = "  ".join(f"{name} {_short(value)}" for name, value in row.figures.items())
        goal = f"goal {'at most ' if row.at_most else ''}{row.goal:g}: {'reached' if row.reached else 'MISSED'}"
        lines.append(
            f"{row.work:<40} {row.ratio:6.2f} x {row.against:<28} {goal if row.goal else '':<24} {figures} {row.unit}"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def save(name: str, rows: Sequence[Row], folder: Path) -> None:
    """``NAME.json`` and ``NAME.png`` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    draw(name, rows, folder / f"{name}.png")


def draw(name: str, rows: Sequence[Row], path: Path) -> None:
    """Each ratio as a bar, its goal as a mark."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(rows)))
    places = range(len(rows))
    axes.barh(places, [row.ratio for row in rows], color=["#3b6fd4" if row.reached else "#d4653b" for row in rows])
    for place, row in zip(places, rows):
        if row.goal:
            axes.plot([row.goal, row.goal], [place - 0.42, place + 0.42], color="black", linewidth=2)
        axes.text(row.ratio, place, f" {row.ratio:.2f}", va="center", fontsize=8)
    axes.set_yticks(list(places), [f"{row.work}\nto {row.against}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ratio (black mark: goal)")
    axes.set_title(f"{name}: hexz-serve against others, side by side in one run")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
