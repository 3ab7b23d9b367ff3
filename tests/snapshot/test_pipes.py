"""Snapshots packed from a pipe declare that they have no bytes, though their blocks hold them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from hexz.errors import CorruptSnapshot
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.extract import extract
from hexz.tools.verify import verify
from tests.crafted import Craft
from tests.peers import Server

DATA = bytes(range(256)) * 50
SAID = f"declares no bytes and is served so, but its blocks hold {len(DATA)}"


def piped(folder: Path, stream: str = "main", page_blocks: int = 3, layout: str = "B52") -> Path:
    craft = Craft(layout, block_size=1000)
    for at in range(0, len(DATA), 1000):
        craft.data(DATA[at : at + 1000])
        if len(craft.entries) == page_blocks:
            craft.page(stream)
    if craft.entries:
        craft.page(stream)
    craft.sizes[stream] = 0
    return craft.write(folder / "piped.hxz")


@pytest.mark.parametrize("layout", ["A20", "A52", "B52", "C52"])
@pytest.mark.parametrize("stream, name", [("main", "disk"), ("aux", "memory")])
@pytest.mark.parametrize("page_blocks", [3, 100])
def test_what_is_there_can_be_saved(tmp_path: Path, layout: str, stream: str, name: str, page_blocks: int) -> None:
    path = piped(tmp_path, stream, page_blocks, layout)
    with open_snapshot(str(path), new_context(1 << 20, workers=0)) as snapshot:
        assert snapshot.streams[name].size == 0
        assert [SAID in oddity and name in oddity for oddity in snapshot.oddities] == [True]
    plain = extract(str(path), str(tmp_path / "plain"), name)
    assert plain.written == 0 and (tmp_path / "plain").read_bytes() == b""
    assert plain.left_out == [f"{len(DATA)} bytes of the {name} stream, which declares none: --undeclared saves them"]
    assert extract(str(path), str(tmp_path / "saved"), name, undeclared=True) == (len(DATA), [])
    assert (tmp_path / "saved").read_bytes() == DATA


def test_the_blocks_are_verified(tmp_path: Path) -> None:
    path = piped(tmp_path)
    assert verify(str(path), print)[:2] == (0, len(DATA))
    data = bytearray(path.read_bytes())
    data[4096 + 20] ^= 1
    path.write_bytes(data)
    assert verify(str(path), lambda line: None)[:2] == (1, len(DATA))


def test_a_size_that_is_only_too_small_is_damage(tmp_path: Path) -> None:
    craft = Craft(block_size=1000)
    craft.data(DATA[:1000])
    craft.page()
    craft.sizes["main"] = 999
    path = str(craft.write(tmp_path / "t.hxz"))
    with pytest.raises(CorruptSnapshot, match="the disk stream end at 1000, and its size is said to be 999"):
        open_snapshot(path, new_context(1 << 20, workers=0))


def test_the_daemon_serves_nothing_and_says_why(tmp_path: Path) -> None:
    with Server("--http-port", 0, piped(tmp_path)) as server:
        disk = requests.get(f"{server.http}/disk", timeout=30)
        assert (disk.status_code, disk.content) == (200, b"")
        assert [SAID in oddity for oddity in requests.get(f"{server.http}/info", timeout=30).json()["oddities"]] == [
            True
        ]
        assert SAID in server.stderr()
