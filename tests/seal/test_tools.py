"""`seal`, and what the other commands do with seals, as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hexz.errors import HexzError, SystemFailure
from hexz.format.seal import LEAF_SIZE, seal_key
from hexz.storage import LocalFile
from hexz.tools import output
from hexz.tools import seal as seal_module
from hexz.tools.pack import pack
from hexz.tools.seal import seal
from tests import samples
from tests.crafted import Craft
from tests.images.house import House
from tests.peers import ROOT, write_secret
from tests.seal.making import seal_bytes, seal_path
from tests.tools.test_reading import hexz

SECRET = b"the secret behind keyed seals"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A raw image, and its snapshot ``snap.hxz`` without a seal."""
    (tmp_path / "raw").write_bytes(random.Random(9).randbytes(3_000_000))
    pack(str(tmp_path / "raw"), str(tmp_path / "snap.hxz"))
    write_secret(tmp_path / "key", SECRET + b"\n")
    return tmp_path


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("keyed", [False, True])
def test_seal_writes_what_the_format_says_and_the_others_read_it(folder: Path, keyed: bool) -> None:
    snap, options = folder / "snap.hxz", ["--seal-key-file", folder / "key"] if keyed else []
    done = hexz("seal", *options, snap)
    assert (done.returncode, done.stderr) == (0, b"")
    sealed = seal_path(snap).read_bytes()
    assert sealed == seal_bytes(snap.read_bytes(), seal_key(SECRET) if keyed else None)
    root, kind = sealed[32:64].hex(), "keyed" if keyed else "plain"
    assert done.stdout.decode() == f"{snap}.sum: {kind} seal of 2.9 MiB, root {root}\n"
    assert sorted(os.listdir(folder)) == ["key", "raw", "snap.hxz", "snap.hxz.sum"]
    facts = json.loads(hexz("info", "--json", *options, snap).stdout)
    assert (facts["sealed"], facts["seal_root"]) == (kind, root)
    assert f"sealed     {kind}, root {root}" in hexz("info", *options, snap).stdout.decode()
    assert hexz("cat", "--require-seal", *options, snap).stdout == (folder / "raw").read_bytes()
    assert hexz("verify", "--require-seal", *options, snap).returncode == 0
    assert hexz("extract", "--require-seal", *options, snap, folder / "out").returncode == 0
    assert (folder / "out").read_bytes() == (folder / "raw").read_bytes()


def test_sealing_again_says_the_same_and_a_new_seal_takes_the_place_of_the_old(folder: Path) -> None:
    snap = folder / "snap.hxz"
    assert hexz("seal", snap).returncode == 0
    first = seal_path(snap).read_bytes()
    assert hexz("seal", snap).returncode == 0
    assert seal_path(snap).read_bytes() == first
    damage(snap, 100_000)
    assert hexz("verify", snap).returncode == 1
    assert hexz("seal", snap).returncode == 0
    assert seal_path(snap).read_bytes() != first


@pytest.mark.parametrize(
    ("make", "status", "says"),
    [
        (lambda path: None, 66, "no such file"),
        (lambda path: path.write_bytes(b""), 65, "the file is empty"),
        (lambda path: path.write_bytes(b"PK\3\4" * 2000), 65, "not a hexz snapshot"),
        (lambda path: path.write_bytes(bytes(9000)), 65, "not finished"),
        (lambda path: path.mkdir(), 66, "not a regular file"),
    ],
)
def test_only_snapshots_are_sealed(tmp_path: Path, make: object, status: int, says: str) -> None:
    path = tmp_path / "other.hxz"
    make(path)  # type: ignore[operator]
    done = hexz("seal", path)
    assert (done.returncode, says in done.stderr.decode()) == (status, True), done
    assert len(done.stderr.splitlines()) == 1
    assert not seal_path(path).exists()


def test_a_folder_in_the_place_of_the_seal_is_left_alone(folder: Path) -> None:
    seal_path(folder / "snap.hxz").mkdir()
    done = hexz("seal", folder / "snap.hxz")
    assert done.returncode == 2
    assert b"snap.hxz.sum: is a folder" in done.stderr


def test_a_file_that_changes_while_it_is_sealed_gets_no_seal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snap = folder / "snap.hxz"
    write = seal_module._write

    def change(*arguments: object) -> object:
        header = write(*arguments)  # type: ignore[arg-type]
        with snap.open("r+b") as file:
            file.seek(200_000)
            file.write(b"changed")
        return header

    monkeypatch.setattr(seal_module, "_write", change)
    with pytest.raises(SystemFailure, match="was changed or replaced while it was sealed"):
        seal(str(snap))
    assert not seal_path(snap).exists()


def test_a_disk_that_fails_leaves_the_old_seal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snap = folder / "snap.hxz"
    seal(str(snap))
    before = seal_path(snap).read_bytes()
    damage(snap, 1_000_000)
    real = LocalFile.read

    def read(file: LocalFile, offset: int, length: int) -> bytes:
        if offset > 1_500_000:
            raise OSError(5, "Input/output error")
        return real(file, offset, length)

    monkeypatch.setattr(LocalFile, "read", read)
    with pytest.raises((HexzError, OSError)):
        seal(str(snap))
    assert seal_path(snap).read_bytes() == before
    assert sorted(os.listdir(folder)) == ["key", "raw", "snap.hxz", "snap.hxz.sum"]


def test_a_progress_bar_on_a_terminal_alone(folder: Path) -> None:
    leader, follower = pty.openpty()
    program = (
        "import sys; from hexz.tools import progress; progress.REDRAW_S = 0\n"
        "from hexz.tools.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "seal", str(folder / "snap.hxz")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=follower, check=False, timeout=60)
    os.close(follower)
    drawn = b""
    try:
        while piece := os.read(leader, 65536):
            drawn += piece
    except OSError:
        pass  # what Linux says when the other side has gone
    os.close(leader)
    assert done.returncode == 0
    assert b"sealing snap.hxz [" in drawn
    assert drawn.endswith(b"\r\x1b[K")
    assert hexz("seal", folder / "snap.hxz").stderr == b""


def test_a_seal_is_for_who_may_read_the_file(folder: Path) -> None:
    snap = folder / "snap.hxz"
    for mode in (0o600, 0o640, 0o644):
        snap.chmod(mode)
        seal(str(snap))
        assert seal_path(snap).stat().st_mode & 0o777 == mode
    out = folder / "machine.hxz"
    pack(str(folder / "raw"), str(out), memory=str(folder / "raw"), seal=True)
    assert seal_path(out).stat().st_mode & 0o777 == out.stat().st_mode & 0o777 == 0o600


# verify


def test_verify_names_each_place(folder: Path) -> None:
    snap = folder / "snap.hxz"
    seal(str(snap))
    for at, places in ((1_000_000, 2), (2_000_000, 4)):  # each leaf, and each block that it has a part of
        damage(snap, at)
        done = hexz("verify", snap)
        assert done.returncode == 1
        assert done.stdout.decode() == f"{snap}: DAMAGED: {places} places in 2.9 MiB\n"
        assert f"the {LEAF_SIZE} bytes at {at // LEAF_SIZE * LEAF_SIZE} are not those" in done.stderr.decode()


@pytest.mark.parametrize("from_end", [False, True])
def test_damage_in_what_opening_reads_is_told_at_once(folder: Path, from_end: bool) -> None:
    """Header, and index and metadata at the end."""
    snap = folder / "snap.hxz"
    seal(str(snap))
    damage(snap, snap.stat().st_size - 5 if from_end else 2000)
    for command in ("verify", "info", "cat"):
        done = hexz(command, snap)
        assert done.returncode == 65
        assert done.stdout == b""
        assert b"are not those that were sealed" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_verify_looks_at_what_no_block_uses_too(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"before" * 100)
    gap = craft.store(bytes(40_000))
    craft.data(b"behind" * 100)
    craft.page()
    path = craft.write(tmp_path / "gap.hxz")
    seal(str(path))
    assert hexz("verify", path).returncode == 0
    damage(path, gap + 20_000)
    done = hexz("verify", path)
    assert (done.returncode, b": DAMAGED: 1 place in" in done.stdout) == (1, True)
    assert hexz("cat", path).stdout == b"before" * 100 + b"behind" * 100


# Writing sealed snapshots


@pytest.mark.parametrize("options", [[], ["--compression", "zstd", "--block-size", "4K", "--dictionary"]])
@pytest.mark.parametrize("keyed", [False, True])
def test_pack_seals_what_it_writes(folder: Path, options: list[str], keyed: bool) -> None:
    (folder / "raw").write_bytes(samples.image(2_000_000, seed=3))
    key = ["--seal-key-file", folder / "key"] if keyed else []
    out = folder / "new.hxz"
    done = hexz("pack", folder / "raw", out, "--seal", *key, *options)
    assert (done.returncode, done.stderr) == (0, b"")
    assert seal_path(out).read_bytes() == seal_bytes(out.read_bytes(), seal_key(SECRET) if keyed else None)
    assert hexz("cat", "--require-seal", *key, out).stdout == (folder / "raw").read_bytes()


def test_pack_does_not_leave_a_new_file_with_an_old_seal(folder: Path) -> None:
    snap = folder / "snap.hxz"
    seal(str(snap))
    before = snap.read_bytes(), seal_path(snap).read_bytes()
    (folder / "raw").write_bytes(b"something else" * 1000)
    done = hexz("pack", folder / "raw", snap, "--force")
    assert done.returncode == 2
    assert b"snap.hxz.sum: is the seal of the file to be replaced: give --seal, or remove it first" in done.stderr
    assert (snap.read_bytes(), seal_path(snap).read_bytes()) == before
    assert hexz("pack", folder / "raw", snap, "--seal", "--force").returncode == 0
    assert hexz("cat", "--require-seal", snap).stdout == b"something else" * 1000


def test_a_pack_that_fails_leaves_neither_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    with pytest.raises(SystemFailure, match="No space left"):
        pack(str(folder / "raw"), str(folder / "new.hxz"), seal=True)
    assert sorted(os.listdir(folder)) == ["key", "raw", "snap.hxz"]


def test_pack_reads_a_sealed_parent_through_its_seal(folder: Path) -> None:
    snap = folder / "snap.hxz"
    seal(str(snap), seal_key(SECRET))
    done = hexz("pack", folder / "raw", folder / "thin.hxz", "--parent", snap)
    assert done.returncode == 77
    assert b"--seal-key-file" in done.stderr
    key = ["--seal-key-file", folder / "key"]
    done = hexz("pack", folder / "raw", folder / "thin.hxz", "--parent", snap, "--seal", *key)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hexz("cat", "--require-seal", *key, folder / "thin.hxz").stdout == (folder / "raw").read_bytes()
    damage(snap, 1_000_000)
    assert hexz("pack", folder / "raw", folder / "again.hxz", "--parent", snap, *key).returncode == 65
    assert not (folder / "again.hxz").exists()


def test_commit_seals_what_it_writes_and_reads_through_the_seal_below(folder: Path) -> None:
    snap = folder / "snap.hxz"
    seal(str(snap))
    (folder / "house").mkdir()
    with House(folder / "house", "--require-seal", snap) as house:
        overlay = house.files / "over"
        house.register("over", backend="overlay", snapshot="snap", file=str(overlay))
        house.json("PATCH", "/over", b"new" * 100, {"Range": "bytes=5000-5299"})
    out = folder / "next.hxz"
    assert hexz("commit", overlay, out, "--seal", "--require-seal").returncode == 0
    image = bytearray((folder / "raw").read_bytes())
    image[5000:5300] = b"new" * 100
    assert hexz("cat", "--require-seal", out).stdout == image
    assert hexz("commit", overlay, out).returncode == 2
    assert hexz("cat", out).stdout == image
