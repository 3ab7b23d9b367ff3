"""What thin snapshots take from their parents: which blocks, of how many generations, and at what cost."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from hexz.errors import BlockError, CorruptSnapshot
from hexz.format.index import Page
from hexz.snapshot import Opener, new_context, open_snapshot
from hexz.snapshot.opening import MAX_CHAIN
from tests.crafted import PAGE_ENTRIES, Craft
from tests.peers import ROOT

pytestmark = pytest.mark.usefixtures("made_up_hashes")


def name(number: int) -> bytes:
    """The hash that block `number` is recorded with; any 32 bytes will do, since nobody computes it again."""
    return struct.pack("<QQQQ", number + 1, 7, 7, 7)


def read(path: Path) -> bytes:
    with open_snapshot(str(path), new_context(1 << 20, workers=0)) as snapshot:
        disk = snapshot.streams["disk"]
        return b"".join(disk.read(0, disk.size))


def base_of(folder: Path, lengths: list[int]) -> tuple[bytes, list[int]]:
    """`base.hxz` with data blocks of these lengths, each recorded with `name` of its number; bytes and block starts."""
    craft = Craft()
    image, starts = b"", []
    for number, length in enumerate(lengths):
        starts.append(len(image))
        block = bytes((number * 37 + at // 7) % 251 + 1 for at in range(length))
        craft.data(block, name(number))
        image += block
    craft.page()
    craft.write(folder / "base.hxz")
    return image, starts


def covering(starts: list[int], position: int) -> bytes:
    return name(max(number for number, start in enumerate(starts) if start <= position))


@pytest.mark.parametrize("lengths", [[100, 4096, 4096, 4096], [4096, 1, 4096, 4096, 4096], [4096] * 4], ids=str)
def test_blocks_on_the_grid_over_blocks_off_it_are_read_by_place(tmp_path: Path, lengths: list[int]) -> None:
    """All lengths are alike and all hashes are found, so only the places tell that these are not the contents."""
    image, starts = base_of(tmp_path, lengths)
    child = Craft()
    child.parents = ["base.hxz"]
    child.data(b"C" * 4096, name(1000))
    for position in (4096, 8192):
        child.parent(4096, covering(starts, position))
    child.page()
    assert read(child.write(tmp_path / "child.hxz")) == b"C" * 4096 + image[4096:12288]


def test_blocks_that_moved_are_read_by_content(tmp_path: Path) -> None:
    image, _ = base_of(tmp_path, [4096] * 3)
    child = Craft()
    child.parents = ["base.hxz"]
    for number in (0, 2, 1):
        child.parent(4096, name(number))
    child.page()
    assert read(child.write(tmp_path / "child.hxz")) == image[:4096] + image[8192:] + image[4096:8192]


def test_blocks_off_the_grid_are_read_by_content(tmp_path: Path) -> None:
    """Their hashes are those of the parent's blocks there, but whoever commits by place cuts on a grid."""
    image, starts = base_of(tmp_path, [100, 4096, 4096])
    child = Craft()
    child.parents = ["base.hxz"]
    child.data(b"C" * 200, name(1000))
    child.parent(4096, covering(starts, 200))
    child.data(b"C" * 10, name(1001))
    child.page()
    assert read(child.write(tmp_path / "child.hxz")) == b"C" * 200 + image[100:4196] + b"C" * 10


def test_one_stream_off_the_grid_decides_for_the_file(tmp_path: Path) -> None:
    image, _ = base_of(tmp_path, [100, 4096, 4096])
    child = Craft()
    child.parents = ["base.hxz"]
    child.parent(4096, name(1))
    child.page()
    child.data(b"M" * 50)
    child.parent(4096, name(2))
    child.data(b"M" * 50)
    child.page("aux")
    with open_snapshot(str(child.write(tmp_path / "child.hxz")), new_context(1 << 20, workers=0)) as snapshot:
        disk, memory = snapshot.streams["disk"], snapshot.streams["memory"]
        assert b"".join(disk.read(0, disk.size)) == image[100:4196]
        assert b"".join(memory.read(0, memory.size)) == b"M" * 50 + image[4196:] + b"M" * 50


def test_a_chain_that_is_opened_from_its_base_on_is_no_longer_than_any_other(tmp_path: Path) -> None:
    opener = Opener(new_context(1 << 20, workers=0))
    held = []
    for number in range(MAX_CHAIN + 1):
        craft = Craft()
        if number:
            craft.parents = [f"{number - 1}.hxz"]
            craft.parent(4096)
        else:
            craft.data(b"b" * 4096)
        craft.page()
        path = str(craft.write(tmp_path / f"{number}.hxz"))
        if number == MAX_CHAIN:
            with pytest.raises(CorruptSnapshot, match=rf"{number}\.hxz: too many parents: at most {MAX_CHAIN} deep"):
                opener.open(path)
        else:
            held.append(opener.open(path))
    assert b"".join(held[-1].streams["disk"].read(0, 4096)) == b"b" * 4096
    for snapshot in held:
        snapshot.close()


def test_ancestors_that_are_open_already_count(tmp_path: Path) -> None:
    opener = Opener(new_context(1 << 20, workers=0))
    held = []

    def opened(file: str, parents: list[str]) -> None:
        craft = Craft()
        craft.parents = parents
        craft.data(b"b" * 10)
        craft.page()
        held.append(opener.open(str(craft.write(tmp_path / file))))

    for first in (0, 100, 200):
        for number in range(first, first + 90):
            opened(f"{number}.hxz", [])
        opened(f"all{first}.hxz", [f"{number}.hxz" for number in range(first, first + 90)])
    opened("two.hxz", ["all0.hxz", "all100.hxz"])
    with pytest.raises(CorruptSnapshot, match=r"three\.hxz: too many parents: at most 64 deep and 256 in all"):
        opened("three.hxz", ["all0.hxz", "all100.hxz", "all200.hxz"])
    for snapshot in held:
        snapshot.close()


@pytest.mark.parametrize("front, back", [(b"AAAA", bytes(20)), (bytes(20), b"AAAA"), (b"A" * 12, b"B" * 12)])
def test_hashes_that_are_nearly_alike_are_told_apart_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: bytes, back: bytes
) -> None:
    """A search looks at few blocks, however many there are that begin or end like the one that is wanted."""

    def digest(number: int) -> bytes:
        return front + struct.pack("<Q", number) + back

    base, child = Craft(), Craft()
    stored = base.encode(b"x" * 512)
    place = base.store(stored)
    for number in range(PAGE_ENTRIES):
        base.entry(place, len(stored), 512, zlib.crc32(stored), digest(number))
    base.page()
    base.write(tmp_path / "base.hxz")
    child.parents = ["base.hxz"]
    for number in range(64):
        child.parent(512, digest(number if number == 1 else 1_000_000 + number))
    child.page()
    looked: list[int] = []
    original = Page.hash
    with open_snapshot(str(child.write(tmp_path / "child.hxz")), new_context(8 << 20, workers=0)) as snapshot:
        snapshot.parents[0].lineage.hash_index()
        monkeypatch.setattr(Page, "hash", lambda page, entry: looked.append(entry) or original(page, entry))
        assert b"".join(snapshot.streams["disk"].read(512, 512)) == b"x" * 512
        with pytest.raises(BlockError, match="is in no parent"):
            snapshot.streams["disk"].read(1024, 512)
    assert len(looked) < PAGE_ENTRIES


def test_the_order_of_a_hash_index_cannot_be_foreseen() -> None:
    """Neither where the interpreter's own hashes are the same in each process."""
    script = "from hexz.snapshot.hashes import _key; print(_key(bytes(range(32))))"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    keys = {subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment) for _ in range(3)}
    assert len(keys) > 1
