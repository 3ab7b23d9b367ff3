"""``python -m tests.benchmarks [PART...]``: measure, print; JSON, pictures and the history are in build/bench."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.files import Files
from tests.benchmarks.noise import NOISE_LIMIT, Probe, noisy
from tests.benchmarks.report import Row, circumstances, remember, save, table

PARTS = ("original", "nbd", "cold", "http", "reader", "images", "s3", "daemon")
MORE = ("cores", "remote")
"""Only when they are named."""
NAMES = ", ".join((*PARTS, *MORE))


def main(arguments: Sequence[str]) -> int:
    """Every part, or those named."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {NAMES}; without one, all but the last two")
    parser.add_argument("--rounds", type=int, help="instead of each row's own")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their name")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - {*PARTS, *MORE}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {NAMES}")
    run, probe, began = circumstances(), Probe(), time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        for part in asked.parts or PARTS:
            rows += measure(part, files, probe, asked.rounds, asked.only, run)
    missed = sum(not row.reached for row in rows)
    print(f"\n{len(rows)} rows, {missed} goals missed; {time.monotonic() - began:.0f} s")
    if noisy([row.noise for row in rows]):
        print(f"too noisy: other work slowed more than a quarter of the rows {NOISE_LIMIT} times or more; run it again")
    return 0


def measure(part: str, files: Files, probe: Probe, rounds: int | None, only: str, run: dict[str, object]) -> list[Row]:
    """The rows of a part, each printed and remembered as soon as it is there."""
    print(f"\n{part}", flush=True)
    began = time.monotonic()
    rows: list[Row] = []
    for race in importlib.import_module(f"tests.benchmarks.{part}").races(files):
        if any(only in pair.work for pair in race.pairs):
            measured = race.run(probe, rounds)
            print(table(measured), flush=True)
            remember(part, measured, run)
            rows += measured
    if rows and not only:
        save(part, rows)
    print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
