"""Overlays on disks that are full, read-only or failing: what was written can be read and rescued, and they recover."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from hexz.errors import HexzError
from hexz.images.errors import OverlayError, OverlayFull
from hexz.images.overlay import store as store_module
from hexz.images.overlay.blockmap import BlockRun
from hexz.images.overlay.journal import HEAD_SIZE, RECORD_SIZE, build_record, record_seed
from hexz.images.overlay.recovery import JOURNAL_SUFFIX
from hexz.images.overlay.store import OverlayStore
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.pack import pack
from tests import samples
from tests.images import crash_writer
from tests.images.crash_writer import BASE, BLOCK, SIZE
from tests.images.house import House
from tests.peers import ROOT, run

OLD = samples.image(1 << 20, seed=31)
HEXZ = (sys.executable, "-m", "hexz")
mounts = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of its own")


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system with little room."""
    path.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path)
    try:
        yield path
    finally:
        run("umount", "-l", path)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            continue


@mounts
@pytest.mark.parametrize("mode", ["rw", "ro"])
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_an_overlay_on_a_disk_that_takes_nothing_is_read_and_committed(tmp_path: Path, trouble: str, mode: str) -> None:
    (tmp_path / "old.raw").write_bytes(OLD)
    pack(str(tmp_path / "old.raw"), str(tmp_path / "old.hxz"))
    expected = OLD[:100] + b"flushed" + OLD[107:200_000] + b"not flushed" + OLD[200_011:]
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "one" / "files" / "disk"))
        images = tmp_path / "one"
        house = House(images, tmp_path / "old.hxz")
        house.register("over", backend="overlay", snapshot="old", file=str(disk / "over"))
        house.json("PATCH", "/over?flush=y", b"flushed", {"Range": "bytes=100-106"})
        house.json("PATCH", "/over", b"not flushed", {"Range": "bytes=200000-200010"})
        house.server.stop(signal.SIGKILL)
        if trouble == "full":
            fill(disk)
        else:
            run("mount", "-o", "remount,ro", disk)
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        with House(images, tmp_path / "old.hxz") as house:
            keys = {"backend": "overlay", "snapshot": "old", "file": str(disk / "over"), "mode": mode}
            house.register("over", **keys)
            assert house.ask("GET", "/over")[2] == expected
            assert [e["start"] for e in house.extents("over", "?context=dirty") if e["dirty"]] == [0, 196608]
            answer = house.ask("PATCH", "/over", b"x", {"Range": "bytes=0-0"})
            told = {"full": 507, "read-only": 500}[trouble] if mode == "rw" else 403
            assert answer[0] == told and json.loads(answer[2])["error"]
            assert house.ask("GET", "/over")[2] == expected
            if mode == "ro":  # who only reads keeps nobody from reading
                run(*HEXZ, "commit", disk / "over", tmp_path / "early.hxz", cwd=ROOT)
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
        run(*HEXZ, "commit", disk / "over", tmp_path / "child.hxz", cwd=ROOT)
        with open_snapshot(str(tmp_path / "child.hxz"), new_context(1 << 20)) as child:
            assert child.disk is not None and b"".join(child.disk.read(0, len(OLD))) == expected
        # Well again, it is written as before.
        (disk / "filler").unlink(missing_ok=True) if trouble == "full" else run("mount", "-o", "remount,rw", disk)
        with House(images, tmp_path / "old.hxz") as house:
            house.register("over", **{**keys, "mode": "rw"})
            house.json("PATCH", "/over?flush=y", b"after", {"Range": "bytes=0-4"})
            assert house.ask("GET", "/over")[2] == b"after" + expected[5:]


class Disk:
    """What of the files of this process would be there after a loss of power, and when syncing fails.

    As Linux has it: what a failed sync was to write is taken for written from then on, and is lost.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.safe: dict[int, bytearray] = {}
        self.waiting: dict[int, list[tuple[int, bytes]]] = {}
        self.fails = lambda: False
        self.pwrite, self.open = os.pwrite, os.open
        monkeypatch.setattr(os, "open", self._open)
        monkeypatch.setattr(os, "pwrite", self._write)
        monkeypatch.setattr(os, "fdatasync", self._sync)
        monkeypatch.setattr(os, "fsync", self._sync)

    def _open(self, path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        file = self.open(path, flags, *arguments, **more)
        if flags & os.O_TRUNC:
            self.safe.pop(os.fstat(file).st_ino, None)
            self.waiting.pop(os.fstat(file).st_ino, None)
        return file

    def _write(self, file: int, data: Any, position: int) -> int:
        done = self.pwrite(file, data, position)
        self.waiting.setdefault(os.fstat(file).st_ino, []).append((position, bytes(data[:done])))
        return done

    def _sync(self, file: int) -> None:
        number = os.fstat(file).st_ino
        writes = self.waiting.pop(number, [])
        if self.fails():
            raise OSError(errno.EIO, "Input/output error")
        safe = self.safe.setdefault(number, bytearray())
        for position, data in writes:
            safe.extend(bytes(max(position + len(data) - len(safe), 0)))
            safe[position : position + len(data)] = data

    def after_power_loss(self, path: str, copy: str) -> str:
        """The overlay at `path` as it would be found."""
        for suffix in ("", JOURNAL_SUFFIX):
            Path(copy + suffix).write_bytes(self.safe.get(os.stat(path + suffix).st_ino, b""))
        return copy


@pytest.mark.parametrize("seed", range(6))
def test_no_flush_succeeds_before_what_a_failed_one_lost_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(store_module, "COMPACT_AT", 16)
    disk, source = Disk(monkeypatch), random.Random(seed)
    path = str(tmp_path / "overlay")
    store = crash_writer.open_store(path)
    disk.fails = lambda: source.random() < 0.4
    content = bytearray(BASE)
    flushed = failed = 0
    for step in islice(crash_writer.steps(seed), 150):
        try:
            if step.name == "write":
                store.write(step.offset, memoryview(step.data))
            elif step.name == "zero":
                store.zero(step.offset, len(step.data))
            else:
                store.flush()
                flushed += 1
                found = disk.after_power_loss(path, str(tmp_path / "found"))
                with contextlib.closing(crash_writer.open_store(found)) as again:
                    assert b"".join(again.read(0, SIZE)) == content
        except HexzError:
            failed += 1
        # A write that fails in the end may have been made of some blocks, which are then as they were written.
        now = b"".join(store.read(0, SIZE))
        step.apply(content)
        for at in range(0, SIZE, BLOCK):
            assert now[at : at + BLOCK] == content[at : at + BLOCK] or step.data
        content[:] = now
    assert flushed > 3 and failed > 3
    monkeypatch.undo()
    store.close()


def test_what_the_disk_lost_for_good_is_never_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "overlay")
    store = crash_writer.open_store(path)
    store.write(0, memoryview(b"a" * BLOCK))
    store.flush()
    store.write(0, memoryview(b"b" * BLOCK))
    slot = store._map.within(0, 1)[0].slot

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OverlayError, match="Input/output error"):
            store.flush()
    with open(path, "r+b") as file:  # the kernel let go of the page, and the disk has what was there before
        file.seek(slot * BLOCK)
        file.write(bytes(BLOCK))
    for action in (store.flush, lambda: store.write(5, memoryview(b"c")), lambda: store.read(0, 1)):
        with pytest.raises(OverlayError, match="lost what had been written"):
            action()
    assert b"".join(store.read(BLOCK, 5)) == BASE[BLOCK : BLOCK + 5]
    store.close()
    again = crash_writer.open_store(path)
    assert b"".join(again.read(0, BLOCK)) == b"a" * BLOCK
    again.write(0, memoryview(b"c"))
    again.close()


def test_writes_that_fail_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "overlay")
    head = crash_writer.open_store(path)
    head.close()
    store = OverlayStore(
        path, head.head, lambda offset, length: [memoryview(BASE)[offset : offset + length]], 8 * BLOCK
    )
    store.write(0, memoryview(b"a" * BLOCK))
    real, victim = os.pwrite, store._journal._file

    def full(file: int, data: Any, position: int) -> int:
        if file == victim:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(100):
            with pytest.raises(OverlayFull, match="No space"):
                store.write(0, memoryview(b"b" * 2 * BLOCK + bytes(BLOCK) + b"c" * BLOCK))
    assert store._slots.in_use == 1 and os.path.getsize(path) <= 8 * BLOCK
    store.write(0, memoryview(b"d" * 7 * BLOCK))
    store.close()


def test_zeros_without_a_flush_neither_fill_the_journal_nor_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "COMPACT_AT", 64)
    monkeypatch.setattr(store_module, "MAX_RUNS", 10)
    path = str(tmp_path / "overlay")
    store = crash_writer.open_store(path)
    store.write(0, memoryview(b"precious"))
    store.flush()
    for _ in range(1000):
        store.zero(BLOCK, BLOCK)
    assert os.path.getsize(path + JOURNAL_SUFFIX) <= HEAD_SIZE + 70 * RECORD_SIZE
    for number in range(2, 10):
        store.zero((2 * number) * BLOCK, BLOCK)
    with pytest.raises(OverlayFull, match="10 runs"):
        store.zero(40 * BLOCK, BLOCK)
    store.zero(4 * BLOCK, BLOCK)  # the same again, and what joins runs, takes no more
    store.zero(4 * BLOCK, 20 * BLOCK)
    store.zero(40 * BLOCK, BLOCK)
    store.close()


def test_a_journal_of_any_length_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = str(tmp_path / "overlay")
    store = crash_writer.open_store(path)
    store.write(0, memoryview(b"precious"))
    store.close()
    journal = Path(path + JOURNAL_SUFFIX)
    record = build_record(BlockRun(1, 1, (1 << 64) - 1), 0, record_seed(journal.read_bytes()))
    with journal.open("ab") as file:
        file.write(record * 200_000)
    again = crash_writer.open_store(path)
    assert b"".join(again.read(0, BLOCK + 10)) == b"precious" + BASE[8:BLOCK] + bytes(10)
    again.write(9, memoryview(b"x"))
    assert journal.stat().st_size < HEAD_SIZE + 10 * RECORD_SIZE
    again.close()


@pytest.mark.parametrize("suffix", ["", JOURNAL_SUFFIX])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_regular_file_is_no_overlay_and_keeps_nobody_waiting(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"overlay{suffix}"
    if kind == "link":
        store = crash_writer.open_store(str(tmp_path / "other"))
        store.close()
        path.symlink_to(tmp_path / f"other{suffix}")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((OverlayError, OSError)):
        crash_writer.open_store(str(tmp_path / "overlay"))
    shutil.rmtree(tmp_path)
