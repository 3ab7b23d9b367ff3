"""The overlay's store: what is written reads back, across kills, lost power, damage and lack of room."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.images.errors import BackendDown, JournalError, OverlayError, OverlayFull
from hexz.images.overlay import store as store_module
from hexz.images.overlay.blockmap import ZERO_SLOT, BlockMap, BlockRun
from hexz.images.overlay.journal import HEAD_SIZE, RECORD_SIZE, Head, build_head, parse_head
from hexz.images.overlay.recovery import JOURNAL_SUFFIX
from hexz.images.overlay.store import OverlayStore
from tests.images import crash_writer
from tests.images.crash_writer import BASE, BLOCK, SIZE


def written(number: int, path: str) -> tuple[OverlayStore, bytes, bytes]:
    """A store after a few steps, and the bytes of its data file and journal."""
    store = crash_writer.open_store(path, BASE)
    source = crash_writer.steps(number)
    for _ in range(40):
        step = next(source)
        if step.name == "write":
            store.write(step.offset, memoryview(step.data))
        elif step.name == "zero":
            store.zero(step.offset, len(step.data))
        else:
            store.flush()
    return store, Path(path).read_bytes(), Path(path + JOURNAL_SUFFIX).read_bytes()


@pytest.mark.parametrize("number", range(8))
def test_lost_power_leaves_each_block_old_or_new(tmp_path: Path, number: int) -> None:
    source = random.Random(number)
    path = str(tmp_path / "overlay")
    store, _, _ = written(number, path)
    store.flush()
    flushed, data, journal = b"".join(store.read(0, SIZE)), Path(path).read_bytes(), Path(path + ".map").read_bytes()
    versions = [flushed]
    for _ in range(12):  # writes and zeroes that no flush follows
        step = next(s for s in crash_writer.steps(source.randrange(1 << 30)) if s.name != "flush")
        if step.name == "zero":
            store.zero(step.offset, len(step.data))
        else:
            store.write(step.offset, memoryview(step.data))
        versions.append(b"".join(store.read(0, SIZE)))
    later_data, later_journal = Path(path).read_bytes(), Path(path + ".map").read_bytes()
    # What reaches the disk is any mix of old and new pages, and any length of the journal.
    for case in range(20):
        mixed = bytearray(later_data)
        for at in range(0, len(later_data), 1024):
            if source.random() < case / 20:
                old = data[at : at + 1024]
                mixed[at : at + 1024] = old + bytes(min(1024, len(later_data) - at) - len(old))
        copy = str(tmp_path / f"after-{case}")
        Path(copy).write_bytes(mixed)
        Path(copy + ".map").write_bytes(later_journal[: source.randint(len(journal), len(later_journal))])
        again = crash_writer.open_store(copy, BASE)
        found = b"".join(again.read(0, SIZE))
        again.close()
        for at in range(0, SIZE, BLOCK):
            assert any(found[at : at + BLOCK] == version[at : at + BLOCK] for version in versions), (case, at)
    store.close()


def test_reads_are_what_was_written_and_reopening_changes_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "overlay")
    content = bytearray(BASE)
    store = crash_writer.open_store(path, BASE)
    source = crash_writer.steps(5)
    for number in range(600):
        step = next(source)
        step.apply(content)
        if step.name == "write":
            store.write(step.offset, memoryview(step.data))
        elif step.name == "zero":
            store.zero(step.offset, len(step.data))
        elif number % 7 == 0:
            store.close()
            store = crash_writer.open_store(path, BASE)
        else:
            store.flush()
        at = max(0, step.offset - 700)
        assert b"".join(store.read(at, min(20_000, SIZE - at))) == content[at : at + 20_000]
    assert b"".join(store.read(0, SIZE)) == content
    # Overwritten slots are used again: the file does not grow with what was written in all.
    assert os.path.getsize(path) < 6 * SIZE
    store.close()


def test_zeros_take_no_room(tmp_path: Path) -> None:
    store = crash_writer.open_store(str(tmp_path / "overlay"), BASE)
    store.write(0, memoryview(bytes(10 * BLOCK)))
    store.zero(10 * BLOCK, SIZE - 10 * BLOCK)
    assert list(store.written(0, SIZE)) == [(0, SIZE, True)]
    assert os.path.getsize(store.path) == 0
    assert not any(b"".join(store.read(0, SIZE)))
    store.close()


def test_a_journal_is_written_anew_when_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMPACT_AT", 16)
    store = crash_writer.open_store(str(tmp_path / "overlay"), BASE)
    for number in range(100):
        store.write(0, memoryview(bytes([number + 1]) * BLOCK))
        store.flush()
    assert os.path.getsize(store.path + JOURNAL_SUFFIX) < HEAD_SIZE + 20 * RECORD_SIZE
    store.close()
    again = crash_writer.open_store(str(tmp_path / "overlay"), BASE)
    assert b"".join(again.read(0, BLOCK)) == bytes([100]) * BLOCK
    again.close()


def test_an_overlay_is_opened_once_and_only_over_its_own_bytes(tmp_path: Path) -> None:
    path = str(tmp_path / "overlay")
    store = crash_writer.open_store(path, BASE)
    with pytest.raises(OverlayError, match="has this overlay open"):
        crash_writer.open_store(path, BASE)
    store.close()
    with pytest.raises(OverlayError, match="other bytes"):
        OverlayStore(path, Head(SIZE, BLOCK, "1" * 32, "/other.hxz", "disk"), lambda offset, length: [])
    Path(path + JOURNAL_SUFFIX).unlink()
    crash_writer.open_store(path, BASE).close()  # it held nothing
    store = crash_writer.open_store(path, BASE)
    store.write(0, memoryview(b"x"))
    store.close()
    Path(path + JOURNAL_SUFFIX).unlink()
    with pytest.raises(OverlayError, match="is missing"):
        crash_writer.open_store(path, BASE)


def test_the_quota_counts_what_is_mapped(tmp_path: Path) -> None:
    head = Head(SIZE, BLOCK, "0" * 32, "/base.hxz", "disk")
    store = OverlayStore(str(tmp_path / "overlay"), head, lambda offset, length: [memoryview(bytes(length))], 4 * BLOCK)
    for number in range(20):  # overwriting needs no more room
        store.write(0, memoryview(bytes([number + 1]) * 2 * BLOCK))
    store.write(2 * BLOCK, memoryview(b"y" * BLOCK))
    with pytest.raises(OverlayFull, match="quota"):
        store.write(8 * BLOCK, memoryview(b"z" * 2 * BLOCK))
    store.zero(0, 2 * BLOCK)
    store.write(8 * BLOCK, memoryview(b"z" * 2 * BLOCK))
    assert b"".join(store.read(8 * BLOCK, 2 * BLOCK)) == b"z" * 2 * BLOCK
    store.close()


@pytest.mark.parametrize("victim", ["data", "journal"])
def test_a_full_disk_is_told_and_leaves_the_overlay_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    store = crash_writer.open_store(str(tmp_path / "overlay"), BASE)
    store.write(0, memoryview(b"a" * BLOCK))
    real = os.pwrite
    target = store._files.data if victim == "data" else store._journal._file

    def full(file: int, data: memoryview, position: int) -> int:
        if file == target:
            if len(data) > 10:
                return real(file, data[:10], position)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OverlayFull):
        store.write(0, memoryview(b"b" * BLOCK))
    monkeypatch.undo()
    assert b"".join(store.read(0, BLOCK)) == b"a" * BLOCK
    store.write(BLOCK, memoryview(b"c" * BLOCK))
    store.close()
    again = crash_writer.open_store(str(tmp_path / "overlay"), BASE)
    assert b"".join(again.read(0, 2 * BLOCK)) == b"a" * BLOCK + b"c" * BLOCK
    again.close()


@given(st.data())
def test_a_damaged_journal_is_refused_or_read_up_to_the_damage(data: st.DataObject) -> None:
    head = build_head(Head(SIZE, BLOCK, "0" * 32, "/base.hxz", "disk"))
    damaged = bytearray(head)
    at = data.draw(st.integers(0, len(head) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(JournalError):
        parse_head(bytes(damaged))
    with pytest.raises(JournalError):
        parse_head(head[: data.draw(st.integers(0, len(head) - 1))])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.booleans()), max_size=30))
def test_the_block_map_is_a_dictionary_in_runs(steps: list[tuple[int, int, bool]]) -> None:
    table: dict[int, int] = {}
    runs = BlockMap()
    slot = 0
    for start, length, zero in steps:
        old = [table[block] for block in range(start, start + length) if table.get(block, ZERO_SLOT) != ZERO_SLOT]
        freed = runs.set(BlockRun(start, length, ZERO_SLOT if zero else slot))
        assert sorted(part.slot + at for part in freed for at in range(part.length)) == sorted(old)
        for at in range(length):
            table[start + at] = ZERO_SLOT if zero else slot + at
        slot += length
    listed = list(runs)
    assert {
        run.start + at: run.slot if run.slot == ZERO_SLOT else run.slot + at
        for run in listed
        for at in range(run.length)
    } == table
    assert all(not one.goes_on_as(other) and one.end <= other.start for one, other in zip(listed, listed[1:]))
    for start in range(0, 50, 7):
        cut = [block for run in runs.within(start, start + 9) for block in range(run.start, run.end)]
        assert cut == [block for block in range(start, start + 9) if block in table]


def test_who_gave_an_overlay_up_reads_on_what_it_saw_while_others_write(tmp_path: Path) -> None:
    path = str(tmp_path / "overlay")
    stores = [crash_writer.open_store(path, BASE)]
    seen = []
    for number in range(4):  # one after the other, each with a reader that stays
        store = stores[-1]
        for round_ in range(6):
            content = bytes([16 * number + round_ + 1]) * 6 * BLOCK
            store.write(0, memoryview(content))
            store.flush()
        seen.append(b"".join(store.read(0, SIZE)))
        store.give_up()
        with pytest.raises(BackendDown, match="out of service"):
            store.write(0, memoryview(b"x"))
        stores.append(crash_writer.open_store(path, BASE))
        for before, content in zip(stores, seen):
            assert b"".join(before.read(0, SIZE)) == content
    last = stores.pop()
    last.write(0, memoryview(b"z" * 6 * BLOCK))
    last.flush()
    grown = os.path.getsize(path)
    for store, content in zip(stores, seen):
        assert b"".join(store.read(0, SIZE)) == content
        store.close()
    # With the last reader gone the slots are used again.
    for _ in range(50):
        last.write(0, memoryview(b"y" * 6 * BLOCK))
        last.flush()
    assert os.path.getsize(path) <= grown + 6 * BLOCK
    last.close()
