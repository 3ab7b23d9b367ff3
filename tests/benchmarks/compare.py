"""``python -m tests.benchmarks.compare COMMIT [NAME...]``: this checkout beside another commit of its own, row by row.

Both daemons run at once with the same files, and take turns within seconds in an order that changes from round to
round, so that what else the machine does falls on both.  A row shows the median of both, and the ratio of now to
before: the median over the rounds, and the least and greatest of them.  More is better everywhere but for seconds and
KiB.  «slower» stands where even the better half of the rounds has less than 97 % of before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import http, nbd, s3
from tests.benchmarks.images import fetch as fetch_image
from tests.peers import ROOT, Server, write_secret

ROUNDS = 5
SECONDS = 1
NOISE = 0.97
IDLE = 1000
OF_CHECKOUT = "import sys; sys.path.insert(0, sys.argv[1])\n"
READER = (
    OF_CHECKOUT
    + """
import time
from hexz.snapshot import new_context, open_snapshot
workers = int(sys.argv[3])
context = new_context(64 << 20, workers=workers)
with open_snapshot(sys.argv[2], context) as snapshot:
    stream = snapshot.disk
    began = time.perf_counter()
    for offset in range(0, stream.size, 1 << 20):
        stream.read(offset, min(1 << 20, stream.size - offset))
    print(stream.size / 1e6 / (time.perf_counter() - began))
context.workers.stop()
"""
)
CACHED = (
    OF_CHECKOUT
    + """
import random, time
from hexz.snapshot import new_context, open_snapshot
with open_snapshot(sys.argv[2], new_context(64 << 20)) as snapshot:
    stream = snapshot.disk
    stream.read(0, 8 << 20)
    offsets = [random.randrange(2048) * 4096 for _ in range(200_000)]
    began = time.perf_counter()
    for offset in offsets:
        stream.read_cached(offset, 4096)
    print(len(offsets) / (time.perf_counter() - began))
"""
)

Measure = Callable[["Side"], float]


class Side(NamedTuple):
    """A checkout, its daemon with everything in its cache, and the files for those that start cold."""

    checkout: Path
    warm: Server
    files: nbd.Files
    folder: Path


class Compared(NamedTuple):
    """One row: figures of both sides by round."""

    work: str
    unit: str
    before: list[float]
    now: list[float]

    @property
    def ratios(self) -> list[float]:
        """Now to before in each round; the other way round where less is better."""
        pairs = zip(self.before, self.now)
        return [old / new if self.unit in ("s", "KiB each") else new / old for old, new in pairs]

    @property
    def slower(self) -> bool:
        """Even in the better half of the rounds."""
        ratios = sorted(self.ratios)
        return ratios[len(ratios) * 3 // 4] < NOISE


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of another commit in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="hexz-before-") as name:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        for checkout in (Path(name), ROOT):  # so that a start compiles nothing on either side
            subprocess.run([sys.executable, "-m", "compileall", "-q", checkout / "hexz"], check=True)
        yield Path(name)


def daemon(checkout: Path, *arguments: object) -> Server:
    """The daemon of a checkout."""
    return Server(*arguments, "--log-level", "error", program=checkout / "hexz_serve.py")


def nbd_shape(jobs: int, depth: int, size: str = "4k", *options: str) -> Measure:
    """What fio reaches: reads a second, or megabytes where they are sequential."""

    def measure(side: Side) -> float:
        figures = nbd.fio(side.warm.nbd, jobs, depth, f"--bs={size}", "--time_based", f"--runtime={SECONDS}", *options)
        return figures["bytes"] / 1e6 if options else figures["iops"]

    return measure


def ranges(length: int, connections: int) -> Measure:
    """What wrk reaches, answers a second."""

    def measure(side: Side) -> float:
        script = side.folder / "ranges.lua"
        script.write_text(http.SCRIPT.format(size=nbd.IMAGE_BYTES, length=length, seed=1))
        return http.wrk(f"{side.warm.http}/disk", script, connections, SECONDS)

    return measure


def cold_copy(form: str) -> Measure:
    """A whole copy from a daemon just started."""

    def measure(side: Side) -> float:
        with daemon(side.checkout, "--nbd-port", 0, "--cache-size", "1G", getattr(side.files, form)) as server:
            return nbd.copied(server.nbd)

    return measure


def cold_random(form: str, jobs: int) -> Measure:
    """Random reads, each of a block that is not cached, 16 in flight on each connection."""
    once = [f"--blockalign={nbd.BLOCK_BYTES}", f"--number_ios={nbd.IMAGE_BYTES // nbd.BLOCK_BYTES // jobs}"]

    def measure(side: Side) -> float:
        with daemon(side.checkout, "--nbd-port", 0, "--cache-size", "8M", getattr(side.files, form)) as server:
            return nbd.fio(server.nbd, jobs, 16, *once)["iops"]

    return measure


def cold_get(form: str) -> Measure:
    """A whole GET from a daemon just started, megabytes a second."""

    def measure(side: Side) -> float:
        with daemon(side.checkout, "--http-port", 0, "--cache-size", "64M", getattr(side.files, form)) as server:
            return http.fetch(f"{server.http}/disk") / 1e6

    return measure


def started(side: Side) -> float:
    """Seconds until the daemon is ready."""
    began = time.perf_counter()
    with daemon(side.checkout, "--http-port", 0, "--nbd-port", 0, side.files.lz4):
        return time.perf_counter() - began


def idle(side: Side) -> float:
    """KiB that each of many connections costs that read once and wait."""
    with daemon(side.checkout, "--nbd-port", 0, "--max-connections", 2 * IDLE, side.files.lz4) as server:
        return nbd.grown(server.process.pid, server.nbd_port, IDLE) / IDLE / 1024


def downloaded(side: Side) -> float:
    """Megabytes a second of boto3."""
    target = side.folder / "target"
    began = time.perf_counter()
    s3.with_boto3(side.warm.urls["s3"].replace("s3:", "http:").rstrip("/"), target)
    return nbd.IMAGE_BYTES / 1e6 / (time.perf_counter() - began)


def streamed(side: Side) -> float:
    """Megabytes a second of oVirt's client with four connections, after the first time."""
    return nbd.IMAGE_BYTES / 1e6 / fetch_image(f"{side.warm.http}/images/{s3.BUCKET}", "stream", side.folder / "none")


def script(text: str, form: str, *arguments: object) -> Measure:
    """The figure that a script prints which uses the checkout's package."""

    def measure(side: Side) -> float:
        command = [sys.executable, "-c", text, side.checkout, getattr(side.files, form), *arguments]
        return float(subprocess.check_output([str(part) for part in command], text=True, cwd="/"))

    return measure


WORKS: dict[str, list[tuple[str, str, Measure]]] = {
    "nbd": [
        *(
            (f"NBD cached 4 KiB, {jobs} x {depth}", "reads/s", nbd_shape(jobs, depth))
            for jobs, depth in ((1, 1), (4, 1), (16, 1), (1, 16), (1, 64), (4, 16), (4, 64))
        ),
        ("NBD cached 256 KiB sequential, 1 x 8", "MB/s", nbd_shape(1, 8, "256k", "--rw=read")),
        ("NBD cached nbdcopy", "MB/s", lambda side: nbd.copied(side.warm.nbd)),
    ],
    "cold": [
        ("NBD cold nbdcopy, lz4", "MB/s", cold_copy("lz4")),
        ("NBD cold nbdcopy, zstd", "MB/s", cold_copy("zstd")),
        ("NBD cold random 1 x 16, lz4", "reads/s", cold_random("lz4", 1)),
        ("NBD cold random 1 x 16, zstd", "reads/s", cold_random("zstd", 1)),
        ("NBD cold random 4 x 16, lz4", "reads/s", cold_random("lz4", 4)),
        ("NBD cold random 4 x 16, zstd", "reads/s", cold_random("zstd", 4)),
        ("HTTP cold GET, lz4", "MB/s", cold_get("lz4")),
        ("HTTP cold GET, zstd", "MB/s", cold_get("zstd")),
    ],
    "http": [
        (f"HTTP cached {length >> 10} KiB, {connections} connections", "answers/s", ranges(length, connections))
        for length, connections in ((4096, 1), (4096, 4), (4096, 16), (4096, 64), (65536, 4), (1 << 20, 4))
    ],
    "others": [
        ("images, oVirt's client, 4 connections", "MB/s", streamed),
        ("S3, boto3 download", "MB/s", downloaded),
    ],
    "reader": [
        ("reader, cached 4 KiB", "reads/s", script(CACHED, "lz4")),
        *(
            (f"reader, cold sequential {form}, {workers + 1} threads", "MB/s", script(READER, form, workers))
            for form in ("lz4", "zstd")
            for workers in (0, 1)
        ),
    ],
    "daemon": [("start", "s", started), (f"{IDLE} idle NBD connections", "KiB each", idle)],
}


def compare(before: Side, now: Side, names: list[str]) -> Iterator[Compared]:
    """Each row, as soon as it is measured."""
    for name in names:
        for work, unit, measure in WORKS[name]:
            row = Compared(work, unit, [], [])
            for turn in range(ROUNDS):
                sides = [(before, row.before), (now, row.now)]
                for side, figures in sides if turn % 2 else reversed(sides):
                    figures.append(measure(side))
            yield row


def line(row: Compared) -> str:
    """A row as text."""
    ratios = row.ratios
    places = 0 if statistics.median(row.now) >= 100 else 2
    figures = f"{statistics.median(row.before):>9,.{places}f} {statistics.median(row.now):>9,.{places}f} {row.unit:<9}"
    spread = f"{statistics.median(ratios):5.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{row.work:<44} {figures} {spread}{'  slower' if row.slower else ''}"


def main() -> int:
    """Every row, or those of the parts that are named; 1 when one is slower."""
    commit, *names = sys.argv[1:]
    nbd.raise_limit()
    with ExitStack() as stack:
        checkout = stack.enter_context(checked_out(commit))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=s3.memory_folder())))
        files = nbd.make_files(folder)
        image = folder / f"{s3.BUCKET}.hxz"
        os.link(files.lz4, image)
        keys = write_secret(folder / "keys", f"{s3.ACCESS_KEY} {s3.SECRET}\n")
        options = ["--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--s3-keys-file", keys, "--cache-size", "1G"]
        sides = []
        for where in (checkout, ROOT):
            server = stack.enter_context(daemon(where, *options, image))
            nbd.copied(server.nbd)
            sides.append(Side(where, server, files, folder))
        rows = []
        for row in compare(*sides, names or list(WORKS)):
            print(line(row), flush=True)
            rows.append(row)
    out = ROOT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return int(any(row.slower for row in rows))


if __name__ == "__main__":
    sys.exit(main())
