"""Files that others write to while they are open: no byte of the new ones passes for one of the old."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from hexz.catalog import Catalog, Source
from hexz.errors import StorageError
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.storage import LocalFile
from tests.crafted import Craft
from tests.peers import ROOT, Server, run
from tests.waiting import until

PAGES = 8
PAGE = 4 * 4096
CACHE = 8 << 20


def content(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGES * PAGE)


def snapshot_of(disk: bytes) -> bytes:
    """Files of equal length for equal lengths of disk, however different."""
    craft = Craft()
    for start in range(0, len(disk), PAGE):
        for block in range(start, start + PAGE, 4096):
            craft.data(disk[block : block + 4096])
        craft.page()
    return craft.finish()


def write_over(path: Path, data: bytes) -> None:
    """As ``cp`` does: the file stays, its bytes do not."""
    with path.open("r+b") as file:
        file.write(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "snap.hxz"
    path.write_bytes(snapshot_of(content(1)))
    os.utime(path, ns=(10**18, 10**18))
    return path


def read(snapshot: Snapshot, offset: int, length: int) -> bytes:
    assert snapshot.disk is not None
    return b"".join(snapshot.disk.read(offset, length))


def test_after_a_rewrite_nothing_is_read_any_more_and_it_is_said_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = content(1)
    with open_snapshot(str(path), new_context(CACHE, workers=0)) as snapshot:
        assert read(snapshot, 0, 100) == old[:100]
        assert not snapshot.changed
        write_over(path, snapshot_of(content(2)))
        for start in range(PAGE, len(old), PAGE):
            with pytest.raises(StorageError, match="changed while it was open"):
                read(snapshot, start, PAGE)
        with pytest.raises(StorageError):
            snapshot.read_file(0, 100)
        assert snapshot.changed
        os.utime(path, ns=(10**18, 10**18))  # it is too late to make it look like the old one
        with pytest.raises(StorageError):
            read(snapshot, PAGE, 100)
    assert [record.levelno for record in caplog.records if "changed while" in record.message] == [logging.ERROR]


def test_what_is_written_during_a_read_is_found_before_the_bytes_are_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = snapshot_of(content(2))
    original = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        data = original(descriptor, length, offset)
        write_over(path, new)
        return data

    with open_snapshot(str(path), new_context(CACHE, workers=0)) as snapshot:
        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(StorageError, match="changed while it was open"):
            read(snapshot, 0, 100)


def chmod(path: Path) -> None:
    path.chmod(0o400)


def link(path: Path) -> None:
    os.link(path, path.with_name("link.hxz"))


def rename(path: Path) -> None:
    path.rename(path.with_name("moved.hxz"))


def rename_over(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(snapshot_of(content(2)))
    fresh.rename(path)


@pytest.mark.parametrize("change", [chmod, link, rename, rename_over, Path.unlink])
def test_a_file_whose_bytes_stay_is_read_on(path: Path, change: Callable[[Path], None]) -> None:
    with open_snapshot(str(path), new_context(CACHE, workers=0)) as snapshot:
        change(path)
        assert read(snapshot, 0, PAGES * PAGE) == content(1)
        assert not snapshot.changed


@pytest.mark.parametrize("size", [0, 5000, 10**6])
def test_another_size_is_a_change_whatever_the_time_says(path: Path, size: int) -> None:
    with open_snapshot(str(path), new_context(CACHE, workers=0)) as snapshot:
        os.truncate(path, size)
        os.utime(path, ns=(10**18, 10**18))
        with pytest.raises(StorageError):
            read(snapshot, 0, 100)
        assert snapshot.changed


def test_a_snapshot_is_changed_with_its_parents_and_opened_anew_with_them(tmp_path: Path) -> None:
    parent = tmp_path / "base.hxz"
    parent.write_bytes(snapshot_of(content(1)))
    craft = Craft()
    craft.parents = ["base.hxz"]
    craft.parent(PAGE)
    craft.page()
    child = craft.write(tmp_path / "child.hxz")
    catalog = Catalog(new_context(CACHE, workers=0))
    catalog.add("child", str(child))
    try:
        with catalog.lease("child") as snapshot:
            write_over(parent, snapshot_of(content(2)))
            with pytest.raises(StorageError):
                read(snapshot, 0, 100)
        assert catalog.changed == 1
        assert catalog.sync(lambda: [Source("child", str(child))]).replaced == ["child"]
        assert catalog.changed == 0
        with catalog.lease("child") as snapshot:
            assert read(snapshot, 0, 100) == content(2)[:100]
    finally:
        catalog.close()


def test_files_are_closed_when_looked_at_while_they_are_closed(path: Path) -> None:
    file = LocalFile(str(path))
    assert file.look()
    file.close()
    assert file.look()
    with pytest.raises(StorageError, match="closed"):
        file.read(0, 1)


def test_over_http_no_tag_has_two_contents_and_a_reload_serves_the_new_one(tmp_path: Path) -> None:
    old, new = content(1), content(2)
    path = tmp_path / "snap.hxz"
    path.write_bytes(snapshot_of(old))
    fresh = tmp_path / "new"
    fresh.write_bytes(snapshot_of(new))
    with Server("--http-port", 0, path) as server:
        first = requests.get(f"{server.http}/disk", headers={"Range": "bytes=0-99"}, timeout=30)
        assert first.content == old[:100]
        shutil.copyfile(fresh, path)
        for start in range(0, len(old), PAGE):
            headers = {"Range": f"bytes={start}-{start + PAGE - 1}", "If-Range": first.headers["ETag"]}
            answer = requests.get(f"{server.http}/disk", headers=headers, timeout=30)
            assert answer.status_code == 500 or answer.content == old[start : start + PAGE]
        assert requests.get(f"{server.http}/disk", timeout=30).status_code == 500
        [entry] = requests.get(f"{server.http}/snapshots", timeout=30).json()["snapshots"]
        assert entry["changed"]
        assert requests.get(f"{server.http}/readyz", timeout=30).json()["changed"] == 1
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "changed" not in requests.get(f"{server.http}/readyz", timeout=30).json())
        whole = requests.get(f"{server.http}/disk", timeout=30)
        assert whole.content == new
        assert whole.headers["ETag"] != first.headers["ETag"]


def test_one_changed_file_keeps_nobody_from_the_list_of_all(tmp_path: Path) -> None:
    for name in ("calm", "changed"):
        craft = Craft()
        craft.data(b"x" * 4096)
        craft.page()
        craft.metadata = b'{"files": [{"path": "a", "offset": 0, "size": 1}]}'
        craft.write(tmp_path / f"{name}.hxz")
    with Server("--http-port", 0, tmp_path) as server:
        os.utime(tmp_path / "changed.hxz", (1, 1))
        for target in ("/snapshots", "/"):
            listed = requests.get(f"{server.http}{target}", timeout=30).json()["snapshots"]
            assert {entry["name"]: (entry["archive"], entry["changed"]) for entry in listed} == {
                "calm": (True, False),
                "changed": (None, True),
            }
        page = requests.get(server.http, headers={"Accept": "text/html"}, timeout=30)
        assert page.status_code == 200 and "calm" in page.text


def test_the_facts_of_a_changed_file_say_so_and_what_is_known(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"x" * 4096)
    craft.page()
    craft.metadata = b'{"files": [{"path": "a", "offset": 0, "size": 1}]}'
    craft.write(tmp_path / "snap.hxz")
    control = tmp_path / "control"
    with Server("--http-port", 0, "--control", control, tmp_path / "snap.hxz") as server:
        os.utime(tmp_path / "snap.hxz", (1, 1))
        facts = requests.get(f"{server.http}/info", timeout=30)
        assert facts.status_code == 200
        known = facts.json()
        assert (known["changed"], known["files"], known["streams"]["disk"]["size"]) == (True, None, 4096)
        assert [line for line in known["oddities"] if "changed while it was open" in line] == known["oddities"]
        assert requests.get(f"{server.http}/snapshots/snap/files/", timeout=30).status_code == 500
        told = run(sys.executable, ROOT / "hexz_serve.py", "--status", "--control", control).stdout
        assert "snap" in told
