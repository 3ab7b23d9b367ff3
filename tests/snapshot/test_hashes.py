"""The hash that an entry has of its block's content: compared wherever a block is decoded, if its package is there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import requests

from hexz.errors import BlockError, HexzError
from hexz.format.digest import NO_HASH, find_hasher
from hexz.snapshot import Snapshot, new_context, open_snapshot, stored
from hexz.snapshot.uncached import read_uncached
from hexz.tools.info import info
from hexz.tools.verify import verify
from tests.conftest import CORPUS
from tests.crafted import Craft
from tests.peers import Server, need_module, write_secret

blake3 = need_module("blake3").blake3

PASSWORD = b"secret"
SIZE = 4096
RIGHT, FORGED = b"right".ljust(SIZE), b"forged".ljust(SIZE)
TIMEOUT_S = 60.0


def digest(data: bytes) -> bytes:
    found: bytes = blake3(data).digest()
    return found


def opened(path: Path, workers: int = 0) -> Snapshot:
    return open_snapshot(str(path), new_context(4 << 20, PASSWORD, workers=workers))


def disk(path: Path) -> bytes:
    with opened(path) as snapshot:
        stream = snapshot.streams["disk"]
        return b"".join(bytes(view) for view in stream.read(0, stream.size))


def made(path: Path, recorded: bytes, layout: str = "B52", encrypt: bool = False, compression: str = "lz4") -> Path:
    """A block that is forged, its CRC with it, between two right ones; its entry has the hash `recorded`."""
    craft = Craft(layout, compression)
    if encrypt:
        craft.encrypt(PASSWORD)
    craft.data(RIGHT, NO_HASH if encrypt else digest(RIGHT))
    craft.data(FORGED, recorded)
    craft.data(RIGHT)
    craft.page()
    return craft.write(path)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("layout", ["A52", "B52", "C52"])
def test_a_block_rewritten_with_its_crc_is_refused(tmp_path: Path, layout: str, compression: str) -> None:
    path = made(tmp_path / "snap.hxz", digest(RIGHT), layout, compression=compression)
    with opened(path) as snapshot:
        stream = snapshot.streams["disk"]
        for _ in range(2):
            with pytest.raises(BlockError, match=r"disk block at 4096 .*: BLAKE3 mismatch"):
                stream.read(SIZE, SIZE)
            assert b"".join(stream.read(0, SIZE)) == b"".join(stream.read(2 * SIZE, SIZE)) == RIGHT
        with pytest.raises(BlockError):
            list(read_uncached(stream, 0, stream.size))
    lines: list[str] = []
    assert verify(str(path), lines.append).damaged == len(lines) == 1
    assert "BLAKE3 mismatch" in lines[0]


@pytest.mark.parametrize(
    ("layout", "recorded", "encrypt"), [("B52", NO_HASH, False), ("B52", NO_HASH, True), ("A20", b"", False)]
)
def test_where_there_is_no_hash_none_is_missed(tmp_path: Path, layout: str, recorded: bytes, encrypt: bool) -> None:
    assert disk(made(tmp_path / "snap.hxz", recorded, layout, encrypt)) == RIGHT + FORGED + RIGHT


@pytest.mark.parametrize("first", [0, 1])
def test_a_copy_that_is_right_by_one_hash_is_not_so_by_another(tmp_path: Path, first: int) -> None:
    """Two entries share a stored block, as equal blocks do; what is cached of one is not taken for the other."""
    craft = Craft()
    craft.data(RIGHT, digest(RIGHT))
    craft.entries.append(craft.entries[0][:20] + digest(FORGED))
    craft.page()
    with opened(craft.write(tmp_path / "snap.hxz")) as snapshot:
        for number in (first, 1 - first, first):
            if number == 0:
                assert b"".join(snapshot.streams["disk"].read(0, SIZE)) == RIGHT
            else:
                with pytest.raises(BlockError, match="BLAKE3"):
                    snapshot.streams["disk"].read(SIZE, SIZE)


def test_the_releases_hashes_are_of_the_bytes_that_are_read() -> None:
    hashed = 0
    for path in sorted(CORPUS.glob("*.hxz")):
        try:
            snapshot = opened(path)
        except HexzError:  # another password, or a parent that is elsewhere
            continue
        with snapshot:
            for stream in snapshot.streams.values():
                for page in stream.pages.each():
                    for number in range(page.count):
                        if page.stored[number] and page.hash(number) not in (b"", NO_HASH):
                            data = b"".join(stream.read(page.block_start(number), page.logical[number]))
                            assert digest(data) == page.hash(number)
                            hashed += 1
    assert hashed > 100


def test_damage_of_a_dictionary_is_noticed(tmp_path: Path) -> None:
    """Where the frames have no checksum of their own, of the entries' hashes."""
    path = tmp_path / "snap.hxz"
    shutil.copy(CORPUS / "0.5.1-zstd-dict-serial.hxz", path)
    right = disk(path)
    data = path.read_bytes()
    with opened(path) as snapshot:
        place = snapshot.header.dictionary
    assert place is not None
    refused = 0
    for at in range(place.offset, place.offset + place.length, place.length // 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            assert disk(path) == right
        except HexzError:
            refused += 1
    assert refused


def test_the_daemon_refuses_the_block_and_serves_the_others(tmp_path: Path) -> None:
    path = made(tmp_path / "snap.hxz", digest(RIGHT))
    password = write_secret(tmp_path / "password", PASSWORD)
    with Server("--http-port", 0, "--password-file", password, path) as server:

        def answer(number: int) -> requests.Response:
            headers = {"Range": f"bytes={number * SIZE}-{number * SIZE + SIZE - 1}"}
            return requests.get(f"{server.http}/disk", headers=headers, timeout=TIMEOUT_S)

        assert [answer(number).status_code for number in range(3)] == [206, 500, 206]
        assert answer(0).content == RIGHT
        assert "BLAKE3 mismatch" in server.stderr()


def test_info_says_whether_they_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(made(tmp_path / "snap.hxz", digest(FORGED)))
    assert "hashes     BLAKE3 of 2 blocks, checked when they are read" in info(path, False, None, ())
    monkeypatch.setattr(stored, "find_hasher", lambda: None)
    assert "hashes     BLAKE3 of 2 blocks, not checked here: pip install blake3" in info(path, False, None, ())


def test_without_the_package_everything_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blake3.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.delitem(sys.modules, "blake3")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_hasher.__wrapped__() is None
    monkeypatch.setattr(stored, "find_hasher", find_hasher.__wrapped__)
    assert disk(made(tmp_path / "snap.hxz", digest(RIGHT))) == RIGHT + FORGED + RIGHT
