"""Damage anywhere in a sealed file, or in its seal: right bytes or an error, and what is not damaged goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexz.errors import HexzError, SealDamaged, SealMismatch
from hexz.snapshot import new_context, open_snapshot
from hexz.storage.sealed import SealPolicy
from hexz.tools.pack import pack
from tests.bounds import little_memory
from tests.crafted import Craft
from tests.seal.endurance import endure
from tests.seal.making import seal_bytes, seal_path, write_seal
from tests.snapshot.test_damage import PASSWORD, cases, check, damaged

SHORT = 6000
"""Reads of the endurance run in its short form."""


@given(data=st.data())
@settings(max_examples=settings.default.max_examples * 10 if settings.default else 600)
def test_damage_anywhere_is_an_error_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    case = data.draw(st.sampled_from(cases()), label="case")
    victim = data.draw(st.sampled_from(sorted(case.files)), label="file")
    hurt = data.draw(damaged(case.files[victim], False, anywhere=True), label="damage")
    leaf = data.draw(st.sampled_from([4096, 16384]), label="leaf")
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(hurt.data if name == victim else content)
        seal_path(tmp_path / name).write_bytes(seal_bytes(content, None, leaf))
    with little_memory():
        context = new_context(1 << 20, PASSWORD, workers=0, seals=SealPolicy(None, True))
        try:
            with open_snapshot(str(tmp_path / case.name), context) as snapshot:
                sizes = {stream.name: stream.size for stream in snapshot.streams.values()}
                assert sizes == {name: len(content) for name, content in case.streams.items()}
                check(snapshot, case.streams, data.draw(st.sampled_from([1000, 4096, 65536])))
        except HexzError as error:
            assert "\n" not in str(error)


def test_reads_of_damaged_samples_are_right_or_refused() -> None:
    outcome = endure(SHORT, 7)
    assert not outcome.wrong
    assert outcome.counts["right"]
    assert outcome.counts["refused"]
    assert outcome.counts["refused to open"]


def test_without_seals_the_same_damage_gives_wrong_bytes() -> None:
    """So the run above would see them."""
    assert endure(SHORT, 7, sealed=False).wrong


@pytest.fixture
def snap(tmp_path: Path) -> Path:
    """A sealed snapshot of 2 MB of noise and an odd end in blocks of 64 KiB."""
    (tmp_path / "raw").write_bytes(random.Random(5).randbytes(2_000_003))
    pack(str(tmp_path / "raw"), str(tmp_path / "snap.hxz"), seal=True)
    return tmp_path / "snap.hxz"


def test_other_leaves_go_on_and_the_counter_counts(snap: Path, tmp_path: Path) -> None:
    right = (tmp_path / "raw").read_bytes()
    hurt = bytearray(snap.read_bytes())
    hurt[1_000_000] ^= 1
    snap.write_bytes(hurt)
    with open_snapshot(str(snap), new_context(8 << 20)) as snapshot:
        disk = snapshot.disk
        assert disk is not None
        refused = []
        for offset in range(0, disk.size, 65536):
            length = min(65536, disk.size - offset)
            try:
                assert b"".join(disk.read(offset, length)) == right[offset : offset + length]
            except SealMismatch:
                refused.append(offset)
        assert len(refused) == 1
        assert refused[0] - 65536 < 1_000_000 - 4096 < refused[0] + 131072
        failed = snapshot.counts.reads.collect().errors
        assert failed
        with pytest.raises(SealMismatch):
            disk.read(refused[0], 1)
        assert snapshot.counts.reads.collect().errors > failed
        snapshot.context.workers.stop()


def test_a_file_that_is_mended_in_place_is_well_again(snap: Path, tmp_path: Path) -> None:
    whole = snap.read_bytes()
    hurt = bytearray(whole)
    hurt[1_000_000] ^= 1
    with open_snapshot(str(snap), new_context(1 << 20, workers=0)) as snapshot:
        assert snapshot.disk is not None
        for content, well in ((bytes(hurt), False), (whole, True)):
            with snap.open("r+b") as file:
                file.write(content)
            # Blocks of noise are stored as they are, behind the header.
            place = 1_000_000 - 4096 - 2000
            if well:
                read = b"".join(snapshot.disk.read(place, 4096))
                assert read == (tmp_path / "raw").read_bytes()[place : place + 4096]
            else:
                with pytest.raises(SealMismatch):
                    snapshot.disk.read(place, 4096)


def test_a_thin_snapshot_of_a_sealed_one_reads_through_both_seals(snap: Path, tmp_path: Path) -> None:
    image = bytearray((tmp_path / "raw").read_bytes())
    image[100_000:100_100] = bytes(100)
    (tmp_path / "changed").write_bytes(image)
    pack(str(tmp_path / "changed"), str(tmp_path / "thin.hxz"), parent=str(snap), seal=True)
    with open_snapshot(str(tmp_path / "thin.hxz"), new_context(8 << 20, seals=SealPolicy(None, True))) as thin:
        assert thin.disk is not None
        assert b"".join(thin.disk.read(0, len(image))) == image
        assert [parent.info()["sealed"] for parent in thin.parents] == ["plain"]
        thin.context.workers.stop()


def test_encrypted_files_are_sealed_as_they_are_stored(tmp_path: Path) -> None:
    """The leaves of an encrypted file change places."""
    craft, blocks = Craft(), [random.Random(number).randbytes(3000) for number in range(12)]
    craft.encrypt(PASSWORD)
    for block in blocks:
        craft.data(block)
    craft.page()
    path = write_seal(craft.write(tmp_path / "secret.hxz"), leaf_size=4096)
    context = new_context(1 << 20, PASSWORD, workers=0, seals=SealPolicy(None, True))
    with open_snapshot(str(path), context) as snapshot:
        check(snapshot, {"disk": b"".join(blocks)}, 1000)
    data = bytearray(path.read_bytes())
    data[4096:8192], data[8192:12288] = data[8192:12288], data[4096:8192]
    path.write_bytes(data)
    with open_snapshot(str(path), context) as snapshot:
        assert snapshot.disk is not None
        for number, block in enumerate(blocks):
            if number < 3:
                with pytest.raises(SealMismatch):
                    snapshot.disk.read(number * 3000, 3000)
            else:
                assert b"".join(snapshot.disk.read(number * 3000, 3000)) == block


def test_entries_that_are_cut_off_or_repeated_behind_the_password_are_seen(tmp_path: Path) -> None:
    """An encrypted file edited by somebody who does not know its password, so that every check of the format is met."""
    craft = Craft()
    craft.encrypt(PASSWORD)
    for text in (b"A" * 5000, b"B" * 5000, b"C" * 5000):
        craft.data(text)
    craft.page()
    path = write_seal(craft.write(tmp_path / "secret.hxz"), leaf_size=4096)
    edited = Craft()
    edited.encryption, edited.body = craft.encryption, craft.body[: craft.pages["main"][0].offset - 4096]
    page = craft.body[craft.pages["main"][0].offset - 4096 :]
    edited.entries = [bytes(page[8 : 8 + 52]), bytes(page[8 + 52 : 8 + 104])]
    edited.page()
    (tmp_path / "bare.hxz").write_bytes(edited.finish())
    with open_snapshot(str(tmp_path / "bare.hxz"), new_context(1 << 20, PASSWORD, workers=0)) as snapshot:
        assert snapshot.disk is not None
        assert b"".join(snapshot.disk.read(0, snapshot.disk.size)) == b"A" * 5000 + b"B" * 5000
    for content in (edited.finish(), edited.finish().ljust(path.stat().st_size, b"\0")):
        path.write_bytes(content)
        with pytest.raises((SealMismatch, SealDamaged)):
            open_snapshot(str(path), new_context(1 << 20, PASSWORD, workers=0))
