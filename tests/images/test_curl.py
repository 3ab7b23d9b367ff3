"""Every curl command that the documentation of the CloudStack image server shows, as it stands there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hexz.tools.pack import pack
from tests import samples
from tests.images.house import House, Peer, qcow2_with_bitmap, qemu_nbd
from tests.peers import need, run

SIZE = (2 << 20) + 4096
GIB = 1 << 30
OLD, NEW = samples.image(SIZE, seed=50), samples.image(SIZE, seed=51)
JSON = ("-H", "Content-Type: application/json", "--data-binary")


class Desk:
    """A house, and curl in a folder with ``demo.img`` and ``chunk.bin``."""

    def __init__(self, folder: Path, house: House) -> None:
        self.house = house
        self.folder = folder
        (folder / "demo.img").write_bytes(NEW)
        (folder / "chunk.bin").write_bytes(NEW[: (1 << 20) + 1])

    def curl(self, *arguments: object) -> str:
        """Its output; it has to succeed, and fails on an error status only with -f."""
        return run(need("curl", "curl"), "--max-time", 60, *arguments, cwd=self.folder).stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.curl("-s", *arguments))

    def content(self, image: str) -> bytes:
        self.curl("-v", self.house.url(image), "-o", "whole.bin")
        return (self.folder / "whole.bin").read_bytes()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "old.raw").write_bytes(OLD)
    pack(str(tmp_path / "old.raw"), str(tmp_path / "old.hxz"))
    with House(tmp_path, tmp_path / "old.hxz") as house:
        yield Desk(tmp_path, house)


def writable(desk: Desk, kind: str) -> tuple[str, Peer | None]:
    """The URL of a writable image with the bytes OLD, and what has to be killed in the end."""
    if kind == "overlay":
        return desk.house.register("demo", backend="overlay", snapshot="old", file=str(desk.house.files / "over")), None
    disk = desk.folder / "demo.qcow2"
    qcow2_with_bitmap(disk, desk.folder / "old.raw")
    peer = qemu_nbd(desk.folder / "nbd.sock", disk, "qcow2", "-B", "b0")
    return desk.house.register("demo", socket=str(peer.socket), export="disk", export_bitmap="b0"), peer


@pytest.mark.parametrize("kind", ["nbd", "overlay"])
def test_a_writable_image(desk: Desk, kind: str) -> None:
    url, peer = writable(desk, kind)
    try:
        expected = bytearray(OLD)
        head, _, body = desk.curl("-s", "-i", "-X", "OPTIONS", url).partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        assert "Access-Control-Allow-Methods: OPTIONS, GET, HEAD, PUT, PATCH" in head
        options = json.loads(body)
        assert options["features"] == ["checksum", "extents", "flush", "zero"]
        assert (options["unix_socket"], options["max_readers"], options["max_writers"]) == (None, 8, 1)

        assert desk.content("demo") == OLD
        desk.curl("-v", "-H", "Range: bytes=0-1048575", url, "-o", "first_1MiB.bin")
        assert (desk.folder / "first_1MiB.bin").read_bytes() == OLD[: 1 << 20]

        extents = desk.json(f"{url}/extents")
        assert sum(extent["length"] for extent in extents) == SIZE
        assert {frozenset(extent) for extent in extents} == {frozenset({"start", "length", "zero", "hole"})}

        zeroed = desk.json("-k", "-X", "PATCH", *JSON, '{"op": "zero", "offset": 4096, "size": 8192}', url)
        expected[4096:12288] = bytes(8192)
        assert zeroed["ok"] is True and desk.content("demo") == expected
        assert desk.json("-k", "-X", "PATCH", *JSON, '{"op": "flush"}', url)["ok"] is True

        # The range ends in, and not behind, its last byte: the body has one more than a MiB.
        wrote = desk.json("-v", "-X", "PATCH", "-H", "Range: bytes=0-1048576", "--data-binary", "@chunk.bin", url)
        expected[: (1 << 20) + 1] = NEW[: (1 << 20) + 1]
        assert (wrote["ok"], wrote["bytes_written"]) == (True, (1 << 20) + 1)
        assert desk.content("demo") == expected

        dirty = desk.json(f"{url}/extents?context=dirty")
        assert {frozenset(extent) for extent in dirty} == {frozenset({"start", "length", "dirty", "zero"})}
        assert dirty[0]["dirty"] and not any(e["dirty"] for e in dirty if e["start"] >= (1 << 20) + 65536)
        assert sum(extent["length"] for extent in dirty) == SIZE

        wrote = desk.json("-v", "-T", "demo.img", url)
        assert (wrote["ok"], wrote["bytes_written"]) == (True, SIZE)
        assert desk.content("demo") == NEW
        assert desk.json("-X", "POST", f"{url}/flush") == {"ok": True}

        everything = '{"op": "zero", "size": 107374182400, "flush": true}'
        assert desk.json("-k", "-X", "PATCH", *JSON, everything, url)["flushed"] is True
        assert desk.content("demo") == bytes(SIZE)
    finally:
        if peer is not None:
            peer.kill()


def test_zeros_far_behind(desk: Desk) -> None:
    disk = desk.folder / "large.raw"
    with disk.open("wb") as file:
        file.truncate(GIB + 8192)
        for at in (GIB - 1, GIB + 4096):
            file.seek(at)
            file.write(b"x")
        file.seek(GIB)
        file.write(b"y" * 4096)
    with qemu_nbd(desk.folder / "nbd.sock", disk) as peer:
        url = desk.house.register("demo", socket=str(peer.socket), export="disk")
        assert desk.json("-k", "-X", "PATCH", *JSON, '{"op": "zero", "offset": 1073741824, "size": 4096}', url)["ok"]
        desk.curl("-r", f"{GIB - 1}-", url, "-o", "end.bin")
        assert (desk.folder / "end.bin").read_bytes() == b"x" + bytes(4096) + b"x" + bytes(4095)
        everything = '{"op": "zero", "size": 107374182400, "flush": true}'
        assert desk.json("-k", "-X", "PATCH", *JSON, everything, url)["ok"]
        assert desk.json(f"{url}/extents") == [{"start": 0, "length": GIB + 8192, "zero": True, "hole": True}]


def test_a_raw_file(desk: Desk) -> None:
    path = desk.house.files / "demo.raw"
    path.write_bytes(OLD)
    url = desk.house.register("demo", backend="file", file=str(path))
    options = json.loads(desk.curl("-s", "-i", "-X", "OPTIONS", url).partition("\n\n")[2])
    assert set(options["features"]) >= {"flush"} and options["max_writers"] == 1
    assert desk.content("demo") == OLD
    assert desk.json("-T", "demo.img", url)["bytes_written"] == SIZE
    assert path.read_bytes() == NEW
    assert desk.json("-X", "POST", f"{url}/flush") == {"ok": True}
    refused = desk.json("-X", "PATCH", "-H", "Range: bytes=0-1048576", "--data-binary", "@chunk.bin", url)
    assert "not possible" in refused["error"] and path.read_bytes() == NEW


def test_a_snapshot(desk: Desk) -> None:
    url = desk.house.url("old")
    options = desk.json("-X", "OPTIONS", url)
    assert (options["features"], options["max_writers"], options["size"]) == (["checksum", "extents"], 0, SIZE)
    assert desk.content("old") == OLD
    for arguments in (
        ("-T", "demo.img", url),
        ("-X", "PATCH", *JSON, '{"op": "zero", "offset": 4096, "size": 8192}', url),
        ("-X", "PATCH", *JSON, '{"op": "flush"}', url),
        ("-X", "PATCH", "-H", "Range: bytes=0-1048576", "--data-binary", "@chunk.bin", url),
    ):
        status = desk.curl("-s", "-o", "answer", "-w", "%{http_code}", *arguments)
        assert status == "405" and "not possible" in json.loads((desk.folder / "answer").read_text())["error"]
    assert desk.json("-X", "POST", f"{url}/flush") == {"ok": True}
    failed = subprocess.run(
        ["curl", "-sf", desk.house.url("nothing")], capture_output=True, timeout=60, check=False
    ).returncode
    assert failed == 22 and desk.json(desk.house.url("nothing")) == {"error": "unknown image_id"}
