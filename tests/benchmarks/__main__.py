"""``python -m tests.benchmarks [NAME...]``: measure, print, write JSON and pictures to build/bench."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from tests.benchmarks.report import Row, save, table

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("reader", "nbd", "http", "images", "s3")


def main() -> int:
    """Every comparison, or those named."""
    for name in sys.argv[1:] or NAMES:
        if importlib.util.find_spec(f"tests.benchmarks.{name}") is None:
            continue
        module = importlib.import_module(f"tests.benchmarks.{name}")
        rows: list[Row] = module.measure()
        print(f"\n{name}\n{table(rows)}", flush=True)
        save(name, rows, ROOT / "build" / "bench")
    return 0


if __name__ == "__main__":
    sys.exit(main())
