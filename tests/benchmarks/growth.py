"""``python -m tests.benchmarks.growth [NAME...]``: what time and memory do as a piece of work grows.

Each quantity is measured at sizes that grow by a factor, as the median of some rounds.  A straight line by least
squares gives its slope and how well it fits (R²).  The exponent is the slope of a line through the logarithms of the
three largest sizes: 0 is flat, 1 grows as the work does, 2 with its square.  A picture of each, and all figures as
JSON, are in build/bench.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from hexz.tools.pack import pack
from tests.benchmarks.clients import run
from tests.benchmarks.daemon import connected, raise_limit, resident
from tests.benchmarks.files import BLOCK_BYTES, Files, sparse_snapshot
from tests.benchmarks.reader import opened
from tests.benchmarks.report import OUT, short
from tests.peers import Server, fetch

ROUNDS = 3
GIB = 1 << 30
STREAM_BYTES = 16 << 20
MORE = 15
"""Connections whose wait is measured, one after the other."""
FLAT, LINEAR = 0.15, 1.15
"""The largest exponents that are called so: a measured one is never exact."""
TREND = 0.5
"""Below this R² the sizes say nothing of the figures; what grows with any power of the size has more."""

Figures = dict[str, float]
"""By what is measured, with its unit after a comma."""
Measure = Callable[[Files, int], Figures]


class Growth(NamedTuple):
    """What grows, counted in `each`, over which sizes, and what is measured at one."""

    each: str
    sizes: Sequence[int]
    measure: Measure


class Fit(NamedTuple):
    """A straight line through all sizes, and the exponent at the largest ones."""

    start: float
    slope: float
    r_squared: float
    exponent: float

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.r_squared < TREND:
            return "no trend"
        return "flat" if self.exponent <= FLAT else "linear" if self.exponent <= LINEAR else "STEEPER THAN LINEAR"


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """Least squares over three sizes or more."""
    import numpy as np

    slope, start = np.polyfit(sizes, values, 1)
    left = np.asarray(values) - (start + slope * np.asarray(sizes))
    spread = np.asarray(values) - np.mean(values)
    whole = float(spread @ spread)
    exponent = np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(values[-3:], np.finfo(float).tiny)), 1)[0]
    return Fit(float(start), float(slope), 1 - float(left @ left) / whole if whole else 1.0, float(exponent))


def of_size(files: Files, size: int) -> Figures:
    """Of a snapshot: opening it, reading its end."""
    path = files.folder / f"sparse-{size}.hxz"
    if not path.exists():
        sparse_snapshot(path, size * GIB)
    return _named(opened(path))


def of_parents(files: Files, count: int) -> Figures:
    """The same of a thin snapshot whose end only the first of a chain of parents has."""
    path = _chain(files.folder / "chain", count)
    return _named(opened(path))


def _chain(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{count}.hxz"
    if not path.exists():
        raw = folder / f"{count}.raw"
        blocks = [bytes([number % 251 + 1]) * BLOCK_BYTES for number in range(128)]
        blocks[:count] = [bytes([count, number]) * (BLOCK_BYTES // 2) for number in range(count)]
        raw.write_bytes(b"".join(blocks))
        parent = str(_chain(folder, count - 1)) if count else None
        pack(str(raw), str(path), parent=parent, block_size=BLOCK_BYTES)
    return path


def _named(figures: tuple[float, float, float]) -> Figures:
    return dict(zip(("open, ms", "first read, ms", "memory, MiB"), figures))


def of_snapshots(files: Files, count: int) -> Figures:
    """A daemon with a folder of so many."""
    folder = files.folder / f"snapshots-{count}"
    if not folder.exists():
        raw, packed = files.folder / "small.raw", files.folder / "small.hxz"
        raw.write_bytes(bytes(range(256)) * (BLOCK_BYTES // 256))
        pack(str(raw), str(packed))
        folder.mkdir()
        for number in range(count):
            shutil.copyfile(packed, folder / f"s{number:05}.hxz")
    raise_limit(count)
    began = time.perf_counter()
    with Server(folder, "--http-port", 0, "--log-level", "error") as server:
        ready = time.perf_counter()
        status, body = fetch(f"{server.http}/snapshots/s{count - 1:05}/disk")
        read = time.perf_counter()
        if status != 200 or len(body) != BLOCK_BYTES:
            raise RuntimeError(f"the last snapshot was not served: {status}")
        memory = resident(server.process.pid)
    return {
        "start, ms": (ready - began) * 1e3,
        "first read, ms": (read - ready) * 1e3,
        "memory, MiB": memory / (1 << 20),
    }


def of_connections(files: Files, count: int) -> Figures:
    """NBD connections that read once and wait, and one more that reads among them."""
    raise_limit(count)
    options = ["--nbd-port", 0, "--max-connections", 2 * count + 16, "--log-level", "error"]
    with Server(*options, files.lz4) as server, ExitStack() as stack:
        stack.enter_context(connected(server.nbd_port))
        before = resident(server.process.pid)
        began = time.perf_counter()
        for _ in range(count):
            stack.enter_context(connected(server.nbd_port))
        all_there = time.perf_counter()
        memory = resident(server.process.pid) - before
        waits = []
        for _ in range(MORE):
            asked = time.perf_counter()
            connected(server.nbd_port).close()
            waits.append(time.perf_counter() - asked)
    return {
        "connect and read once, all, ms": (all_there - began) * 1e3,
        "one more, ms": statistics.median(waits) * 1e3,
        "memory more, MiB": memory / (1 << 20),
    }


def of_streams(files: Files, count: int) -> Figures:
    """Whole GETs at once, each of a snapshot of its own that is not cached."""
    folder = files.folder / f"streams-{count}"
    if not folder.exists():
        folder.mkdir()
        raw, packed = files.folder / "stream.raw", files.folder / "stream.hxz"
        with files.even.open("rb") as even:
            raw.write_bytes(even.read(STREAM_BYTES))
        pack(str(raw), str(packed), block_size=BLOCK_BYTES)
        for number in range(count):
            shutil.copyfile(packed, folder / f"s{number}.hxz")
    with Server(folder, "--http-port", 0, "--cache-size", "64M", "--log-level", "error") as server:
        command: list[object] = ["curl", "-sSf", "--parallel", "--parallel-immediate", "--parallel-max", count]
        command += ["-w", "%{size_download} %{time_starttransfer} %{time_total}\n"]
        for number in range(count):
            command += ["-o", "/dev/null", f"{server.http}/snapshots/s{number}/disk"]
        lines = [tuple(map(float, line.split())) for line in run(*command).splitlines()]
        memory = resident(server.process.pid)
    if [line[0] for line in lines] != [STREAM_BYTES] * count:
        raise RuntimeError("not every stream came whole")
    return {
        "all of them, ms": max(line[2] for line in lines) * 1e3,
        "first byte of the last, ms": max(line[1] for line in lines) * 1e3,
        "memory, MiB": memory / (1 << 20),
    }


GROWTHS = {
    "size": Growth("GiB", [4**step for step in range(8)], of_size),
    "snapshots": Growth("snapshot", [1, 10, 100, 1000, 3000, 10_000], of_snapshots),
    # A chain of 64 is the longest that is opened, and the last one has 63 parents.
    "parents": Growth("parent", [1, 2, 4, 8, 16, 32, 63], of_parents),
    "connections": Growth("connection", [1, 10, 100, 500, 1000, 2000, 4000], of_connections),
    "streams": Growth("stream", [1, 2, 4, 8, 16, 32, 64], of_streams),
}


def draw(name: str, growth: Growth, series: dict[str, list[float]], fits: dict[str, Fit], path: Path) -> None:
    """A panel for each quantity, both axes by factors, the straight line as dashes."""
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(series), figsize=(5 * len(series), 4))
    for axes, (quantity, values) in zip(np.atleast_1d(panels), series.items()):
        line = fits[quantity]
        axes.loglog(growth.sizes, values, "o-", color="#3b6fd4")
        dense = np.geomspace(growth.sizes[0], growth.sizes[-1], 100)
        axes.loglog(dense, np.maximum(line.start + line.slope * dense, min(values) / 10), "--", color="#888888")
        axes.set_ylim(min(values) / 3, max(values) * 3)
        axes.set_xlabel(f"{growth.each}s" if growth.each != "GiB" else growth.each)
        axes.set_title(f"{quantity}: {line.verdict}\n{line.slope:.3g} each, R² {line.r_squared:.2f}", fontsize=9)
    figure.suptitle(f"cost as work grows: {name}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measure(name: str, files: Files, rounds: int, most: int | None) -> dict[str, object]:
    """One growth: printed, drawn, and returned for the JSON file."""
    growth = GROWTHS[name]
    if most is not None:
        growth = growth._replace(sizes=[size for size in growth.sizes if size <= most])
    series: dict[str, list[float]] = {}
    for size in growth.sizes:
        samples = [growth.measure(files, size) for _ in range(rounds)]
        for quantity in samples[0]:
            series.setdefault(quantity, []).append(statistics.median(sample[quantity] for sample in samples))
    fits = {quantity: fit(growth.sizes, values) for quantity, values in series.items()}
    print(f"\n{name}, {growth.sizes[0]} to {growth.sizes[-1]:,}", flush=True)
    for quantity, line in fits.items():
        figures = " ".join(map(short, series[quantity]))
        straight = f"{line.start:.3g} {line.slope:+.3g} per {growth.each}, R² {line.r_squared:.2f}"
        print(
            f"  {quantity:<32} {line.verdict:<8} exponent {line.exponent:5.2f}   {straight:<40} {figures}", flush=True
        )
    OUT.mkdir(parents=True, exist_ok=True)
    draw(name, growth, series, fits, OUT / f"growth-{name}.png")
    return {"sizes": list(growth.sizes), "series": series, "fits": {key: line._asdict() for key, line in fits.items()}}


def main() -> int:
    """Every growth, or those named."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GROWTHS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--most", type=int, help="no larger sizes than this")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(GROWTHS):
        parser.error(f"no such growth: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        results = {name: measure(name, files, asked.rounds, asked.most) for name in asked.names or GROWTHS}
    (OUT / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
