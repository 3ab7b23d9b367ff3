"""Cached ranges over HTTP against nginx, which has the raw image in the page cache.

nginx has two workers, and runs once with sendfile and tcp_nopush and once without: sometimes one is faster and
sometimes the other, and the better one counts.  The client is wrk with one thread; with two cores for everything, a
server has about one of them to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from tests.benchmarks.clients import fetched, wrk
from tests.benchmarks.files import DISK_BYTES, Files
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.servers import nginx, ours_http

ROUNDS = 3
PEERS = ("nginx", "nginx without sendfile")

WORKS = [
    # bytes, connections, goal
    (4 << 10, 1, 1.2),
    (4 << 10, 4, 1.2),
    (4 << 10, 16, 1.2),
    (4 << 10, 64, 1.2),
    (1 << 20, 16, 1.0),
]


def races(files: Files) -> Iterator[Race]:
    """Of servers that run side by side."""
    with ExitStack() as stack:
        urls = {
            "ours": stack.enter_context(ours_http(files.lz4)),
            PEERS[0]: stack.enter_context(nginx(files.raw, files.folder / "nginx")),
            PEERS[1]: stack.enter_context(nginx(files.raw, files.folder / "nginx-2", "sendfile off")),
        }
        fetched(urls["ours"])
        for length, connections, goal in WORKS:
            yield Race(
                "answers/s",
                {who: partial(wrk, url, DISK_BYTES, length, connections) for who, url in urls.items()},
                (Pair(f"HTTP cached {length >> 10} KiB, c{connections}", "ours", PEERS, goal),),
                ROUNDS,
            )
