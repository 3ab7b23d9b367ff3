"""Tar conversions: their blocks end before their size does, and their files are listed like an archive's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hexz.errors import CorruptSnapshot
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.tools.extract import extract
from hexz.tools.info import describe
from hexz.tools.verify import verify
from tests.crafted import Craft

FILES = {"one": b"1" * 700, "empty": b"", "two/three": bytes(range(256)) * 20}
IMAGE = b"".join(FILES.values())


def source_of(total: object, tar: str = "tar") -> bytes:
    listed, offset = [], 0
    for name, data in FILES.items():
        listed.append({"name": name, "size": len(data), "offset": offset})
        offset += len(data)
    source = {"format": tar, "original_path": "t.tar", "total_files": 3, "total_bytes": total, "source_files": listed}
    return json.dumps({"source": source}).encode()


def conversion(
    folder: Path,
    metadata: bytes = source_of(len(IMAGE)),
    layout: str = "B52",
    size: int = 10240,
    page_blocks: int = 4096,
    stream: str = "main",
) -> Path:
    craft = Craft(layout, block_size=512)
    craft.metadata = metadata
    for data in FILES.values():
        for at in range(0, len(data), 512):
            craft.data(data[at : at + 512])
            if len(craft.entries) == page_blocks:
                craft.page(stream)
    if craft.entries:
        craft.page(stream)
    craft.sizes[stream] = size
    return craft.write(folder / "tar.hxz")


def opened(path: Path) -> Snapshot:
    return open_snapshot(str(path), new_context(1 << 20, workers=0))


@pytest.mark.parametrize("page_blocks", [1, 3, 12, 4096])
@pytest.mark.parametrize("layout", ["A20", "A52", "B52", "C52"])
def test_behind_the_last_file_there_are_zeros(tmp_path: Path, layout: str, page_blocks: int) -> None:
    path = conversion(tmp_path, layout=layout, page_blocks=page_blocks)
    right = IMAGE.ljust(10240, b"\0")
    with opened(path) as snapshot:
        disk = snapshot.streams["disk"]
        for offset in (0, 699, len(IMAGE) - 1, len(IMAGE), 10239):
            for length in (1, 512, 10240):
                end = min(offset + length, 10240)
                assert b"".join(disk.read(offset, end - offset)) == right[offset:end]
                cached = disk.read_cached(offset, end - offset)
                assert cached is not None and b"".join(cached) == right[offset:end]
        for extents in (disk.extents, disk.flat_extents):
            assert [*extents(0, 10240)] == [(0, len(IMAGE), "data"), (len(IMAGE), 10240 - len(IMAGE), "zero")]
        assert describe(snapshot)["disk"]["zero"] == 0
    assert verify(str(path), print) == (0, 10240, [], "")


@pytest.mark.parametrize("size", [1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_there_may_be_any_number_of_them(tmp_path: Path, size: int) -> None:
    with opened(conversion(tmp_path, size=size)) as snapshot:
        disk = snapshot.streams["disk"]
        assert b"".join(disk.read(len(IMAGE) - 1, 3)) == IMAGE[-1:] + b"\0\0"
        assert b"".join(disk.read(size - 5, 5)) == bytes(5)
        assert [*disk.extents(size - 5, 5)] == [(size - 5, 5, "zero")]


@pytest.mark.parametrize(
    "metadata",
    [b"", b"{}", source_of(len(IMAGE) - 1), source_of(10240), source_of(str(len(IMAGE))), source_of(None),
     source_of(len(IMAGE), "zip"), b'{"source": 3}', b'{"files": [], "source": {}}'],
    ids=lambda metadata: metadata[-60:].decode(),
)  # fmt: skip
def test_blocks_that_end_early_are_damage_where_the_file_does_not_say_so(tmp_path: Path, metadata: bytes) -> None:
    path = conversion(tmp_path, metadata, page_blocks=3)
    said = f"the disk stream end at {len(IMAGE)}, and its size is said to be 10240"
    with pytest.raises(CorruptSnapshot, match=said), opened(path):
        pass
    with pytest.raises(CorruptSnapshot, match=said):
        verify(str(path), lambda line: None)


def test_the_memory_stream_is_no_tar_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptSnapshot, match="memory stream end at"), opened(conversion(tmp_path, stream="aux")):
        pass


def test_the_files_are_listed_and_extracted(tmp_path: Path) -> None:
    path = conversion(tmp_path)
    with opened(path) as snapshot:
        assert snapshot.files is not None
        assert [(file.path, file.size, file.mode, file.mtime) for file in snapshot.files] == [
            (name, len(data), 0o100644, None) for name, data in FILES.items()
        ]
        assert snapshot.info()["files"] == 3
    assert extract(str(path), str(tmp_path / "out")) == (len(IMAGE), [])
    found = {str(file.relative_to(tmp_path / "out")): file for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {name: file.read_bytes() for name, file in found.items()} == FILES
    assert all(file.stat().st_mtime > 1_700_000_000 for file in found.values())


def test_what_was_committed_over_one_sees_its_zeros(tmp_path: Path) -> None:
    conversion(tmp_path)
    child = Craft(block_size=4096)
    child.parents = ["tar.hxz"]
    child.data(b"C" * 4096)
    child.parent(4096)
    child.parent(4096)
    child.page()
    with opened(child.write(tmp_path / "child.hxz")) as snapshot:
        disk = snapshot.streams["disk"]
        assert b"".join(disk.read(0, 12288)) == b"C" * 4096 + IMAGE[4096:].ljust(8192, b"\0")
        assert [extent.kind for extent in disk.flat_extents(0, 12288)] == ["data", "zero"]
