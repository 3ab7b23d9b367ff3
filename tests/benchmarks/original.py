"""The Hexz project's own server, in Rust: the same snapshots, the same clients.

Release 0.7.0 for NBD and 0.8.2 for HTTP.  Both are started as their help says, with nothing to choose but the
protocol.  Cached, then, means what each has after a whole copy: ours everything, with ``--cache-size 1G``; the original
the 1,000 blocks (62 MiB here) that it keeps and cannot be told to raise.  So one row more of each protocol reads only
the first 32 MiB, which both of them hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.clients import copied, fetched_in_ranges, random_reads, sequential_reads, wrk
from tests.benchmarks.files import DISK_BYTES, Files
from tests.benchmarks.race import Pair, Race, Work
from tests.benchmarks.servers import Start, cold, find_original, original, ours_http, ours_nbd

PIECE = 16 << 20
"""Of a copy in ranges: the original answers at most 32 MiB at once."""
SMALL = 32 << 20
CACHED_ROUNDS = 3
COPY = partial(copied, size=DISK_BYTES)


class Protocol(NamedTuple):
    """Which releases to take, the best first; how ours and theirs are started; what is measured."""

    releases: tuple[str, ...]
    ours: Callable[[Path], AbstractContextManager[str]]
    options: tuple[str, ...]
    cold: Work
    cached: list[Work]


PROTOCOLS = [
    Protocol(
        ("0.7.0",),
        ours_nbd,
        ("--nbd",),
        Work("NBD cold nbdcopy", "MB/s", 1.5, COPY),
        [
            *(
                Work(
                    f"NBD cached 4 KiB, {jobs} x {depth}",
                    "reads/s",
                    3,
                    partial(random_reads, size=DISK_BYTES, jobs=jobs, depth=depth),
                )
                for jobs, depth in ((1, 16), (4, 16), (4, 64))
            ),
            Work("NBD cached 256 KiB", "MB/s", 3, partial(sequential_reads, size=DISK_BYTES)),
            Work("NBD cached nbdcopy", "MB/s", 3, COPY),
            Work("NBD 4 KiB of 32 MiB, 4 x 16", "reads/s", 0, partial(random_reads, size=SMALL, jobs=4, depth=16)),
        ],
    ),
    Protocol(
        ("0.8.2", "0.7.0"),
        ours_http,
        (),
        Work("HTTP cold curl, 16 MiB ranges", "MB/s", 1.3, partial(fetched_in_ranges, size=DISK_BYTES, piece=PIECE)),
        [
            *(
                Work(
                    f"HTTP cached {length >> 10} KiB, c{connections}",
                    "answers/s",
                    2,
                    partial(wrk, size=DISK_BYTES, length=length, connections=connections),
                )
                for length, connections in ((4 << 10, 1), (4 << 10, 16), (64 << 10, 4), (1 << 20, 4))
            ),
            Work("HTTP 4 KiB of 32 MiB, c16", "answers/s", 0, partial(wrk, size=SMALL, length=4 << 10, connections=16)),
        ],
    ),
]


def races(files: Files) -> Iterator[Race]:
    """Cold ones first; none of a protocol that no server of the original is there for."""
    there = []
    for protocol in PROTOCOLS:
        found = find_original(*protocol.releases)
        if found is None:
            print(f"the original's server {protocol.releases[0]} is missing: its rows are left out (make bench builds"
                  " it where there is cargo)")  # fmt: skip
        else:
            there.append((protocol, *found))
    for protocol, release, serving in there:
        starts = _starts(files, protocol, release, serving)
        yield _race(
            protocol.cold, release, {who: partial(cold, start, protocol.cold.client) for who, start in starts.items()}
        )
    for protocol, release, serving in there:
        with ExitStack() as stack:
            urls = {}
            for who, start in _starts(files, protocol, release, serving).items():
                urls[who] = stack.enter_context(start())
                protocol.cold.client(urls[who])
            for work in protocol.cached:
                race = _race(work, release, {who: partial(work.client, url) for who, url in urls.items()})
                yield race._replace(rounds=CACHED_ROUNDS)


def _starts(files: Files, protocol: Protocol, release: str, serving: Path) -> dict[str, Start]:
    starts: dict[str, Start] = {}
    for form, path in (("lz4", files.lz4), ("zstd", files.zstd)):
        starts[f"ours {form}"] = partial(protocol.ours, path)
        starts[f"hexz {release} {form}"] = partial(original, serving, path, *protocol.options)
    return starts


def _race(work: Work, release: str, contenders: dict[str, Callable[[], float]]) -> Race:
    pairs = [
        Pair(f"{work.name}, {form}", f"ours {form}", (f"hexz {release} {form}",), work.goal) for form in ("lz4", "zstd")
    ]
    return Race(work.unit, contenders, tuple(pairs))
