"""Entity tags: equal for copies of one file, different for any two files, however alike; and what overlays record."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hexz.errors import StorageError
from hexz.format.index import parse_master_index
from hexz.images.overlay.journal import Head
from hexz.images.overlay.store import OverlayStore
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.snapshot.identity import MOST_PAGES, SAMPLED_PAGES
from hexz.storage import LocalFile
from hexz.tools.pack import pack
from tests.crafted import Craft
from tests.images.house import House
from tests.peers import ROOT, run

LONG_AGO = (1, 1)


def tags(path: Path) -> dict[str, str]:
    """The tags of the file and of its streams."""
    with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
        return {"file": snapshot.etag, **{name: stream.etag for name, stream in snapshot.streams.items()}}


def packed(folder: Path, disk: bytes) -> Path:
    """A snapshot of the bytes, in a folder of its own, with the times that reproducible builds set."""
    folder.mkdir()
    raw = folder / "disk.raw"
    raw.write_bytes(disk)
    os.utime(raw, LONG_AGO)
    path = folder / "snap.hxz"
    pack(str(raw), str(path))
    os.utime(path, LONG_AGO)
    return path


def all_differ(first: dict[str, str], second: dict[str, str]) -> bool:
    return first.keys() == second.keys() and not set(first.values()) & set(second.values())


def test_one_bit_of_the_content_makes_other_tags_whatever_the_times_say(tmp_path: Path) -> None:
    disk = bytearray(random.Random(1).randbytes(1 << 20))
    first = packed(tmp_path / "a", disk)
    disk[5000] ^= 1
    second = packed(tmp_path / "b", disk)
    assert first.stat().st_size == second.stat().st_size
    assert all_differ(tags(first), tags(second))


def crafted(folder: Path, change: Callable[[Craft], None]) -> Path:
    craft = Craft("B52", "zstd")
    craft.dictionary = craft.store(b"\x37\xa4\x30\xec" + bytes(500)), 0
    craft.metadata = b'{"note": "one"}'
    craft.data(b"x" * 1000, b"1" * 32)
    change(craft)
    craft.page()
    folder.mkdir()
    path = craft.write(folder / "t.hxz")
    os.utime(path, LONG_AGO)
    return path


def other_metadata(craft: Craft) -> None:
    craft.metadata = b'{"note": "two"}'


def other_hash(craft: Craft) -> None:
    craft.entries[0] = craft.entries[0][:-32] + b"2" * 32


@pytest.mark.parametrize("change", [other_metadata, other_hash])
def test_what_is_no_block_makes_other_tags_too(tmp_path: Path, change: Callable[[Craft], None]) -> None:
    first, second = crafted(tmp_path / "a", lambda craft: None), crafted(tmp_path / "b", change)
    assert first.stat().st_size == second.stat().st_size
    assert all_differ(tags(first), tags(second))


def test_another_dictionary_makes_other_tags(tmp_path: Path) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    (tmp_path / "raw").write_bytes(b"".join(b"%d is not %d\n" % (n, n * n) for n in range(50_000)))
    pack(str(tmp_path / "raw"), str(folder / "t.hxz"), compression="zstd", block_size=4096, dictionary=True)
    data = bytearray((folder / "t.hxz").read_bytes())
    data[4096 + 2000] ^= 1
    (other / "t.hxz").write_bytes(data)
    for path in (folder / "t.hxz", other / "t.hxz"):
        os.utime(path, LONG_AGO)
    assert all_differ(tags(folder / "t.hxz"), tags(other / "t.hxz"))


def test_a_copy_that_keeps_the_time_has_the_same_tags_and_so_has_the_file_itself(tmp_path: Path) -> None:
    path = packed(tmp_path / "a", bytes(range(256)) * 1000)
    before = tags(path)
    (tmp_path / "b").mkdir()
    shutil.copy2(path, tmp_path / "b" / "copy.hxz")
    assert tags(tmp_path / "b" / "copy.hxz") == before
    path.chmod(0o400)
    os.link(path, tmp_path / "link.hxz")
    path.rename(tmp_path / "moved.hxz")
    assert tags(tmp_path / "moved.hxz") == tags(tmp_path / "link.hxz") == before
    os.utime(tmp_path / "moved.hxz")
    assert all_differ(tags(tmp_path / "moved.hxz"), before)


def test_a_child_has_other_tags_when_its_parents_bytes_change(tmp_path: Path) -> None:
    seen = []
    for name, letter in (("a", b"p"), ("b", b"q")):
        base = Craft()
        base.data(letter * 100)
        base.page()
        child = Craft()
        child.parents = ["base.hxz"]
        child.parent(100)
        child.page()
        (tmp_path / name).mkdir()
        for craft, file in ((base, "base.hxz"), (child, "child.hxz")):
            os.utime(craft.write(tmp_path / name / file), LONG_AGO)
        seen.append(tags(tmp_path / name / "child.hxz"))
    assert all_differ(*seen)


def many_small_pages(path: Path, pages: int, last: bytes = b"z") -> Path:
    craft = Craft("A20")
    for number in range(pages):
        if number == pages - 1:
            craft.data(last * 512)
        else:
            craft.zero(512)
        craft.page()
    craft.write(path)
    os.utime(path, LONG_AGO)
    return path


def test_opening_reads_a_bounded_number_of_pages(tmp_path: Path) -> None:
    for pages, most in ((MOST_PAGES, MOST_PAGES + 50), (MOST_PAGES + 1, SAMPLED_PAGES + 50)):
        path = many_small_pages(tmp_path / "t.hxz", pages)
        with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
            assert snapshot.storage.reads.collect()[0] < most
        other = many_small_pages(tmp_path / "other.hxz", pages, b"y")
        assert other.stat().st_size == path.stat().st_size
        assert all_differ(tags(path), tags(other))


def test_a_page_that_cannot_be_read_is_told_to_its_readers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    craft = Craft()
    for letter in (b"a", b"b"):
        craft.data(letter * 1000)
        craft.page()
    broken = craft.pages["main"][1].offset
    path = craft.write(tmp_path / "t.hxz")
    original = LocalFile.read

    def read(self: LocalFile, offset: int, length: int) -> bytes:
        if offset == broken:
            raise StorageError(self.name, offset, length, "Input/output error")
        return bytes(original(self, offset, length))

    monkeypatch.setattr(LocalFile, "read", read)
    with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
        disk = snapshot.streams["disk"]
        assert b"".join(disk.read(0, 1000)) == b"a" * 1000
        with pytest.raises(StorageError):
            disk.read(1000, 1000)


def former_tag(snapshot: Snapshot) -> str:
    return snapshot.streams["disk"].former_etag


def test_overlays_of_earlier_releases_go_on_over_what_they_were_made_over(tmp_path: Path) -> None:
    disk = random.Random(2).randbytes(300_000)
    path = packed(tmp_path / "a", disk)
    with House(tmp_path, path) as house:
        overlay = house.files / "over"
        with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
            stream = snapshot.streams["disk"]
            head = Head(stream.size, 65536, former_tag(snapshot), str(path), "disk")
            store = OverlayStore(str(overlay), head, stream.read)
            store.write(3, memoryview(b"abc"))
            store.close()
        with pytest.raises(Exception, match="other bytes"):
            OverlayStore(str(overlay), head._replace(etag="0" * 32 + "-1"), stream.read, former_etag="1" * 32 + "-1")
        run(sys.executable, "-m", "hexz", "commit", overlay, tmp_path / "thin.hxz", cwd=ROOT)
        url = house.register("over", backend="overlay", snapshot="snap", file=str(overlay))
        assert url
        house.json("PATCH", "/over", b"def", {"Range": "bytes=100-102"})
    expected = disk[:3] + b"abc" + disk[6:100] + b"def" + disk[103:]
    with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
        stream = snapshot.streams["disk"]
        head = Head(stream.size, 65536, stream.etag, str(path), "disk")
        store = OverlayStore(str(overlay), head, stream.read, read_only=True)
        assert b"".join(bytes(view) for view in store.read(0, len(disk))) == expected
        store.close()


def test_the_former_tag_is_made_of_header_index_size_and_time(tmp_path: Path) -> None:
    path = packed(tmp_path / "a", b"as it was" * 1000)
    data = path.read_bytes()
    index = struct.unpack_from("<Q", data, 12)[0]
    with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
        length = parse_master_index(data[index:]).length
        digest = hashlib.blake2b(data[:4096] + data[index : index + length], digest_size=32)
        digest.update(f"{len(data)}:{path.stat().st_mtime_ns}".encode())
        tag = hashlib.blake2b(digest.digest(), digest_size=16, person=b"disk").hexdigest()
        assert former_tag(snapshot) == f"{tag}-1"
