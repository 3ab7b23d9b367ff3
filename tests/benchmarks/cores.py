"""``python -m tests.benchmarks.cores``: what more cores bring: daemons side by side, and a free-threaded interpreter.

The same clients put the same load on one daemon and on several on ports of their own, in turns: as many fio processes
(or wrk ones) as there are daemons at most, spread evenly.  Clients and daemons share this machine's cores; with two of
them, one client and one daemon already keep both busy, and the ratio says little about a larger machine.

A free-threaded Python is python3.13t or later on PATH or among pyenv's, with the packages that the daemon needs, which
is then one daemon under the same load.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.benchmarks.__main__ import main
from tests.benchmarks.clients import copied, random_reads, wrk
from tests.benchmarks.files import DISK_BYTES, Files
from tests.benchmarks.race import Pair, Race, Work
from tests.peers import Server

ONE = "one daemon"
VERSIONS = ("3.15t", "3.14t", "3.13t")
NEEDS = "import sys, lz4.block, zstandard; sys.exit(sys._is_gil_enabled())"
"""Whether an interpreter runs the daemon without the lock: an extension module can bring the lock back."""

WORKS = {
    "nbd": Work("NBD cached 4 KiB, 4 x 16", "reads/s", 0, partial(random_reads, size=DISK_BYTES, jobs=4, depth=16)),
    "http": Work(
        "HTTP cached 4 KiB, c16", "answers/s", 0, partial(wrk, size=DISK_BYTES, length=4 << 10, connections=16)
    ),
}
"""What each client does, by protocol."""


def counts() -> list[int]:
    """How many daemons: 1, 2, and on by doubling while half of the cores are left to the clients."""
    cores = len(os.sched_getaffinity(0))
    numbers = [1, 2]
    while numbers[-1] * 4 <= cores:
        numbers.append(numbers[-1] * 2)
    return numbers


def free_threaded() -> str | None:
    """An interpreter without the lock that can run the daemon."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}") for version in VERSIONS]
    found += [str(path / "bin" / "python") for path in sorted(folder.glob("3.*t"), reverse=True)]
    for python in filter(None, found):
        if not subprocess.run([python, "-c", NEEDS], capture_output=True, check=False).returncode:
            return python
    return None


def load(client: Callable[[str], float], urls: list[str], clients: int) -> float:
    """What all clients reach together."""
    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, [urls[number % len(urls)] for number in range(clients)]))


def started(stack: ExitStack, snapshot: Path, python: str) -> dict[str, str]:
    """A daemon with everything in its cache: its URLs by protocol."""
    options = ["--nbd-port", 0, "--http-port", 0, "--cache-size", "1G", "--log-level", "error"]
    server = stack.enter_context(Server(snapshot, *options, python=python))
    copied(server.nbd, DISK_BYTES)
    return {"nbd": server.nbd, "http": f"{server.http}/disk"}


def races(files: Files) -> Iterator[Race]:
    """Each protocol's load on one daemon, on several, and on one without the lock."""
    python = free_threaded()
    if python is None:
        print(f"no free-threaded Python with lz4 and zstandard ({', '.join(VERSIONS)}): its rows are left out")
    with ExitStack() as stack:
        numbers = counts()
        ours = [started(stack, files.lz4, sys.executable) for _ in range(numbers[-1])]
        free = None if python is None else started(stack, files.lz4, python)
        for protocol, work in WORKS.items():
            contenders: dict[str, Callable[[], float]] = {}
            for number in numbers:
                urls = [daemon[protocol] for daemon in ours[:number]]
                contenders[ONE if number == 1 else f"{number} daemons"] = partial(load, work.client, urls, numbers[-1])
            pairs = [Pair(f"{work.name}: {number} daemons", f"{number} daemons", (ONE,)) for number in numbers[1:]]
            if free is not None:
                contenders["free-threaded"] = partial(load, work.client, [free[protocol]], numbers[-1])
                pairs.append(Pair(f"{work.name}: one without the lock", "free-threaded", (ONE,)))
            yield Race(work.unit, contenders, tuple(pairs))


if __name__ == "__main__":
    sys.exit(main(["cores", *sys.argv[1:]]))
