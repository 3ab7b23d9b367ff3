"""Thin snapshots as every known writer makes them, over bases of every kind of grid, against plain bytes.

Writers leave out a block in two ways.  Who commits changes cuts the stream on a grid and notes the hash of whatever
block of the parent covers the place.  Who deduplicates notes the hash of the bytes themselves, wherever the parents
have them.  The model below does both; the reader has to tell them apart by the file alone.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexz.snapshot import new_context, open_snapshot
from tests.crafted import Craft

pytestmark = pytest.mark.usefixtures("made_up_hashes")

NO_HASH = bytes(32)
STREAMS = {"main": "disk", "aux": "memory"}
UNIT = 25
"""Images are runs of this many equal bytes, so that equal blocks turn up at many places."""
BLOCK_SIZES = [50, 100, 75]


class Block(NamedTuple):
    """A block in the index: where it begins, how long it is, and what hash is noted for it."""

    start: int
    length: int
    digest: bytes


class Made(NamedTuple):
    """A snapshot that was written: its bytes and blocks by stream, the hashes stored in it, and its parents."""

    name: str
    kind: str
    block_size: int
    images: dict[str, bytes]
    blocks: dict[str, list[Block]]
    stored: frozenset[bytes]
    parents: list[Made]

    def known(self) -> frozenset[bytes]:
        """Every hash that is stored in it or in an ancestor."""
        return self.stored.union(*(parent.known() for parent in self.parents))

    def covering(self, stream: str, position: int) -> Block | None:
        """The block at a position."""
        return next((b for b in self.blocks[stream] if b.start <= position < b.start + b.length), None)


def digest_of(data: bytes) -> bytes:
    """Stands for BLAKE3, which nobody here computes."""
    return hashlib.blake2b(data, digest_size=32).digest()


class Writer:
    """One snapshot on its way: stores blocks, or notes that a parent has them."""

    def __init__(self, folder: Path, number: int, layout: str, block_size: int, parents: list[Made]) -> None:
        self.path = folder / f"{number}.hxz"
        self.craft = Craft(layout, block_size=block_size)
        self.craft.parents = [parent.name for parent in parents]
        self.parents = parents
        self.images = dict.fromkeys(STREAMS, b"")
        self.blocks: dict[str, list[Block]] = {stream: [] for stream in STREAMS}
        self.stored: set[bytes] = set()

    def add(self, stream: str, data: bytes, inherited: bytes | None, sparse: bool) -> None:
        """Add a block; `inherited` is the hash to note when a parent has it; `sparse` leaves zeros out."""
        digest = digest_of(data)
        if inherited is not None:
            self.craft.parent(len(data), inherited)
            digest = inherited
        elif sparse and not any(data):
            self.craft.zero(len(data))
            digest = NO_HASH
        else:
            self.craft.data(data, digest)
            if self.craft.layout == "A20":  # has no room for it
                digest = NO_HASH
            else:
                self.stored.add(digest)
        self.blocks[stream].append(Block(len(self.images[stream]), len(data), digest))
        self.images[stream] += data

    def end_page(self, stream: str) -> None:
        if self.craft.entries:
            self.craft.page(stream)

    def finish(self, kind: str = "") -> Made:
        self.craft.write(self.path)
        return Made(
            self.path.name, kind, self.craft.block_size, self.images, self.blocks, frozenset(self.stored), self.parents
        )


def image_of(source: random.Random) -> bytes:
    kinds = source.choice([5, 5, 250])
    units = [source.randrange(kinds) for _ in range(source.randrange(16))]
    return b"".join(bytes([unit]) * UNIT for unit in units) + b"t" * source.choice([0, 0, 1, 13])


def cuts(source: random.Random, size: int, block_size: int) -> list[int]:
    """Lengths of blocks that make up `size` bytes."""
    kind = source.choice(["grid", "segments", "off", "off", "any"])
    lengths: list[int] = []
    left = size
    if kind == "off":  # as after a small file in a tar: the same length, but not on the grid
        lengths.append(min(left, UNIT))
        left -= lengths[0]
    while left:
        segment = left if kind in ("grid", "off") else source.randint(1, left)
        left -= segment
        if kind == "any":
            lengths.append(segment)
        else:
            lengths += [min(block_size, segment - at) for at in range(0, segment, block_size)]
    return lengths


def base(source: random.Random, folder: Path, number: int) -> Made:
    """A snapshot without parents."""
    block_size = source.choice(BLOCK_SIZES)
    writer = Writer(folder, number, source.choice(["A52", "B52", "C52"]), block_size, [])
    sparse = source.random() < 0.5
    for stream in STREAMS:
        image, at = image_of(source), 0
        for length in cuts(source, len(image), block_size):
            writer.add(stream, image[at : at + length], None, sparse)
            at += length
            if source.random() < 0.2:
                writer.end_page(stream)
        writer.end_page(stream)
    return writer.finish()


def committed(source: random.Random, folder: Path, number: int, parent: Made) -> Made:
    """Changes on a grid; what was not changed is left to the same place of the parent."""
    block_size = source.choice([parent.block_size, parent.block_size, *BLOCK_SIZES])
    layout = source.choice(["B52", "B52", "A52", "A20"])
    writer = Writer(folder, number, layout, block_size, [parent])
    noted = layout != "A20" and source.random() < 0.75
    changes = source.choice([0, 0.1, 0.5])
    for stream in STREAMS:
        below = parent.images[stream]
        size = len(below) + source.choice([0, 0, 60])
        for start in range(0, size, block_size):
            length = min(block_size, size - start)
            if source.random() < changes:
                writer.add(stream, bytes([source.choice([0, 1, 255])]) * length, None, sparse=True)
            else:
                cover = parent.covering(stream, start)
                digest = cover.digest if cover is not None and noted else NO_HASH
                writer.add(stream, below[start : start + length].ljust(length, b"\0"), digest, sparse=True)
        writer.end_page(stream)
    return writer.finish()


def deduplicated(source: random.Random, folder: Path, number: int, parents: list[Made]) -> Made:
    """New content, of which the blocks that any ancestor has stored are left out, wherever they are."""
    block_size = source.choice([parents[0].block_size, *BLOCK_SIZES])
    writer = Writer(folder, number, source.choice(["B52", "C52"]), block_size, parents)
    known = frozenset[bytes]().union(*(parent.known() for parent in parents))
    sparse = source.random() < 0.5
    for stream in STREAMS:
        old, new = parents[0].images[stream], image_of(source)
        image, at = source.choice([new, old, old[UNIT:] + old[:UNIT], new + old]), 0
        for length in cuts(source, len(image), block_size):
            data = image[at : at + length]
            digest = digest_of(data)
            found = digest in known and not (sparse and not any(data))
            writer.add(stream, data, digest if found else None, sparse)
            at += length
        writer.end_page(stream)
    return writer.finish("deduplicated")


def moved_within_a_block(made: Made) -> bool:
    """The one kind of file that nobody can tell apart, and nobody makes: deduplicated and yet all on the grid, with
    every inherited block at a place where the parent has an equal one, but not beginning there."""
    if made.kind != "deduplicated":
        return False
    moved, size = False, made.block_size
    for stream, blocks in made.blocks.items():
        end = len(made.images[stream])
        inherited = [block for block in blocks if block.digest not in made.stored and block.digest != NO_HASH]
        if inherited and any(b.length > size or (b.length < size and b.start + b.length < end) for b in blocks):
            return False
        for block in inherited:
            supplier = next((p for p in made.parents if block.start < len(p.images[stream])), None)
            cover = supplier.covering(stream, block.start) if supplier is not None else None
            if cover is None or cover.digest != block.digest:
                return False
            moved = moved or cover.start != block.start
    return moved


def family_of(source: random.Random, folder: Path) -> list[Made]:
    """Two to five snapshots, each over any of those before it."""
    family = [base(source, folder, 0)]
    for number in range(1, source.randint(2, 5)):
        kind = source.choice(["base", "commit", "commit", "dedup", "dedup"])
        if kind == "base":
            made = base(source, folder, number)
        elif kind == "commit":
            made = committed(source, folder, number, source.choice(family))
        else:
            made = deduplicated(source, folder, number, source.sample(family, min(len(family), source.randint(1, 2))))
        if not moved_within_a_block(made):
            family.append(made)
    return family


@given(st.integers(0, 1 << 64))
@settings(max_examples=settings.default.max_examples * 10 if settings.default else 1000)
def test_thin_snapshots_read_like_plain_bytes(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    for made in family_of(source, tmp_path):
        with open_snapshot(str(tmp_path / made.name), new_context(1 << 20, workers=0)) as snapshot:
            for name, image in made.images.items():
                stream = snapshot.streams.get(STREAMS[name])
                assert (stream.size if stream is not None else 0) == len(image)
                if stream is None or not image:
                    continue
                offset = source.randrange(len(image))
                assert b"".join(stream.read(offset, len(image) - offset)) == image[offset:], made.name
                assert b"".join(stream.read(0, len(image))) == image, made.name
                cached = stream.read_cached(0, len(image))
                assert cached is None or b"".join(cached) == image
                at = 0
                for extent in stream.flat_extents(0, len(image)):
                    assert extent.start == at
                    at += extent.length
                    assert extent.kind != "zero" or not any(image[extent.start : at])
                assert at == len(image)
