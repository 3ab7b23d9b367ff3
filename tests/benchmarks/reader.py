"""The reader without any server: against the least loop, cached reads, and opening a terabyte.

The bare codec keeps what it decompresses, as a server must, in as much memory as the reader has; «verified» is the
least that a reader does for each block: read it from the file, check its CRC, decompress it, in one thread.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lz4.block
import zstandard

from hexz.snapshot import Stream, new_context, open_snapshot
from hexz.tools.seal import seal
from tests.benchmarks.files import BLOCK_BYTES, EVEN_BYTES, Files, sparse_snapshot
from tests.benchmarks.race import Pair, Race

CACHE_BYTES = 64 << 20
PIECE = 1 << 20
CACHED_READS = 200_000
CACHED_GOAL = 1e6
"""Reads a second, for information."""
OPEN_MS, OPEN_MIB = 50.0, 30.0
"""What opening a terabyte and reading 4 KiB may take."""

Decode = Callable[[bytes], bytes]


def decoder(codec: str) -> Decode:
    if codec == "lz4":
        return lz4.block.decompress  # type: ignore[no-any-return]
    decompressor = zstandard.ZstdDecompressor()
    return lambda stored: decompressor.decompress(stored, max_output_size=BLOCK_BYTES)


def stored_blocks(path: Path) -> list[tuple[int, int]]:
    with open_snapshot(str(path), new_context(CACHE_BYTES, workers=0)) as snapshot:
        assert snapshot.disk is not None
        return [
            (page.stored_offset(number), page.stored[number])
            for page in snapshot.disk.pages.each()
            for number in range(page.count)
        ]


def bare(codec: str, blocks: list[bytes]) -> None:
    decode = decoder(codec)
    kept: deque[bytes] = deque(maxlen=CACHE_BYTES // BLOCK_BYTES)
    for block in blocks:
        kept.append(decode(block))


def verified(codec: str, path: Path, places: list[tuple[int, int]]) -> None:
    decode = decoder(codec)
    kept: deque[bytes] = deque(maxlen=CACHE_BYTES // BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        for offset, length in places:
            file.seek(offset)
            stored = file.read(length)
            zlib.crc32(stored)
            kept.append(decode(stored))


def sequential(path: Path, workers: int) -> None:
    context = new_context(CACHE_BYTES, workers=workers)
    with open_snapshot(str(path), context) as snapshot:
        stream = disk(snapshot.disk)
        for offset in range(0, stream.size, PIECE):
            stream.read(offset, min(PIECE, stream.size - offset))
    context.workers.stop()


def disk(stream: Stream | None) -> Stream:
    assert stream is not None
    return stream


def rate(size: int, work: Callable[[], None]) -> float:
    """Megabytes a second of something that goes through `size` bytes."""
    began = time.perf_counter()
    work()
    return size / 1e6 / (time.perf_counter() - began)


def cold_race(codec: str, path: Path, goal: float) -> Race:
    places = stored_blocks(path)
    sealed = path.with_name(f"sealed-{path.name}")
    os.link(path, sealed)
    seal(str(sealed))
    content = path.read_bytes()
    blocks = [content[offset : offset + length] for offset, length in places]
    works: dict[str, Callable[[], None]] = {
        "codec": partial(bare, codec, blocks),
        "verified": partial(verified, codec, path, places),
        "one thread": partial(sequential, path, 0),
        "with a worker": partial(sequential, path, 1),
        "sealed": partial(sequential, sealed, 1),
    }
    name = f"reader cold sequential, {codec}"
    return Race(
        "MB/s",
        {who: partial(rate, EVEN_BYTES, work) for who, work in works.items()},
        (
            Pair(f"{name}, with a worker", "with a worker", ("verified",), goal),
            Pair(f"{name}, with a worker", "with a worker", ("codec",)),
            Pair(f"{name}, one thread", "one thread", ("verified",)),
            Pair(f"{name}, with a seal", "sealed", ("with a worker",)),
        ),
    )


def cached_race(path: Path) -> Iterator[Race]:
    with open_snapshot(str(path), new_context(EVEN_BYTES * 2)) as snapshot:
        stream = disk(snapshot.disk)
        for offset in range(0, stream.size, PIECE):
            stream.read(offset, PIECE)
        source = random.Random(2)
        offsets = [source.randrange(stream.size // 4096) * 4096 for _ in range(CACHED_READS)]

        def reads() -> float:
            began = time.perf_counter()
            for offset in offsets:
                stream.read_cached(offset, 4096)
            return CACHED_READS / (time.perf_counter() - began)

        wished = {"a million": lambda: CACHED_GOAL}
        yield Race("reads/s", {"reader": reads, **wished}, (Pair("reader cached 4 KiB", "reader", ("a million",)),))


OPEN = """
import sys, time
from hexz.snapshot import new_context, open_snapshot

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])

before = resident()
began = time.perf_counter()
snapshot = open_snapshot(sys.argv[1], new_context())
opened = time.perf_counter()
snapshot.disk.read(snapshot.disk.size - 100_000, 4096)
print((opened - began) * 1e3, (time.perf_counter() - opened) * 1e3, (resident() - before) / 1024)
"""


def opened(path: Path) -> tuple[float, float, float]:
    """Milliseconds to open it, milliseconds of the first read near the end, and MiB that both cost."""
    out = subprocess.check_output([sys.executable, "-c", OPEN, str(path)], text=True)
    opening, reading, memory = map(float, out.split())
    return opening, reading, memory


def races(files: Files) -> Iterator[Race]:
    """All of them."""
    yield cold_race("lz4", files.even_lz4, 1.6)
    yield cold_race("zstd", files.even_zstd, 1.7)
    yield from cached_race(files.even_zstd)
    terabyte = files.folder / "terabyte.hxz"
    sparse_snapshot(terabyte, 1 << 40)
    name = "open 1 TiB, read 4 KiB"
    time_race = {"reader": lambda: sum(opened(terabyte)[:2]), "the bound": lambda: OPEN_MS}
    yield Race("ms", time_race, (Pair(f"{name}: time", "reader", ("the bound",), 1),))
    memory_race = {"reader": lambda: opened(terabyte)[2], "the bound": lambda: OPEN_MIB}
    yield Race("MiB", memory_race, (Pair(f"{name}: memory", "reader", ("the bound",), 1),))
