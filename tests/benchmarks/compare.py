"""``python -m tests.benchmarks.compare COMMIT [PART...]``: this checkout beside another commit of its own, row by row.

Both daemons run at once with the same files, and take turns within seconds.  A row shows the ratio of now to before,
with its spread over the rounds, and goes to the history too.  «slower» stands where even the better half of the rounds
has less than 97 % of before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import clients, daemon, images, s3
from tests.benchmarks.files import BLOCK_BYTES, DISK_BYTES, Files
from tests.benchmarks.noise import Probe
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.report import Row, circumstances, remember, save, table
from tests.peers import ROOT, Server, write_secret

SLOWER = 0.97
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


class Side(NamedTuple):
    """A checkout, its daemon with everything in its cache, and the files for those that start cold."""

    checkout: Path
    warm: Server
    files: Files


Measure = Callable[[Side], float]


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of another commit in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="hexz-before-") as name:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        for checkout in (Path(name), ROOT):  # so that a start compiles nothing on either side
            subprocess.run([sys.executable, "-m", "compileall", "-q", checkout / "hexz"], check=True)
        yield Path(name)


def started(checkout: Path, *arguments: object) -> Server:
    """The daemon of a checkout."""
    return Server(*arguments, "--log-level", "error", program=checkout / "hexz_serve.py")


def over_nbd(client: Callable[[str], float]) -> Measure:
    """With everything in the cache."""
    return lambda side: client(side.warm.nbd)


def ranges(length: int, connections: int) -> Measure:
    """Over HTTP, with everything in the cache."""
    return lambda side: clients.wrk(f"{side.warm.http}/disk", DISK_BYTES, length, connections)


def cold_nbd(form: str, cache: str, client: Callable[[str], float]) -> Measure:
    """From a daemon just started."""

    def measure(side: Side) -> float:
        with started(side.checkout, "--nbd-port", 0, "--cache-size", cache, getattr(side.files, form)) as server:
            return client(server.nbd)

    return measure


def cold_get(form: str) -> Measure:
    """A whole GET from a daemon just started."""

    def measure(side: Side) -> float:
        with started(side.checkout, "--http-port", 0, "--cache-size", "64M", getattr(side.files, form)) as server:
            return clients.fetched(f"{server.http}/disk")

    return measure


def downloaded(side: Side) -> float:
    """Megabytes a second of boto3."""
    url = side.warm.urls["s3"].replace("s3:", "http:").rstrip("/")
    return s3.downloaded(s3.with_boto3, url, side.files.folder / "target", DISK_BYTES)


def streamed(side: Side) -> float:
    """Megabytes a second of oVirt's client with four connections, after the first time."""
    seconds = images.fetch(f"{side.warm.http}/images/{s3.BUCKET}", "stream", side.files.folder / "none")
    return DISK_BYTES / 1e6 / seconds


def script(text: str, form: str, *arguments: object) -> Measure:
    """The figure that a script prints which uses the checkout's package."""

    def measure(side: Side) -> float:
        command = [sys.executable, "-c", text, side.checkout, getattr(side.files, form), *arguments]
        return float(subprocess.check_output([str(part) for part in command], text=True, cwd="/"))

    return measure


COPY = partial(clients.copied, size=DISK_BYTES)

WORKS: dict[str, list[tuple[str, str, Measure]]] = {
    "nbd": [
        *(
            (
                f"NBD cached 4 KiB, {jobs} x {depth}",
                "reads/s",
                over_nbd(partial(clients.random_reads, size=DISK_BYTES, jobs=jobs, depth=depth)),
            )
            for jobs, depth in ((1, 1), (4, 1), (16, 1), (1, 16), (1, 64), (4, 16), (4, 64))
        ),
        ("NBD cached 256 KiB sequential", "MB/s", over_nbd(partial(clients.sequential_reads, size=DISK_BYTES))),
        ("NBD cached nbdcopy", "MB/s", over_nbd(COPY)),
    ],
    "cold": [
        *((f"NBD cold nbdcopy, {form}", "MB/s", cold_nbd(form, "1G", COPY)) for form in ("lz4", "zstd")),
        *(
            (
                f"NBD cold 4 KiB, {jobs} x 16, {form}",
                "reads/s",
                cold_nbd(form, "8M", partial(clients.reads_of_blocks, size=DISK_BYTES, block=BLOCK_BYTES, jobs=jobs)),
            )
            for jobs in (1, 4)
            for form in ("lz4", "zstd")
        ),
        *((f"HTTP cold GET, {form}", "MB/s", cold_get(form)) for form in ("lz4", "zstd")),
    ],
    "http": [
        (f"HTTP cached {length >> 10} KiB, c{connections}", "answers/s", ranges(length, connections))
        for length, connections in ((4096, 1), (4096, 4), (4096, 16), (4096, 64), (65536, 4), (1 << 20, 4))
    ],
    "images": [("images stream, 4 connections", "MB/s", streamed)],
    "s3": [("S3 boto3", "MB/s", downloaded)],
    "reader": [
        ("reader cached 4 KiB", "reads/s", script(CACHED, "lz4")),
        *(
            (f"reader cold sequential, {form}, {workers + 1} threads", "MB/s", script(READER, form, workers))
            for form in ("lz4", "zstd")
            for workers in (0, 1)
        ),
    ],
    "daemon": [
        ("start", "s", lambda side: daemon.started(side.files.lz4, side.checkout)),
        (
            f"{daemon.IDLE_CONNECTIONS} idle NBD connections, each",
            "KiB",
            lambda side: daemon.idle(side.files.lz4, side.checkout),
        ),
    ],
}


def slower(row: Row) -> bool:
    """Even in the better half of the rounds."""
    ratios = sorted(row.ratios)
    return ratios[len(ratios) * 3 // 4] < SLOWER


def compare(commit: str, before: Side, now: Side, parts: list[str]) -> Iterator[tuple[str, Row]]:
    """Part and row, as soon as each is measured."""
    probe = Probe()
    for part in parts:
        for work, unit, measure in WORKS[part]:
            contenders = {"now": partial(measure, now), commit: partial(measure, before)}
            for row in Race(unit, contenders, (Pair(work, "now", (commit,)),)).run(probe):
                yield part, row


def main() -> int:
    """Every row, or those of the parts that are named; 1 when one is slower."""
    commit, *parts = sys.argv[1:]
    if unknown := set(parts) - set(WORKS):
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}", file=sys.stderr)
        return 2
    run = circumstances()
    with ExitStack() as stack:
        checkout = stack.enter_context(checked_out(commit))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=s3.memory_folder())))
        files = Files(folder)
        image = folder / f"{s3.BUCKET}.hxz"
        os.link(files.lz4, image)
        keys = write_secret(folder / "keys", f"{s3.ACCESS_KEY} {s3.SECRET}\n")
        options = ["--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--s3-keys-file", keys, "--cache-size", "1G"]
        sides = []
        for where in (checkout, ROOT):
            server = stack.enter_context(started(where, *options, image))
            COPY(server.nbd)
            sides.append(Side(where, server, files))
        rows = []
        for part, row in compare(commit, sides[0], sides[1], parts or list(WORKS)):
            print(f"{table([row])}{'  slower' if slower(row) else ''}", flush=True)
            remember(part, [row], run)
            rows.append(row)
    save("compare", rows)
    return int(any(map(slower, rows)))


if __name__ == "__main__":
    sys.exit(main())
