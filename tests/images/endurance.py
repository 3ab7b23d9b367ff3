"""Kills and failing disks under a writer of overlays, by the hundred; run as a program, it prints what was done.

The status is 0 when no flushed byte was lost, no block was half written, and the
overlay recovered from every error; else it ends with the first that was not so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.images.crash_writer import every_call, random_kills
from tests.images.faults import KINDS


def main() -> None:
    """All of it, about as long as `--kills` and `--scripts` say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="at random moments")
    parser.add_argument(
        "--scripts", type=int, default=4, help="writers that meet trouble at each of their system calls"
    )
    parser.add_argument("--steps", type=int, default=30, help="operations of each of them")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    began = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(random_kills(Path(folder), options.kills, options.seed), flush=True)
    for seed in range(options.seed, options.seed + options.scripts):
        for kind in KINDS:
            for lasting in (1,) if kind in ("kill", "torn") else (1, 2, 9, 40):
                with tempfile.TemporaryDirectory() as folder:
                    print(every_call(Path(folder), kind, seed, options.steps, lasting), flush=True)
    print(f"no flushed byte lost, no block half written; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
