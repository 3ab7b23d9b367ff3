"""The reader against the bare codecs, cached reads, and opening a terabyte.

The bare codec keeps what it decompresses, as a server must, in as much memory as
the reader has; «verified» is the least that a reader does for each block: read
it from the file, check its CRC, decompress it.  Contenders take turns, rounds
are repeated, medians are shown.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

import lz4.block
import zstandard

from hexz.format.header import Compression, Header, Variant, build_header
from hexz.format.index import BlockEntry, PageRecord, build_master_index, build_page
from hexz.snapshot import Stream, new_context, open_snapshot
from hexz.tools.pack import pack
from hexz.tools.seal import seal
from tests.benchmarks.report import Row

IMAGE_BYTES = 192 << 20
BLOCK_BYTES = 64 << 10
CACHE_BYTES = 64 << 20
PIECE = 1 << 20
ROUNDS = 5
CACHED_READS = 200_000
TERABYTE = 1 << 40

Decode = Callable[[bytes], bytes]


def image(path: Path) -> None:
    """Half words, half noise, no zeros, no repeats: every block costs the same."""
    source = random.Random(1)
    words = [bytes(source.choices(b"abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) + b" " for _ in range(3000)]
    with path.open("wb") as file:
        for _ in range(IMAGE_BYTES // BLOCK_BYTES):
            text = b"".join(source.choices(words, k=BLOCK_BYTES // 12))[: BLOCK_BYTES // 2]
            file.write(text + source.randbytes(BLOCK_BYTES - len(text)))


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


def bare_with_two_threads(codec: str, blocks: list[bytes]) -> None:
    threads = [threading.Thread(target=bare, args=(codec, blocks[first::2])) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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


def megabytes_a_second(contenders: dict[str, Callable[[], None]]) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            samples[name].append(IMAGE_BYTES / 1e6 / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in samples.items()}


def cold_rows(codec: str, path: Path) -> list[Row]:
    places = stored_blocks(path)
    sealed = path.with_name(f"sealed-{path.name}")
    os.link(path, sealed)
    seal(str(sealed))
    with path.open("rb") as file:
        blocks = [file.seek(offset) and file.read(length) for offset, length in places]
    figures = megabytes_a_second(
        {
            "codec": lambda: bare(codec, blocks),
            "codec, 2 threads": lambda: bare_with_two_threads(codec, blocks),
            "verified": lambda: verified(codec, path, places),
            "reader, 1 thread": lambda: sequential(path, 0),
            "reader": lambda: sequential(path, 1),
            "sealed, 1 thread": lambda: sequential(sealed, 0),
            "sealed": lambda: sequential(sealed, 1),
        }
    )
    one, two = figures["reader, 1 thread"], figures["reader"]
    work = f"cold sequential, {codec}"
    return [
        Row(f"{work}, one thread", "MB/s", figures, one / figures["codec"], 0.9, "codec, one thread"),
        Row(f"{work}, one thread", "MB/s", {}, one / figures["verified"], 0, "codec, CRC and file read"),
        Row(f"{work}, two threads", "MB/s", {}, two / figures["codec"], 1.6, "codec, one thread"),
        Row(f"{work}, two threads", "MB/s", {}, two / figures["codec, 2 threads"], 0, "codec, two threads"),
        Row(f"{work}, sealed, one thread", "MB/s", {}, figures["sealed, 1 thread"] / one, 0, "reader without a seal"),
        Row(f"{work}, sealed, two threads", "MB/s", {}, figures["sealed"] / two, 0, "reader without a seal"),
    ]


def cached_row(path: Path) -> Row:
    with open_snapshot(str(path), new_context(IMAGE_BYTES * 2)) as snapshot:
        stream = disk(snapshot.disk)
        for offset in range(0, stream.size, PIECE):
            stream.read(offset, PIECE)
        source = random.Random(2)
        offsets = [source.randrange(stream.size // 4096) * 4096 for _ in range(CACHED_READS)]
        samples = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for offset in offsets:
                stream.read_cached(offset, 4096)
            samples.append(CACHED_READS / (time.perf_counter() - began))
    rate = statistics.median(samples)
    return Row("cached 4 KiB random reads", "reads/s", {"reader": rate}, rate / 1e6, 0, "1 million a second")


def terabyte(path: Path) -> None:
    """A sparse file with the whole index of 1 TiB in blocks of 64 KiB, and one block of data."""
    block = lz4.block.compress(bytes(range(256)) * 256, store_size=True)
    entry = BlockEntry(4096, len(block), BLOCK_BYTES, zlib.crc32(block), bytes(32))
    page = build_page([entry] * 4096)
    records = []
    with path.open("wb") as file:
        file.seek(4096)
        file.write(block)
        position = 4096 + len(block)
        for number in range(TERABYTE // (4096 * BLOCK_BYTES)):
            records.append(PageRecord(position, len(page), number * 4096, number * 4096 * BLOCK_BYTES))
            if not number:
                file.write(page)
            position += len(page)
        file.seek(position)
        file.write(build_master_index(records, [], TERABYTE, 0))
        file.seek(0)
        file.write(build_header(Header(Variant.BC, BLOCK_BYTES, position, (), None, None, None, None, Compression.LZ4,
                                       True, False, False, None)))  # fmt: skip


OPEN = """
import sys, time
from hexz.snapshot import new_context, open_snapshot

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])

before = resident()
began = time.perf_counter()
snapshot = open_snapshot(sys.argv[1], new_context())
snapshot.disk.read(100_000, 4096)
print((time.perf_counter() - began) * 1e3, (resident() - before) / 1024)
"""


def open_rows(path: Path) -> list[Row]:
    terabyte(path)
    runs = [
        tuple(
            map(
                float,
                subprocess.run(
                    [sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True
                ).stdout.split(),
            )
        )
        for _ in range(ROUNDS)
    ]
    took, memory = (statistics.median(values) for values in zip(*runs))
    return [
        Row("open 1 TiB, read 4 KiB: time", "ms", {"reader": took}, took / 50, 1.0, "50 ms", at_most=True),
        Row("open 1 TiB, read 4 KiB: memory", "MiB", {"reader": memory}, memory / 30, 1.0, "30 MiB", at_most=True),
    ]


def measure() -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        image(raw)
        rows = []
        for codec in ("lz4", "zstd"):
            packed = folder / f"{codec}.hxz"
            pack(str(raw), str(packed), compression=codec, block_size=BLOCK_BYTES)
            rows += cold_rows(codec, packed)
        rows.append(cached_row(packed))
        rows += open_rows(folder / "terabyte.hxz")
    return rows
