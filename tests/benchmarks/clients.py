"""The programs that measure: what each reaches with a URL."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.peers import PACKAGES

__all__ = [
    "copied", "fetched", "fetched_in_ranges", "program", "random_reads", "reads_of_blocks", "run", "sequential_reads",
    "wrk",
]  # fmt: skip

FIO_MS = 500
WRK_S = 1
"""Of each measurement that lasts as long as one wants; wrk knows whole seconds only."""
OFFSETS = 4096
"""Ranges that wrk asks for again and again."""

SCRIPT = """
local asked, number = {{}}, 0
init = function(args)
  for offset in io.lines("{offsets}") do
    local headers = {{
      Host = wrk.headers["Host"],
      Range = string.format("bytes=%d-%d", offset, offset + {length} - 1),
    }}
    asked[#asked + 1] = wrk.format("GET", nil, headers)
  end
end
request = function()
  number = number % #asked + 1
  return asked[number]
end
"""


def program(name: str) -> str:
    """Where it is.  Raises: RuntimeError with the Debian package that has it."""
    path = shutil.which(name) or shutil.which(Path(sys.executable).with_name(name))
    if path is None:
        raise RuntimeError(f"{name} is missing: install the Debian package {PACKAGES.get(name, name)}")
    return path


def run(*command: object) -> str:
    """The output.  Raises: RuntimeError with the errors of a program that failed."""
    parts = [program(str(command[0])), *(str(part) for part in command[1:])]
    done = subprocess.run(parts, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def fio(uri: str, size: int, jobs: int, depth: int, *options: str) -> dict[str, float]:
    """Reads a second and bytes a second of one fio run over the first `size` bytes."""
    report = run(
        "fio", "--name=n", "--ioengine=nbd", f"--uri={uri}", "--rw=randread", "--bs=4k", f"--numjobs={jobs}",
        f"--iodepth={depth}", "--thread", "--group_reporting", f"--size={size}", "--randrepeat=0",
        "--output-format=json", *options,
    )  # fmt: skip
    read = json.loads(report[report.index("{") :])["jobs"][0]["read"]
    return {"iops": read["iops"], "bytes": read["bw_bytes"]}


def random_reads(uri: str, size: int, jobs: int, depth: int) -> float:
    """Reads of 4 KiB a second."""
    return fio(uri, size, jobs, depth, "--time_based", f"--runtime={FIO_MS}ms")["iops"]


def sequential_reads(uri: str, size: int) -> float:
    """Megabytes a second in pieces of 256 KiB, 8 in flight."""
    return fio(uri, size, 1, 8, "--bs=256k", "--rw=read", "--time_based", f"--runtime={FIO_MS}ms")["bytes"] / 1e6


def reads_of_blocks(uri: str, size: int, block: int, jobs: int) -> float:
    """Reads of 4 KiB a second, one at the start of each block in random order; 16 in flight on each connection."""
    return fio(uri, size, jobs, 16, f"--blockalign={block}", f"--number_ios={size // block // jobs}")["iops"]


def copied(uri: str, size: int) -> float:
    """Megabytes a second of a whole copy of `size` bytes."""
    began = time.perf_counter()
    run("nbdcopy", uri, "null:")
    return size / 1e6 / (time.perf_counter() - began)


def wrk(url: str, size: int, length: int, connections: int, seed: int = 1) -> float:
    """Answers a second to random ranges of so many bytes; every answer was 206."""
    source = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        offsets, script = Path(name) / "offsets", Path(name) / "ranges.lua"
        offsets.write_text("".join(f"{source.randrange(size // length) * length}\n" for _ in range(OFFSETS)))
        script.write_text(SCRIPT.format(offsets=offsets, length=length))
        out = run("wrk", "-t1", f"-c{connections}", f"-d{WRK_S}s", "-s", script, url)
    found = re.search(r"Requests/sec: +([0-9.]+)", out)
    if found is None or "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"wrk with {url}: {out}")
    return float(found[1])


def fetched(url: str) -> float:
    """Megabytes a second of a full GET."""
    out = run("curl", "-sSf", "-o", os.devnull, "-w", "%{size_download} %{time_total}", url)
    size, took = map(float, out.split())
    return size / 1e6 / took


def fetched_in_ranges(url: str, size: int, piece: int) -> float:
    """Megabytes a second of everything, one range after the other on one connection."""
    command: list[object] = ["curl", "-sSf"]
    for start in range(0, size, piece):
        command += [] if not start else ["--next", "-sSf"]
        command += ["-r", f"{start}-{min(start + piece, size) - 1}", "-o", os.devnull, "-w", "%{size_download}\n", url]
    began = time.perf_counter()
    out = run(*command)
    took = time.perf_counter() - began
    if sum(map(int, out.split())) != size:
        raise RuntimeError(f"curl with {url}: not every byte came")
    return size / 1e6 / took
