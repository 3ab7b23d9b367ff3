"""From a server just started: over NBD against qemu-nbd on a qcow2 image with zstd; a GET against the least loop.

The least that a reader does for each block is to read it from the file, check its CRC, and decode it: one thread of
this machine's Python does that («verified») and sends nothing, keeping as much as the server's cache.  The kernel has
the files in memory for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.benchmarks.clients import copied, fetched, reads_of_blocks
from tests.benchmarks.files import BLOCK_BYTES, DISK_BYTES, EVEN_BYTES, Files
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.reader import CACHE_BYTES, rate, stored_blocks, verified
from tests.benchmarks.servers import Start, cold, ours_http, ours_nbd, qemu_nbd

PEER = "qemu-nbd zstd qcow2"

WORKS: list[tuple[str, str, Callable[[str], float], str, float, float]] = [
    ("nbdcopy", "MB/s", partial(copied, size=DISK_BYTES), "1G", 3, 2.5),
    *(
        (
            f"4 KiB, {jobs} x 16",
            "reads/s",
            partial(reads_of_blocks, size=DISK_BYTES, block=BLOCK_BYTES, jobs=jobs),
            "1G",
            1.5,
            1.3,
        )
        for jobs in (1, 4)
    ),
]
"""The work, its unit, the client, our cache, and the goals for lz4 and zstd."""


def races(files: Files) -> Iterator[Race]:
    """NBD, then HTTP."""
    for name, unit, client, cache, lz4_goal, zstd_goal in WORKS:
        starts: dict[str, Start] = {
            "ours lz4": partial(ours_nbd, files.lz4, cache),
            "ours zstd": partial(ours_nbd, files.zstd, cache),
            PEER: partial(qemu_nbd, files.qcow2, "qcow2"),
        }
        yield Race(
            unit,
            {who: partial(cold, start, client) for who, start in starts.items()},
            (
                Pair(f"NBD cold {name}, lz4", "ours lz4", (PEER,), lz4_goal),
                Pair(f"NBD cold {name}, zstd", "ours zstd", (PEER,), zstd_goal),
            ),
        )
    for codec, path, goal in (("lz4", files.even_lz4, 1.3), ("zstd", files.even_zstd, 0)):
        places = stored_blocks(path)
        contenders: dict[str, Callable[[], float]] = {
            "ours": partial(cold, partial(ours_http, path, str(CACHE_BYTES)), fetched),
            "verified": partial(rate, EVEN_BYTES, partial(verified, codec, path, places)),
        }
        yield Race("MB/s", contenders, (Pair(f"HTTP cold GET, {codec}", "ours", ("verified",), goal),))
