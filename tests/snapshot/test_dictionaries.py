"""Damage of a dictionary: where nothing in the file could tell of it, the daemon and ``hexz verify`` say that."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import zstandard

from hexz.errors import HexzError
from hexz.format.codec import FrameMarks, frame_marks
from hexz.format.errors import BlockDamage
from hexz.snapshot import doubt, new_context, open_snapshot
from hexz.tools.pack import pack
from tests import samples
from tests.conftest import CORPUS
from tests.control.clients import ask
from tests.crafted import Craft
from tests.peers import ROOT, Server, run, write_secret
from tests.seal.making import write_seal
from tests.tools.test_reading import hexz

PASSWORD = b"secret"
HASHED = "0.5.1-zstd-dict-serial.hxz"
UNCHECKED = ("0.1.1-zstd-dict.hxz", *([] if find_spec("blake3") else [HASHED]))
"""Released writers used a dictionary and wrote no checksum; from 0.5 on a hash, which not everybody can check."""
CANNOT = "cannot be noticed"
TIMEOUT_S = 60.0


def doubted(path: Path) -> str:
    with open_snapshot(str(path), new_context(8 << 20, PASSWORD, workers=0)) as snapshot:
        return doubt(snapshot)


def trained() -> bytes:
    source = random.Random(3)
    texts = [b"".join(b"field %d of a record; " % source.randrange(40) for _ in range(60)) for _ in range(200)]
    return zstandard.train_dictionary(4096, texts).as_bytes()


def crafted(path: Path, layout: str = "B52", encrypt: bool = False, use: bool = True, checksum: bool = False) -> Path:
    """A snapshot with a dictionary; its blocks need it, or do not, and carry a checksum, or do not."""
    craft = Craft(layout, "zstd")
    dictionary = trained()
    craft.train(dictionary)
    if encrypt:
        craft.encrypt(PASSWORD)
    if not use:
        craft.trained = None
    craft.zero(4096)
    block = b"field 7 of a record; " * 100
    if checksum:
        data = zstandard.ZstdCompressionDict(dictionary)
        craft.raw(zstandard.ZstdCompressor(dict_data=data, write_checksum=True).compress(block), len(block))
    else:
        craft.data(block)
    craft.page()
    return craft.write(path)


@pytest.mark.parametrize("layout", ["A20", "A52", "B52", "C52"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, True),
        ({"encrypt": True}, True),
        ({"use": False}, False),
        ({"encrypt": True, "use": False}, False),
        ({"checksum": True}, False),
    ],
)
def test_the_first_stored_block_decides(tmp_path: Path, layout: str, options: dict[str, bool], told: bool) -> None:
    path = crafted(tmp_path / "snap.hxz", layout, **options)
    assert (CANNOT in doubted(path)) is told
    write_seal(path)
    assert doubted(path) == ""


@pytest.mark.parametrize(
    ("checksum", "dictionary", "expected"),
    [(False, False, (0, False)), (True, False, (0, True)), (False, True, (None, False)), (True, True, (None, True))],
)
def test_marks_of_a_frame(checksum: bool, dictionary: bool, expected: tuple[int | None, bool]) -> None:
    """RFC 8878 section 3.1.1.1.1: the descriptor's bit 2, and the dictionary's id."""
    data = zstandard.ZstdCompressionDict(trained()) if dictionary else None
    compressor = zstandard.ZstdCompressor(dict_data=data, write_checksum=checksum, write_content_size=False)
    frame = compressor.compress(b"x" * 100)
    named = data.dict_id() if data is not None else 0
    assert frame_marks(frame) == FrameMarks(named, checksum) and expected[1] is bool(frame[4] & 4)
    for bad in (b"", frame[:4], b"no frame at all"):
        with pytest.raises(BlockDamage):
            frame_marks(bad)


@pytest.mark.parametrize("name", UNCHECKED)
def test_what_is_told_is_true(tmp_path: Path, name: str) -> None:
    """Some damage of such a dictionary gives other bytes without an error; with a seal none does."""
    data = (CORPUS / name).read_bytes()
    with open_snapshot(str(CORPUS / name), new_context(workers=0)) as snapshot:
        place, right = snapshot.header.dictionary, read(CORPUS / name)
        assert place is not None
    path = tmp_path / name
    shutil.copy(CORPUS / name, path)
    write_seal(path)
    seal = Path(f"{path}.sum").read_bytes()
    wrong = 0
    for number in range(60):
        hurt = bytearray(data)
        hurt[random.Random(number).randrange(place.offset, place.offset + place.length)] ^= 1
        path.write_bytes(hurt)
        for sealed in (False, True):
            Path(f"{path}.sum").write_bytes(seal) if sealed else Path(f"{path}.sum").unlink()
            try:
                got = read(path)
            except HexzError:
                continue
            assert not sealed or got == right
            wrong += got != right
    assert wrong


def read(path: Path) -> bytes:
    with open_snapshot(str(path), new_context(8 << 20, workers=0)) as snapshot:
        assert snapshot.disk is not None
        return b"".join(bytes(view) for view in snapshot.disk.read(0, snapshot.disk.size))


def test_our_own_snapshots_and_all_others_are_not_doubted(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(samples.image(200_000))
    pack(str(tmp_path / "raw"), str(tmp_path / "own"), compression="zstd", block_size=512, dictionary=True)
    assert doubted(tmp_path / "own") == ""
    told = set()
    for path in sorted(CORPUS.glob("*.hxz")):
        try:
            if doubted(path):
                told.add(path.name)
        except HexzError:  # it needs another password
            continue
    assert told == set(UNCHECKED)


def test_the_dictionary_of_an_ancestor_counts(tmp_path: Path) -> None:
    base = crafted(tmp_path / "base.hxz")
    craft = Craft()
    craft.parents = ["base.hxz"]
    craft.parent(4096)
    craft.page()
    child = craft.write(tmp_path / "child.hxz")
    assert doubted(child).startswith(f"{child}: damage of the dictionary of {base} cannot be noticed")
    write_seal(base)
    assert doubted(child) == ""


def test_verify_says_so(tmp_path: Path) -> None:
    path = tmp_path / "snap.hxz"
    shutil.copy(CORPUS / UNCHECKED[0], path)
    done = hexz("verify", path)
    assert done.returncode == 0
    assert f"warning: {path}: damage of its dictionary cannot be noticed".encode() in done.stdout
    assert hexz("seal", path).returncode == 0
    assert b"warning" not in hexz("verify", path).stdout


def test_the_daemon_says_so_once_for_each_snapshot(tmp_path: Path) -> None:
    """At the start, on a mount, and when a file is replaced; not again for what stayed as it is."""
    served, control = tmp_path / "served", tmp_path / "control"
    served.mkdir()
    for name in (*UNCHECKED, "0.7.0-lz4-onebyte.hxz"):
        shutil.copy(CORPUS / name, served / name)
    crafted(served / "secret.hxz", encrypt=True)
    other = crafted(tmp_path / "other.hxz")
    password = write_secret(tmp_path / "password", PASSWORD)
    options = ("--password-file", password, "--http-port", 0)

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if CANNOT in line]

    with Server(*options, "--control", control, served) as server:
        said = lines(server.stderr())
        assert [name for name in (*UNCHECKED, "secret.hxz") if name not in "".join(said)] == []
        assert len(said) == len(UNCHECKED) + 1
        assert all(" WARNING " in line and "hexz seal closes that" in line for line in said)
        body = {"source": str(other), "fs_type": "rafs", "config": "{}"}
        assert ask(control, "POST", "/api/v1/mount?mountpoint=/other", body).status < 300
        assert "other.hxz" in lines(server.stderr())[-1]
        shutil.copy(served / UNCHECKED[0], tmp_path / "newer")
        (tmp_path / "newer").rename(served / "0.7.0-lz4-onebyte.hxz")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + TIMEOUT_S
        while "reloaded: " not in server.stderr():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(lines(server.stderr())) == len(UNCHECKED) + 3
        assert "0.7.0-lz4-onebyte.hxz" in lines(server.stderr())[-1]
    done = run(sys.executable, ROOT / "hexz_serve.py", "--check", *options, served)
    assert len(lines(done.stdout)) == len(UNCHECKED) + 2 and "warning: " in done.stdout
