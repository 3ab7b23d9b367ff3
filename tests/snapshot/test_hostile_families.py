"""Parents in circles, chains, crowds and forbidden places, and keys that take hours: an error, soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hexz.errors import BlockError, CorruptSnapshot, HexzError, ParentMissing, ParentRefused
from hexz.snapshot import new_context, open_snapshot, opening
from tests.bounds import little_memory
from tests.crafted import LAYOUTS, Craft, child_of, disk, opened, refused, small

# Parents.


def test_a_file_that_is_its_own_parent(tmp_path: Path) -> None:
    for layout in ("A52", "B52"):
        path = child_of(tmp_path, "self.hxz", "self.hxz", layout=layout)
        with little_memory(), pytest.raises(CorruptSnapshot, match="circle"):
            open_snapshot(str(path), small())


def test_parents_in_a_circle(tmp_path: Path) -> None:
    for number in range(5):
        path = child_of(tmp_path, f"{number}.hxz", f"{(number + 1) % 5}.hxz")
    with little_memory(), pytest.raises(CorruptSnapshot, match="circle"):
        open_snapshot(str(path), small())


@pytest.mark.parametrize("generations, right", [(64, True), (65, False), (400, False)])
def test_chains_of_parents_have_an_end(tmp_path: Path, generations: int, right: bool) -> None:
    path = child_of(tmp_path, "0.hxz")
    for number in range(1, generations):
        path = child_of(tmp_path, f"{number}.hxz", f"{number - 1}.hxz")
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        with little_memory(), open_snapshot(str(path), small()) as snapshot:
            assert right
            assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
    except CorruptSnapshot:
        assert not right
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_family_that_doubles_in_every_generation(tmp_path: Path) -> None:
    path = child_of(tmp_path, "0.hxz")
    for number in range(1, 40):
        path = child_of(tmp_path, f"{number}.hxz", *[f"{number - 1}.hxz"] * 2)
    began = time.process_time()
    with little_memory(), open_snapshot(str(path), small()) as snapshot:
        assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
    assert time.process_time() - began < 5


def test_a_family_that_is_too_large(tmp_path: Path) -> None:
    for number in range(300):
        child_of(tmp_path, str(number))
    halves = [child_of(tmp_path, f"h{start}", *map(str, range(start, start + 150))).name for start in (0, 150)]
    path = child_of(tmp_path, "child.hxz", *halves)
    descriptors = len(os.listdir("/proc/self/fd"))
    with little_memory(), pytest.raises(CorruptSnapshot, match="too many parents"):
        open_snapshot(str(path), small())
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    "stored",
    ["../secret.hxz", "inner/../../secret.hxz", "{outside}/secret.hxz", "http://127.0.0.1:1/secret.hxz", "/dev/zero",
     "file:///etc/passwd", "pipe", "folder", "link.hxz", "/", "", ".", "..", "\0", "x" * 300, "a\nb"],
)  # fmt: skip
def test_parents_are_looked_for_in_allowed_folders_only(tmp_path: Path, stored: str) -> None:
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    os.mkfifo(inside / "pipe")
    child_of(tmp_path, "secret.hxz")
    (inside / "link.hxz").symlink_to(tmp_path / "secret.hxz")
    path = child_of(inside, "child.hxz", stored.replace("{outside}", str(tmp_path)))
    with little_memory(), pytest.raises((ParentMissing, ParentRefused)) as caught:
        open_snapshot(str(path), small())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stored", ["/gone/base.hxz", "../elsewhere/base.hxz", "base.hxz", "sub/base.hxz"])
def test_parents_are_found_beside_the_child_and_in_named_folders(tmp_path: Path, stored: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    child_of(tmp_path / "a", "base.hxz")
    for folder, dirs in (("a", ()), ("b", (str(tmp_path / "a"),))):
        path = child_of(tmp_path / folder, "child.hxz", stored)
        with open_snapshot(str(path), new_context(1 << 20, parent_dirs=dirs)) as snapshot:
            assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("digest", [bytes(32), b"h" * 32])
def test_a_parent_entry_without_a_parent_is_an_error(tmp_path: Path, layout: str, digest: bytes) -> None:
    craft = Craft(layout)
    craft.data(b"x" * 100)
    craft.parent(100, digest)
    craft.page()
    refused(craft, tmp_path)


@pytest.mark.usefixtures("made_up_hashes")
def test_content_that_no_parent_has_is_an_error(tmp_path: Path) -> None:
    base = Craft()
    base.data(b"p" * 100, b"1" * 32)
    base.page()
    base.write(tmp_path / "base.hxz")
    craft = Craft()
    craft.parents = ["base.hxz"]
    craft.parent(100, b"1" * 32)
    craft.parent(100, b"2" * 32)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
        with pytest.raises(BlockError, match="in no parent"):
            disk(snapshot).read(100, 100)


# Keys.


def test_key_rounds_that_would_take_hours(tmp_path: Path) -> None:
    for iterations in (0, 10_000_001, 0xFFFF_FFFF):
        craft = Craft()
        craft.data(b"x" * 100)
        craft.page()
        craft.encryption = b"s" * 16, iterations
        began = time.process_time()
        with pytest.raises(CorruptSnapshot, match="rounds"), opened(craft, tmp_path, new_context(password=b"secret")):
            pass
        assert time.process_time() - began < 5


def test_a_family_has_one_budget_of_key_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file may ask for ten million, and there may be 256 of them: that would take minutes."""
    monkeypatch.setattr(opening, "MAX_ROUNDS", 100)
    names = []
    for number, rounds in enumerate((40, 30, 20)):
        craft = Craft()
        craft.encrypt(b"secret", bytes([number]) * 16, rounds)
        craft.data(b"b" * 4096)
        craft.page()
        names.append(craft.write(tmp_path / f"{number}.hxz").name)
    for rounds, good in ((10, True), (11, False)):
        child = Craft()
        child.parents = names
        child.encrypt(b"secret", b"child's own salt", rounds)
        child.parent(4096)
        child.page()
        path = str(child.write(tmp_path / "child.hxz"))
        if not good:
            with pytest.raises(CorruptSnapshot, match="rounds"):
                open_snapshot(path, new_context(1 << 20, b"secret", workers=0))
            continue
        with open_snapshot(path, new_context(1 << 20, b"secret", (str(tmp_path),), workers=0)) as snapshot:
            assert b"".join(snapshot.streams["disk"].read(0, 4096)) == b"b" * 4096


def test_blocks_moved_within_an_encrypted_file_are_refused(tmp_path: Path) -> None:
    craft = Craft()
    craft.encrypt(b"secret")
    craft.data(b"a" * 100)
    craft.data(b"b" * 100)
    craft.entries[0], craft.entries[1] = craft.entries[1], craft.entries[0]
    craft.page()
    craft.data(b"c" * 100)
    craft.page()
    with pytest.raises(HexzError), opened(craft, tmp_path, new_context(password=b"secret")) as snapshot:
        disk(snapshot).read(0, 200)
