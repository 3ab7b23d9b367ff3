"""Metadata that is too long, or no list of files, or one that lies: the streams are served all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hexz.errors import SnapshotTooLarge
from hexz.snapshot import open_snapshot
from tests.bounds import little_memory
from tests.crafted import Craft, disk, opened, small


def test_metadata_larger_than_accepted(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata_place = 4096, 0xFFFF_FFFF
    path = craft.write(tmp_path / "t.hxz")
    os.truncate(path, 1 << 33)
    with little_memory(), open_snapshot(str(path), small()) as snapshot:
        assert b"".join(disk(snapshot).read(0, 100)) == b"x" * 100
        assert not snapshot.lists_files
        assert snapshot.info()["metadata_bytes"] == 0xFFFF_FFFF
        assert "metadata" in snapshot.oddities[0]
        for read in (lambda: snapshot.files, lambda: snapshot.metadata):
            with pytest.raises(SnapshotTooLarge, match="metadata"):
                read()


@pytest.mark.parametrize(
    "metadata",
    [b"\xff\xfe not json", b"[" * 200_000, b'{"files":' * 100_000, b"null", b"3", b'"text"', b"{}", b'{"files": null}',
     b"1" * 100_000, b'{"files": '],
)  # fmt: skip
def test_metadata_that_is_no_manifest(tmp_path: Path, metadata: bytes) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata = metadata
    with opened(craft, tmp_path) as snapshot:
        assert snapshot.files is None
        assert json.dumps(snapshot.info())
        assert b"".join(disk(snapshot).read(0, 100)) == b"x" * 100


@pytest.mark.parametrize(
    "files",
    ["text", 3, {}, [3], [{}], [{"path": "a"}], [{"path": "", "offset": 0, "size": 1}],
     [{"path": "a", "offset": 0, "size": 101}], [{"path": "a", "offset": 1e3, "size": 1}],
     [{"path": "a", "offset": -1, "size": 1}], [{"path": ["a"], "offset": 0, "size": 1}],
     [{"path": "a", "offset": 0, "size": 10**400}], [{"path": "..", "offset": 0, "size": 1}]],
)  # fmt: skip
def test_manifests_that_lie(tmp_path: Path, files: object) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata = json.dumps({"files": files}).encode()
    with opened(craft, tmp_path) as snapshot:
        assert json.dumps(snapshot.info())
        assert b"".join(disk(snapshot).read(0, 100)) == b"x" * 100
        assert snapshot.files is None
        assert snapshot.oddities
