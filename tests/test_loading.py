"""What `Stream.load` does: a span's blocks are in the cache afterwards, or its trouble is the one that a read has."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hexz.errors import BlockError
from hexz.snapshot import Stream, new_context, open_snapshot
from hexz.snapshot.stored import StoredFile
from tests.crafted import Craft

pytestmark = pytest.mark.usefixtures("made_up_hashes")
SIZE = 64 * 512


def block(number: int) -> bytes:
    return bytes((number * 37 + at // 7) % 251 + 1 for at in range(512))


def digest(number: int) -> bytes:
    return bytes([number + 1]) * 32


def base(folder: Path) -> Path:
    craft = Craft(block_size=512)
    for number in range(64):
        craft.data(block(number), digest(number))
    craft.page()
    return craft.write(folder / "base.hxz")


def at_the_same_place(folder: Path) -> Path:
    base(folder)
    craft = Craft(block_size=512)
    craft.parents = ["base.hxz"]
    for number in range(64):
        if number % 3:
            craft.parent(512)
        else:
            craft.data(block(number + 64))
    craft.page()
    return craft.write(folder / "child.hxz")


def by_content(folder: Path) -> Path:
    base(folder)
    craft = Craft(block_size=512)
    craft.parents = ["base.hxz"]
    for number in range(64):
        craft.parent(512, digest(63 - number))
    craft.page()
    return craft.write(folder / "child.hxz")


def without_pages(folder: Path) -> Path:
    base(folder)
    craft = Craft(block_size=512)
    craft.parents = ["base.hxz"]
    craft.sizes["main"] = SIZE
    return craft.write(folder / "child.hxz")


FAMILIES = [base, at_the_same_place, by_content, without_pages]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_what_was_loaded_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Callable[[Path], Path]
) -> None:
    path = str(family(tmp_path))
    with open_snapshot(path, new_context(1 << 20, workers=0)) as snapshot:
        image = b"".join(snapshot.streams["disk"].read(0, SIZE))
    decoded: list[int] = []
    decode = StoredFile.decode

    def counted(self: StoredFile, stored: bytes, length: int, crc: int, number: int) -> bytes:
        decoded.append(number)
        return decode(self, stored, length, crc, number)

    monkeypatch.setattr(StoredFile, "decode", counted)
    source = random.Random(5)
    for _ in range(20):
        offset = source.randrange(SIZE)
        length = source.randint(1, min(5000, SIZE - offset))
        with open_snapshot(path, new_context(1 << 20, workers=0)) as snapshot:
            disk = snapshot.streams["disk"]
            decoded.clear()
            disk.load(offset, length)
            touched = (offset + length - 1) // 512 - offset // 512 + 1
            assert len(decoded) == touched  # and none beside them
            assert b"".join(disk.read(offset, length)) == image[offset : offset + length]
            disk.load(offset, length)
            assert len(decoded) == touched


@pytest.mark.parametrize("cache", [1, 1 << 20], ids=["larger than the cache", "not larger"])
def test_a_damaged_block_is_the_trouble_that_a_read_has(tmp_path: Path, cache: int) -> None:
    path = at_the_same_place(tmp_path)
    with open_snapshot(str(tmp_path / "base.hxz"), new_context(1 << 20, workers=0)) as snapshot:
        place = snapshot.streams["disk"].pages.read(0).stored_offset(7)
    data = bytearray((tmp_path / "base.hxz").read_bytes())
    data[place] ^= 1
    (tmp_path / "base.hxz").write_bytes(data)

    def trouble(method: Callable[[Stream, int, int], object]) -> str:
        with open_snapshot(str(path), new_context(cache, workers=0)) as snapshot:
            disk = snapshot.streams["disk"]
            method(disk, 0, 7 * 512)
            with pytest.raises(BlockError) as raised:
                method(disk, 0, SIZE)
            return str(raised.value)

    assert trouble(Stream.load) == trouble(Stream.read)
