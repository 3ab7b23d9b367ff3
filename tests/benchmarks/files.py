"""The images of a run, each made when it is first asked for."""

from __future__ import annotations

import random
import zlib
from functools import cached_property
from pathlib import Path

import lz4.block

from hexz.format.header import Compression, Header, Variant, build_header
from hexz.format.index import BlockEntry, PageRecord, build_master_index, build_page
from hexz.tools.pack import pack
from tests.benchmarks.clients import run

__all__ = ["BLOCK_BYTES", "DISK_BYTES", "EVEN_BYTES", "Files", "sparse_snapshot"]

BLOCK_BYTES = 64 << 10
DISK_BYTES = 256 << 20
EVEN_BYTES = 192 << 20
SECTORS = 4096
PAGE_BLOCKS = 4096
ROOTS = [Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share")]
START = 4096
"""Where the first block of a file is."""


class Files:
    """In one folder; two images, each in several forms."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def raw(self) -> Path:
        """What disks hold: the programs, libraries and texts of this machine, file after file."""
        path = self.folder / "disk.raw"
        left = DISK_BYTES
        with path.open("wb") as out:
            for found in sorted(found for root in ROOTS for found in root.rglob("*")):
                if left and found.is_file() and not found.is_symlink():
                    content = found.read_bytes()
                    content = (content + bytes(-len(content) % SECTORS))[:left]
                    out.write(content)
                    left -= len(content)
        if left:
            raise RuntimeError(f"{' '.join(map(str, ROOTS))} have less than {DISK_BYTES >> 20} MiB")
        return path

    @cached_property
    def lz4(self) -> Path:
        """The disk as a snapshot."""
        return self._packed(self.raw, "lz4")

    @cached_property
    def zstd(self) -> Path:
        """The disk as a snapshot."""
        return self._packed(self.raw, "zstd")

    @cached_property
    def qcow2(self) -> Path:
        """The disk for qemu, with zstd."""
        path = self.folder / "disk.qcow2"
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", self.raw, path)
        return path

    @cached_property
    def even(self) -> Path:
        """Half words, half noise, no zeros, no repeats: every block costs the same."""
        path = self.folder / "even.raw"
        source = random.Random(1)
        words = [
            bytes(source.choices(b"abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) + b" " for _ in range(3000)
        ]
        with path.open("wb") as file:
            for _ in range(EVEN_BYTES // BLOCK_BYTES):
                text = b"".join(source.choices(words, k=BLOCK_BYTES // 12))[: BLOCK_BYTES // 2]
                file.write(text + source.randbytes(BLOCK_BYTES - len(text)))
        return path

    @cached_property
    def even_lz4(self) -> Path:
        """The even image as a snapshot."""
        return self._packed(self.even, "lz4")

    @cached_property
    def even_zstd(self) -> Path:
        """The even image as a snapshot."""
        return self._packed(self.even, "zstd")

    def _packed(self, raw: Path, codec: str) -> Path:
        path = raw.with_name(f"{raw.stem}-{codec}.hxz")
        pack(str(raw), str(path), compression=codec, block_size=BLOCK_BYTES)
        return path


def sparse_snapshot(path: Path, size: int) -> None:
    """A sparse file with the whole index of `size` bytes in blocks of 64 KiB; its first and last pages are there.

    All entries of these pages are of the one block that is stored.
    """
    block = lz4.block.compress(bytes(range(256)) * (BLOCK_BYTES // 256), store_size=True)
    entry = BlockEntry(START, len(block), BLOCK_BYTES, zlib.crc32(block), bytes(32))
    page = build_page([entry] * PAGE_BLOCKS)
    count = size // (PAGE_BLOCKS * BLOCK_BYTES)
    first = START + len(block)
    places = [
        PageRecord(first + number * len(page), len(page), number * PAGE_BLOCKS, number * PAGE_BLOCKS * BLOCK_BYTES)
        for number in range(count)
    ]
    end = first + count * len(page)
    with path.open("wb") as file:
        file.seek(START)
        file.write(block)
        for place in (places[0], places[-1]):
            file.seek(place.offset)
            file.write(page)
        file.seek(end)
        file.write(build_master_index(places, [], size, 0))
        file.seek(0)
        file.write(build_header(Header(Variant.BC, BLOCK_BYTES, end, (), None, None, None, None, Compression.LZ4,
                                       True, False, False, None)))  # fmt: skip
