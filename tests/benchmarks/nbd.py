"""Cached reads over NBD against nbdkit and qemu-nbd with the raw image in the page cache; the better one counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from tests.benchmarks.clients import copied, random_reads, sequential_reads
from tests.benchmarks.files import DISK_BYTES, Files
from tests.benchmarks.race import Pair, Race, Work
from tests.benchmarks.servers import nbdkit, ours_nbd, qemu_nbd

ROUNDS = 3

WORKS = [
    *(
        Work(
            f"NBD cached 4 KiB, {jobs} x {depth}",
            "reads/s",
            goal,
            partial(random_reads, size=DISK_BYTES, jobs=jobs, depth=depth),
        )
        for jobs, depth, goal in (
            (1, 1, 0.95), (4, 1, 1.3), (16, 1, 1.0), (1, 16, 1.4), (1, 64, 1.4), (4, 16, 2.2), (4, 64, 2.2)
        )
    ),
    Work("NBD cached 256 KiB sequential", "MB/s", 1.3, partial(sequential_reads, size=DISK_BYTES)),
    Work("NBD cached nbdcopy", "MB/s", 1.2, partial(copied, size=DISK_BYTES)),
]  # fmt: skip


def races(files: Files) -> Iterator[Race]:
    """Of servers that run side by side, each after a whole copy."""
    with ExitStack() as stack:
        urls = {
            "ours": stack.enter_context(ours_nbd(files.lz4)),
            "nbdkit raw": stack.enter_context(nbdkit(files.raw)),
            "qemu-nbd raw": stack.enter_context(qemu_nbd(files.raw, "raw")),
        }
        for url in urls.values():
            copied(url, DISK_BYTES)
        for work in WORKS:
            contenders = {who: partial(work.client, url) for who, url in urls.items()}
            yield Race(
                work.unit, contenders, (Pair(work.name, "ours", ("nbdkit raw", "qemu-nbd raw"), work.goal),), ROUNDS
            )
