"""NBD images over real servers: extents are what nbdinfo and qemu-img say, and a server that dies does no harm."""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.images.house import House, nbdkit, qcow2_with_bitmap, qemu_nbd
from tests.peers import need, run

SIZE = (24 << 20) + 12288
RECOVERY_S = 30.0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A daemon without a snapshot."""
    with House(tmp_path_factory.mktemp("house")) as made:
        yield made


Flags = tuple[int, int, int]


def mapped(uri: str, context: str | None = None) -> list[Flags]:
    """(start, length, flags) as nbdinfo has them, joined where they go on."""
    option = "--map" if context is None else f"--map={context}"
    found = json.loads(run(need("nbdinfo", "libnbd-bin"), "--json", option, uri).stdout)
    return joined((entry["offset"], entry["length"], entry["type"]) for entry in found)


def joined(entries: Any) -> list[Flags]:
    done: list[Flags] = []
    for start, length, flags in entries:
        if done and done[-1][2] == flags:
            done[-1] = (done[-1][0], done[-1][1] + length, flags)
        else:
            done.append((start, length, flags))
    return done


def ours(house: House, image: str) -> list[Flags]:
    """The same of our extents: 1 is a hole, 2 reads as zeros."""
    entries = house.extents(image)
    return joined((e["start"], e["length"], (1 if e["hole"] else 0) | (2 if e["zero"] else 0)) for e in entries)


def dirty(house: House, image: str, query: str = "") -> list[Flags]:
    entries = house.extents(image, f"?context=dirty{query}")
    return joined((e["start"], e["length"], int(e["dirty"])) for e in entries)


def test_extents_of_a_qcow2_with_a_bitmap_are_those_of_nbdinfo_and_qemu_img(house: House, tmp_path: Path) -> None:
    raw, disk = tmp_path / "old.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(samples.image(SIZE, seed=40))
    qcow2_with_bitmap(
        disk, raw,
        "write -P 9 1M 100k", "write -z 4M 64k", "write -P 3 5000k 10", "discard 8M 1M", "write -P 1 24M 12k",
        *(f"write -P {number} {number * 300 + 9000}k 4k" for number in range(1, 40)),
    )  # fmt: skip
    with qemu_nbd(tmp_path / "nbd.sock", disk, "qcow2", "-r", "-B", "b0") as peer:
        house.register("bitmap", socket=str(peer.socket), export="disk", export_bitmap="b0")
        uri = f"nbd+unix:///disk?socket={peer.socket}"
        assert ours(house, "bitmap") == mapped(uri)
        changed = dirty(house, "bitmap")
        assert changed == [(at, length, flags & 1) for at, length, flags in mapped(uri, "qemu:dirty-bitmap:b0")]
        assert len(changed) > 30 and sum(length for _, length, flags in changed if flags) < SIZE // 4
        # Both contexts at once: the zeros are the same, whatever is dirty.
        both = house.extents("bitmap", "?context=dirty")
        assert joined((e["start"], e["length"], e["zero"]) for e in both) == joined(
            (start, length, bool(flags & 2)) for start, length, flags in mapped(uri)
        )
        assert house.json("OPTIONS", "/bitmap")["dirty"] is True
        # A part of it is the same cut out.
        start, length = 999_999, 7_000_001
        part = house.json("GET", f"/bitmap/extents?context=dirty&start={start}&length={length}")
        assert [e for e in part if e["start"] + e["length"] == start + length] and part[0]["start"] == start
        inside = [(e["start"], e["length"]) for e in both if start < e["start"] < start + length - e["length"]]
        assert inside == [(e["start"], e["length"]) for e in part[1:-1]]
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", disk).stdout)
    assert [(start, length, bool(flags & 2)) for start, length, flags in ours_of_qemu(found)] == [
        (start, length, bool(flags)) for start, length, flags in joined(zeros(both))
    ]


def zeros(extents: list[dict[str, Any]]) -> list[Flags]:
    return [(e["start"], e["length"], int(e["zero"])) for e in extents]


def ours_of_qemu(entries: list[dict[str, Any]]) -> list[Flags]:
    return joined((e["start"], e["length"], 2 if e["zero"] else 0) for e in entries)


POLICY = "--filter=blocksize-policy"
BLOCKS = ("blocksize-minimum=4096", "blocksize-maximum=65536", "blocksize-error-policy=error")


@pytest.mark.parametrize(
    "plugin",
    [
        # This plugin's own bytes depend on where a read begins, but for whole blocks.
        (POLICY, "sparse-random", "size=32M", "percent=20", "seed=7", *BLOCKS),
        (POLICY, "sparse-random", "size=16M", "percent=90", "runlength=4096", "seed=8", *BLOCKS),
        ("data", "(0xff*5 0*100000 1*70000)*30"),
        ("memory", "size=1G"),
    ],
    ids=["sparse", "fragmented", "pattern", "hole"],
)
def test_extents_and_bytes_of_nbdkit_are_those_of_its_own_tools(
    house: House, tmp_path: Path, plugin: tuple[str, ...]
) -> None:
    with nbdkit(tmp_path / "kit.sock", "-r", *plugin) as peer:
        house.register("kit", socket=str(peer.socket), mode="ro")
        uri = f"nbd+unix:///?socket={peer.socket}"
        extents = ours(house, "kit")
        assert extents == mapped(uri)
        size = extents[-1][0] + extents[-1][1]
        if size > 64 << 20:
            return
        run(need("nbdcopy", "libnbd-bin"), "--request-size=65536", uri, tmp_path / "copy.raw")
        expected = (tmp_path / "copy.raw").read_bytes()
        assert house.ask("GET", "/kit")[2] == expected
        for start, length in ((0, 1), (4095, 2), (size - 1, 1), (size // 3, size // 3), (65537, 262145)):
            stop = min(start + length, size)
            status, _, data = house.ask("GET", "/kit", None, {"Range": f"bytes={start}-{stop - 1}"})
            assert (status, data) == (206, expected[start:stop])


@pytest.mark.parametrize("option", ["--no-sr", "--filter=noextents"])
def test_a_server_without_block_status_says_so_and_is_copied_whole(house: House, tmp_path: Path, option: str) -> None:
    with nbdkit(tmp_path / "kit.sock", option, "data", "0*5000 1 0*5000") as peer:
        house.register("plain", socket=str(peer.socket))
        options = house.json("OPTIONS", "/plain")
        if option == "--no-sr":
            assert "extents" not in options["features"]
        assert options["dirty"] is False
        whole = [{"start": 0, "length": 10001, "zero": False, "hole": False}]
        assert house.json("GET", "/plain/extents") == whole
        assert dirty(house, "plain") == [(0, 10001, 1)]
        assert house.ask("GET", "/plain")[2] == bytes(5000) + b"\1" + bytes(5000)


def test_requests_share_connections(house: House, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdkit(tmp_path / "kit.sock", "--filter=log", "memory", "size=1M", f"logfile={log}") as peer:
        house.register("pooled", socket=str(peer.socket))
        for number in range(20):
            place = {"Range": f"bytes={number * 512}-{number * 512 + 511}"}
            assert house.ask("PATCH", "/pooled", bytes([number + 1]) * 512, place)[0] == 200
            assert house.ask("GET", "/pooled", None, place)[2] == bytes([number + 1]) * 512
            house.extents("pooled")
        house.json("PATCH", "/pooled", b'{"op":"zero","offset":0,"size":512,"flush":true}')
    text = log.read_text()
    # A request may come before the connection of the one before is back.
    assert len(re.findall(r" Connect ", text)) <= 5
    assert "Flush" in text and "Zero" in text


def test_a_server_killed_in_the_middle_of_a_download_is_told_and_comes_back(house: House, tmp_path: Path) -> None:
    """Defect 6: 503 in JSON before the head, a short body after it, and no harm when the server is back."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(samples.image(SIZE, seed=41))
    with qemu_nbd(tmp_path / "nbd.sock", raw) as peer:
        house.register("mortal", socket=str(peer.socket), export="disk")
        for _ in range(3):
            connection = http.client.HTTPConnection(*house.address, timeout=60)
            connection.request("GET", "/images/mortal")
            answer = connection.getresponse()
            begin = answer.read(1 << 20)
            peer.kill()
            try:
                rest, short = answer.read(), False
            except http.client.IncompleteRead as error:
                rest, short = error.partial, True
            # Never padded, never wrong: what came is the image's beginning, and that it is not all is plain.
            assert short and raw.read_bytes().startswith(begin + rest)
            connection.close()
            for method, path in (("GET", "/mortal"), ("OPTIONS", "/mortal"), ("GET", "/mortal/extents"),
                                 ("HEAD", "/mortal"), ("POST", "/mortal/flush")):  # fmt: skip
                status, headers, body = house.ask(method, path)
                assert (status, headers["content-type"], "retry-after" in headers) == (503, "application/json", True)
                assert method == "HEAD" or "cannot connect" in json.loads(body)["error"]
            peer.start()
            deadline = time.monotonic() + RECOVERY_S
            while house.ask("GET", "/mortal", None, {"Range": "bytes=0-9"})[0] != 206:
                assert time.monotonic() < deadline
            assert house.ask("GET", "/mortal")[2] == raw.read_bytes()


def test_an_error_of_the_server_before_the_head_is_an_error_in_json(house: House, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "kit.sock", "--filter=error", "memory", "size=1M", "error-pread=EIO",
                "error-pread-rate=100%") as peer:  # fmt: skip
        house.register("bad", socket=str(peer.socket))
        status, headers, body = house.ask("GET", "/bad")
        assert (status, headers["content-type"]) == (502, "application/json") and "EIO" in json.loads(body)["error"]
        assert house.json("OPTIONS", "/bad")["size"] == 1 << 20


def test_a_full_server_is_insufficient_storage(house: House, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "kit.sock", "--filter=error", "memory", "size=1M", "error-pwrite=ENOSPC",
                "error-pwrite-rate=100%") as peer:  # fmt: skip
        house.register("full", socket=str(peer.socket))
        assert house.ask("PUT", "/full", b"x" * (1 << 20))[0] == 507


def test_an_export_that_is_not_there_is_a_bad_gateway(house: House, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(4096))
    with qemu_nbd(tmp_path / "nbd.sock", raw) as peer:
        house.register("other", socket=str(peer.socket), export="nothing")
        status, _, body = house.ask("OPTIONS", "/other")
        assert status == 502 and "no export 'nothing'" in json.loads(body)["error"]


def test_many_readers_at_once_get_their_own_bytes(house: House, tmp_path: Path) -> None:
    """Buffers go from one transfer to the next: none is let go before its bytes were sent."""
    raw = house.files / "shared.raw"
    content = samples.image(SIZE, seed=42)
    raw.write_bytes(content)
    house.register("file", backend="file", file=str(raw), max_readers=64)
    wrong: list[object] = []

    def read(number: int) -> None:
        source = random.Random(number)
        for _ in range(12):
            start = source.randrange(SIZE)
            length = min(source.choice((100, 70_000, 3_000_000, SIZE)), SIZE - start)
            connection = http.client.HTTPConnection(*house.address, timeout=60)
            place = {"Range": f"bytes={start}-{start + length - 1}"}
            connection.request("GET", f"/images/{source.choice(('many', 'file'))}", headers=place)
            answer = connection.getresponse()
            got = answer.read(source.randrange(length) if source.random() < 0.3 else length)
            connection.close()  # in the middle, sometimes
            if answer.status != 206 or got != content[start : start + len(got)]:
                wrong.append((number, start, length, answer.status))

    with qemu_nbd(tmp_path / "nbd.sock", raw, "raw", "-r", "-e", "64") as peer:
        house.register("many", socket=str(peer.socket), export="disk", max_readers=64)
        threads = [threading.Thread(target=read, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
