"""Snapshots on a server, over a link that is 0 to 100 ms long each way and 100 MB/s wide, beside other remote readers.

nginx has one image of 256 MiB as a snapshot with zstd, and raw for those that know no snapshots.  Two works: A reads as
a machine does that boots, 4 to 64 KiB at a time in places that are as long as files are; B reads everything in turn, a
MiB at a time.  Each turn is a process of its own that opens the image, reads, and compares every byte; the clock runs
from before the opening to after the last byte.  Contenders: ours with nothing, with a list of what is going to be read,
with a full disk cache, and with ``--fill``; the released hexz package's own reader; our reader over ``rclone mount``,
which keeps what it read on a disk; nbdkit's curl plugin with a connection for each reader; fsspec's cache of blocks.

The least bytes are the stored blocks and index pages that a work needs.  An opening is counted in round trips without
the one that a connection takes.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hexz.snapshot import new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY
from hexz.tools.warm import warm
from tests.benchmarks.clients import program
from tests.benchmarks.files import DISK_BYTES, Files
from tests.benchmarks.link import Link
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.servers import free_port, running
from tests.peers import ROOT, SYSTEM_PYTHON, need_rclone
from tests.releases.test_wheels import wheel
from tests.remote.stores import nginx
from tests.waiting import until

SECTOR = 4096
READ_SECTORS = 16
REGION_BYTES_PER_READ = 30 << 10
"""Of the image that is read of at all: 60 MiB for 2,000 reads."""
SMALLEST_REGION, LARGEST_REGION = 4, 512
"""Sectors of what is read at random: sizes as files have them, as many of 16 to 32 KiB as of 1 to 2 MiB."""
PIECE = 1 << 20
WHEEL = "0.7.0"
CACHE_BYTES = 1 << 30
READER = Path(__file__).parent / "apart" / "remote_reader.py"
TURN_S = 1200
OPENING = 1.5
"""Round trips of an opening, besides the one that its connections take."""

COLD, LISTED, CACHED, FILLED, LOCAL = "ours", "ours, list", "ours, disk cache", "ours, fill", "ours, local file"
RELEASED, RCLONE, NBDKIT, FSSPEC, LEAST, GOAL = (
    f"hexz {WHEEL}",
    "rclone",
    "nbdkit curl",
    "fsspec",
    "the least",
    "the goal",
)


class Form(NamedTuple):
    """How much is measured: delays (ms each way) with the rounds for each, and reads of work A."""

    rounds: dict[int, int]
    reads: int


SHORT = Form({0: 3, 20: 1}, 500)
WHOLE = Form({0: 5, 1: 3, 20: 1, 100: 1}, 2000)
PATIENT_MS = 20
"""So far contenders that wait for each read in turn take part with one reader."""


class Turn(NamedTuple):
    """What one turn of a contender took."""

    took_s: float
    open_s: float
    requests: int
    answered: int


class Contender:
    """One of those in a race: takes its turns, and remembers what they took, in bytes too."""

    def __init__(self, take: Callable[[], Turn]) -> None:
        self._take = take
        self.turns: list[Turn] = []
        self._told = 0

    def seconds(self) -> float:
        """Take a turn."""
        self.turns.append(self._take())
        return self.turns[-1].took_s

    def told(self, what: Callable[[Turn], float]) -> float:
        """The same turns once more, for another figure of them; a new one where there were none."""
        if not self.turns:
            self.seconds()
        self._told += 1
        return what(self.turns[(self._told - 1) % len(self.turns)])


class Field:
    """The image in its forms, the server, the link, and what contenders need besides."""

    def __init__(self, stack: ExitStack, files: Files, form: Form) -> None:
        self.raw = files.raw
        self.snapshot = files.zstd
        self.boot = boot_reads(form.reads)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remote-", dir=files.folder)))
        served = self._folder / "www"
        served.mkdir()
        (served / "disk.raw").symlink_to(self.raw)
        (served / "disk.hxz").symlink_to(self.snapshot)
        server = stack.enter_context(nginx(served, "autoindex on;"))
        self.link = stack.enter_context(Link(int(server.base.rpartition(":")[2])))
        self.base = f"http://127.0.0.1:{self.link.port}"
        self.address = f"{self.base}/disk.hxz"
        self.list = self._folder / "list"
        self.disk_cache = self._folder / "cache"
        self.read("ours", self.address, self.boot, 1, record=str(self.list))
        warm(self.address, (), True, str(self.disk_cache), CACHE_BYTES, 0, None, (), NO_POLICY)

    def least(self, reads: Sequence[tuple[int, int]]) -> int:
        """Bytes of the stored blocks, and of the index pages, that have what is read."""
        spans = set()
        with open_snapshot(str(self.snapshot), new_context()) as snapshot:
            stream = snapshot.disk
            assert stream is not None
            for offset, length in reads:
                for page, number in stream.loader.between(offset, offset + length):
                    record = stream.pages.records[page.number]
                    spans.add((record.offset, record.length))
                    spans.add((page.page.stored_offset(number), page.page.stored[number]))
        return sum(length for _, length in spans)

    def read(
        self,
        kind: str,
        address: str,
        reads: Sequence[tuple[int, int]],
        readers: int,
        python: str = sys.executable,
        path: Path = ROOT,
        **more: Any,
    ) -> Turn:
        """One turn of a contender.  Raises: RuntimeError for any byte that was another, or did not come."""
        job = {"address": address, "raw": str(self.raw), "reads": reads, "readers": readers, **more}
        self.link.traffic()
        environment = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run(
            [python, str(READER), kind], input=json.dumps(job), capture_output=True, text=True, env=environment,
            check=False, timeout=TURN_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{kind} {address}: {done.stderr[-2000:]}")
        said = json.loads(done.stdout)
        if said["wrong"]:
            raise RuntimeError(f"{kind} {address}: {len(said['wrong'])} reads went wrong: {said['wrong'][0]}")
        traffic = self.link.traffic()
        return Turn(said["took_s"], said["open_s"], traffic.requests, traffic.answered)

    @contextmanager
    def mounted(self) -> Iterator[str]:
        """The snapshot below ``rclone mount``, with nothing in its cache so far."""
        with tempfile.TemporaryDirectory(prefix="rclone-", dir=self._folder) as name:
            point, cache = Path(name) / "point", Path(name) / "cache"
            point.mkdir()
            command = [
                str(need_rclone()), "mount", f":http,url='{self.base}':", str(point), "--config", os.devnull,
                "--read-only", "--vfs-cache-mode", "full", "--cache-dir", str(cache),
            ]  # fmt: skip
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                until(lambda: os.path.ismount(point))
                yield str(point / "disk.hxz")
            finally:
                subprocess.run([program("fusermount3"), "-u", "-z", str(point)], check=False, capture_output=True)
                process.terminate()
                process.wait()

    def over_rclone(self, reads: Sequence[tuple[int, int]], readers: int) -> Turn:
        """A turn of our reader over rclone's file."""
        with self.mounted() as path:
            return self.read("ours", path, reads, readers)

    def over_nbdkit(self, reads: Sequence[tuple[int, int]], readers: int) -> Turn:
        """A turn of libnbd over nbdkit's curl plugin with the raw image."""
        port = free_port()
        command: list[object] = ["nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", port, "curl", f"{self.base}/disk.raw"]
        with running([*command, "protocols=http"], port):
            return self.read("nbd", f"nbd://127.0.0.1:{port}", reads, readers, SYSTEM_PYTHON)


def boot_reads(count: int) -> list[tuple[int, int]]:
    """Reads (offset, length) as a machine does while it boots: of many regions that are as long as files are."""
    source = random.Random(8)
    regions, weights = [], []
    while sum(weights) * SECTOR < REGION_BYTES_PER_READ * count:
        sectors = int(SMALLEST_REGION * (LARGEST_REGION / SMALLEST_REGION) ** source.random())
        regions.append((source.randrange(DISK_BYTES // SECTOR - sectors), sectors))
        weights.append(sectors)
    reads = []
    for first, sectors in source.choices(regions, weights, k=count):
        length = min(source.randint(1, READ_SECTORS), sectors)
        reads.append(((first + source.randint(0, sectors - length)) * SECTOR, length * SECTOR))
    return reads


def races(files: Files) -> Iterator[Race]:
    """From the shortest link to the longest; `SHORT` unless the environment says HEXZ_BENCH=whole."""
    form = WHOLE if os.environ.get("HEXZ_BENCH") == "whole" else SHORT
    with ExitStack() as stack:
        field = Field(stack, files, form)
        least = field.least(field.boot)
        print(f"A needs {least / 1e6:.1f} MB of {field.snapshot.stat().st_size / 1e6:.1f}", flush=True)
        for delay in form.rounds:
            field.link.lengthen(delay)
            for readers in (1, 8):
                yield from _boot_races(field, form, delay, readers, least)
            for readers in (1, 8):
                yield from _sequence_races(field, form, delay, readers)


def _boot_races(field: Field, form: Form, delay: int, readers: int, least: int) -> Iterator[Race]:
    reads, far, alone = field.boot, delay >= 20, readers == 1
    name = f"A {delay} ms x{readers}"
    one = partial(field.read, "ours", field.address, reads, readers)
    takes: dict[str, Callable[[], Turn]] = {
        COLD: one,
        LISTED: partial(one, lists=[str(field.list)]),
        CACHED: partial(one, disk_cache=str(field.disk_cache)),
        FILLED: partial(one, fill=True),
        RELEASED: partial(field.read, "wheel", field.address, reads, readers, path=wheel(WHEEL)),
        RCLONE: partial(field.over_rclone, reads, readers),
    }
    pairs = [
        Pair(f"{name}, cold", COLD, (RELEASED,), 1.4 if far else 1),
        Pair(f"{name}, list", LISTED, (RELEASED,), 20 if far and alone else 0),
        Pair(f"{name}, fill", FILLED, (RCLONE,), 1),
    ]
    if delay == 0:
        takes[LOCAL] = partial(field.read, "ours", str(field.snapshot), reads, readers)
        pairs.append(Pair(f"{name}, disk cache", CACHED, (LOCAL,), 0.9))
    if not alone or delay < PATIENT_MS or (delay == PATIENT_MS and form is WHOLE):
        takes[NBDKIT] = partial(field.over_nbdkit, reads, readers)
        pairs.append(Pair(f"{name}, cold", COLD, (NBDKIT,)))
    if alone and delay <= PATIENT_MS:
        takes[FSSPEC] = partial(field.read, "fsspec", f"{field.base}/disk.raw", reads, readers)
        pairs.append(Pair(f"{name}, cold", COLD, (FSSPEC,)))
    contenders = {who: Contender(take) for who, take in takes.items()}
    yield Race("s", {who: one.seconds for who, one in contenders.items()}, tuple(pairs), form.rounds[delay])
    _tell(name, contenders)
    megabytes = {who: partial(contenders[who].told, lambda turn: turn.answered / 1e6) for who in (COLD, LISTED)}
    yield Race(
        "MB",
        {**megabytes, LEAST: lambda: least / 1e6},
        (
            Pair(f"{name}, cold", COLD, (LEAST,), 1 / 1.5 if far else 0),
            Pair(f"{name}, list", LISTED, (LEAST,), 1 / 1.15),
        ),
        form.rounds[delay],
    )
    if far and alone:
        opening = partial(contenders[COLD].told, lambda turn: turn.open_s / (2 * delay / 1000) - 1)
        pair = Pair(f"{delay} ms, opening", COLD, (GOAL,), 1)
        yield Race("round trips", {COLD: opening, GOAL: lambda: OPENING}, (pair,), form.rounds[delay])


def _sequence_races(field: Field, form: Form, delay: int, readers: int) -> Iterator[Race]:
    reads = [(offset, PIECE) for offset in range(0, DISK_BYTES, PIECE)]
    name = f"B {delay} ms x{readers}"
    takes: dict[str, Callable[[], Turn]] = {
        COLD: partial(field.read, "ours", field.address, reads, readers),
        RCLONE: partial(field.over_rclone, reads, readers),
    }
    pairs = [Pair(name, COLD, (RCLONE,), 1 / 1.1)]
    if delay < PATIENT_MS:
        takes[RELEASED] = partial(field.read, "wheel", field.address, reads, readers, path=wheel(WHEEL))
        pairs.append(Pair(name, COLD, (RELEASED,)))
    contenders = {who: Contender(take) for who, take in takes.items()}
    yield Race("s", {who: one.seconds for who, one in contenders.items()}, tuple(pairs), form.rounds[delay])
    _tell(name, contenders)


def _tell(name: str, contenders: dict[str, Contender]) -> None:
    """The figures of all of them, side by side."""
    for who, contender in contenders.items():
        turns = contender.turns
        if turns:
            took, opened, requests, answered = (statistics.median(figures) for figures in zip(*turns))
            print(
                f"    {name:<12} {who:<17} {took:8.2f} s, opened in {opened:5.2f} s, {requests:5.0f} requests, "
                f"{answered / 1e6:6.1f} MB",
                flush=True,
            )
