"""Builds snapshots of every layout by hand, right or wrong in any field: what the package's own writer never does."""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lz4.block
import pytest
import zstandard

from hexz.errors import HexzError
from hexz.snapshot import OpenContext, Snapshot, Stream, new_context, open_snapshot
from tests.bounds import little_memory

PARENT = (1 << 64) - 1
PAGE_ENTRIES = 4096


class Record(NamedTuple):
    """Where a page is said to be, and what it is said to begin with."""

    offset: int
    length: int
    first_block: int
    position: int


def option(form: str, value: object) -> bytes:
    """A tag, and the value if there is one."""
    return b"\0" if value is None else b"\1" + struct.pack(form, value)


class Craft:
    """A file under construction; every attribute may be changed before `finish`."""

    def __init__(self, layout: str = "B52", compression: str = "lz4", block_size: int = 4096) -> None:
        self.layout = layout
        self.compression = compression
        self.block_size = block_size
        self.parents: list[str] = []
        self.body = bytearray()
        self.dictionary: tuple[int | None, int | None] = (None, None)
        self.metadata: bytes | None = None
        self.metadata_place: tuple[int | None, int | None] | None = None
        self.encryption: tuple[bytes, int] | None = None
        self.key: bytes | None = None
        self.trained: bytes | None = None
        self.pages: dict[str, list[Record]] = {"main": [], "aux": []}
        self.sizes = {"main": 0, "aux": 0}
        self.blocks = 0
        self.entries: list[bytes] = []
        self.parent_count: int | None = None
        self.page_counts: dict[str, int] = {}
        self.index_offset: int | None = None
        self.flags: tuple[int, int, int] | None = None

    @property
    def end(self) -> int:
        """Where the next stored piece comes."""
        return 4096 + len(self.body)

    def store(self, data: bytes) -> int:
        """Put bytes into the file; their offset."""
        offset = self.end
        self.body += data
        return offset

    def train(self, dictionary: bytes) -> None:
        """Store a dictionary, and compress the blocks to come with it."""
        self.dictionary = self.store(dictionary), len(dictionary)
        self.trained = dictionary

    def encrypt(self, password: bytes, salt: bytes = b"0123456789abcdef", iterations: int = 1) -> None:
        """Encrypt the blocks to come."""
        self.encryption = salt, iterations
        self.key = hashlib.pbkdf2_hmac("sha256", password, salt, iterations, 32)

    def encode(self, plain: bytes) -> bytes:
        """The stored form of a block, as the next block of the file."""
        if self.compression == "lz4":
            stored = lz4.block.compress(plain, store_size=True)
        else:
            trained = zstandard.ZstdCompressionDict(self.trained) if self.trained else None
            stored = zstandard.ZstdCompressor(dict_data=trained, write_content_size=False).compress(plain)
        if self.key is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            number = self.blocks + len(self.entries)
            stored = AESGCM(self.key).encrypt(bytes(4) + number.to_bytes(8, "big"), stored, None)
        return stored

    def entry(self, offset: int, stored: int, logical: int, crc: int = 0, digest: bytes = bytes(32)) -> None:
        """Append an entry with these fields to the page."""
        packed = struct.pack("<QIII", offset, stored, logical, crc)
        self.entries.append(packed + (digest if self.layout.endswith("52") else b""))

    def data(self, plain: bytes, digest: bytes = bytes(32)) -> None:
        """A block as it should be."""
        self.raw(self.encode(plain), len(plain), digest)

    def raw(self, stored: bytes, logical: int, digest: bytes = bytes(32)) -> None:
        """A block of these stored bytes, whatever they are, with the right CRC."""
        self.entry(self.store(stored), len(stored), logical, zlib.crc32(stored), digest)

    def zero(self, logical: int) -> None:
        """A block of zeros."""
        self.entry(0, 0, logical)

    def parent(self, logical: int, digest: bytes = bytes(32)) -> None:
        """A block that a parent has."""
        self.entry(PARENT, 0, logical, 0, digest)

    def page(self, stream: str = "main") -> Record:
        """End the page: store it and list it."""
        logical = sum(struct.unpack_from("<I", packed, 12)[0] for packed in self.entries)
        raw = struct.pack("<Q", len(self.entries)) + b"".join(self.entries)
        record = Record(self.store(raw), len(raw), self.blocks, self.sizes[stream])
        self.pages[stream].append(record)
        self.sizes[stream] += logical
        self.blocks += len(self.entries)
        self.entries = []
        return record

    def header(self, index_offset: int, index_end: int) -> bytes:
        """The first 4096 bytes."""
        parts = [struct.pack("<4sIIQ", b"HEXZ", 1, self.block_size, index_offset)]
        paths = [struct.pack("<Q", len(path.encode())) + path.encode() for path in self.parents]
        if self.layout[0] == "A":
            parts += [b"\1" + paths[0] if paths else b"\0"]
        else:
            count = len(paths) if self.parent_count is None else self.parent_count
            parts += [struct.pack("<Q", count), *paths]
        metadata = self.metadata_place
        if metadata is None:
            metadata = (None, None) if self.metadata is None else (index_end, len(self.metadata))
        for offset, length in (self.dictionary, metadata, (None, None)):
            parts += [option("<Q", offset), option("<I", length)]
        parts.append(b"\0" if self.encryption is None else b"\1" + struct.pack("<16sI", *self.encryption))
        parts.append(struct.pack("<I", 0 if self.compression == "lz4" else 1))
        flags = self.flags or (bool(self.pages["main"]), bool(self.pages["aux"]), 0)
        parts.append(bytes(flags))
        if self.layout[0] == "C":
            parts.append(b"\1" + struct.pack("<III", 12, 2048, 8192))
        return b"".join(parts).ljust(4096, b"\0")

    def finish(self) -> bytes:
        """The file's bytes."""
        index = bytearray()
        for stream in ("main", "aux"):
            records = self.pages[stream]
            index += struct.pack("<Q", self.page_counts.get(stream, len(records)))
            for record in records:
                index += struct.pack("<QIQQ", *record)
        index += struct.pack("<QQ", self.sizes["main"], self.sizes["aux"])
        offset = self.end if self.index_offset is None else self.index_offset
        header = self.header(offset, self.end + len(index))
        return header + bytes(self.body) + bytes(index) + (self.metadata or b"")

    def write(self, path: Path) -> Path:
        """The file itself."""
        path.write_bytes(self.finish())
        return path


LAYOUTS = ["A20", "A52", "B52", "C52"]


def small() -> OpenContext:
    return new_context(1 << 20)


@contextmanager
def opened(craft: Craft, folder: Path, context: OpenContext | None = None) -> Iterator[Snapshot]:
    with little_memory(), open_snapshot(str(craft.write(folder / "t.hxz")), context or small()) as snapshot:
        yield snapshot


def disk(snapshot: Snapshot) -> Stream:
    return snapshot.streams["disk"]


def refused(craft: Craft, folder: Path, words: str = "") -> None:
    """The file is refused when it is opened, or when any of it is read."""
    began = time.process_time()
    with pytest.raises(HexzError, match=words or None):
        with opened(craft, folder) as snapshot:
            for stream in snapshot.streams.values():
                stream.read(0, min(stream.size, 1 << 20))
    assert time.process_time() - began < 5


def child_of(folder: Path, name: str, *parents: str, layout: str = "B52") -> Path:
    craft = Craft(layout)
    craft.parents = list(parents)
    if parents:
        craft.parent(100)
    else:
        craft.data(b"p" * 100)
    craft.page()
    return craft.write(folder / name)
