"""A file that changes while it is open: an error, or the bytes that it had."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hexz.errors import BlockError, CorruptSnapshot, StorageError
from hexz.snapshot import open_snapshot
from tests.crafted import Craft, child_of, disk, small


def change_nothing_but_length(path: Path) -> None:
    os.truncate(path, 6000)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(random.Random(1).randbytes(path.stat().st_size))


@pytest.mark.parametrize("change", [change_nothing_but_length, overwrite])
def test_a_file_that_changes_under_the_reader(tmp_path: Path, change: Callable[[Path], None]) -> None:
    craft = Craft()
    blocks = [random.Random(seed).randbytes(1000) for seed in range(20)]
    for block in blocks:
        craft.data(block)
        craft.page()
    path = craft.write(tmp_path / "t.hxz")
    failures = 0
    with open_snapshot(str(path), small()) as snapshot:
        assert b"".join(disk(snapshot).read(0, 1000)) == blocks[0]
        change(path)
        for number, block in enumerate(blocks):
            try:
                assert b"".join(disk(snapshot).read(number * 1000, 1000)) == block
            except (BlockError, StorageError, CorruptSnapshot):
                failures += 1
    assert failures >= 15


def test_a_file_replaced_by_a_new_one_is_read_as_it_was(tmp_path: Path) -> None:
    path = child_of(tmp_path, "t.hxz")
    with open_snapshot(str(path), small()) as snapshot:
        child_of(tmp_path, "new.hxz", "t.hxz")
        os.replace(tmp_path / "new.hxz", path)
        assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
