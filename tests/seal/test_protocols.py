"""A sealed snapshot is damaged while it is served: an error to who asked, over every protocol, and the rest goes on."""

from __future__ import annotations

import http.client
import json
import random
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from hexz.protocol.nbd import constants as c
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.pack import pack
from hexz.tools.seal import seal
from tests.control.clients import ask
from tests.images.house import House
from tests.nbd.wire import Client
from tests.peers import Server
from tests.seal.making import seal_path

BLOCK = 65536
BAD = {"disk": 7, "memory": 3}
"""The number of the damaged block of each stream."""
TIMEOUT_S = 30.0


class Served:
    """A sealed snapshot of noise, a block of each stream damaged, and a daemon that had it open before."""

    def __init__(self, folder: Path) -> None:
        source = random.Random(6)
        self.right = {"disk": source.randbytes(16 * BLOCK + 77), "memory": source.randbytes(6 * BLOCK)}
        for name, data in self.right.items():
            (folder / name).write_bytes(data)
        self.path = folder / "snap.hxz"
        pack(str(folder / "disk"), str(self.path), str(folder / "memory"), seal=True)
        self.file = self.path.read_bytes()
        hurt = bytearray(self.file)
        self.places = []
        with open_snapshot(str(self.path), new_context(8 << 20, workers=0)) as snapshot:
            for name, number in BAD.items():
                page = snapshot.streams[name].pages.read(0)
                place = page.stored_offset(number) + page.stored[number] // 2
                self.places.append(place)
                hurt[place] ^= 0x10
        self.hurt = bytes(hurt)

    def damage(self) -> None:
        """In place, so that whoever has the file open reads it."""
        with self.path.open("r+b") as file:
            file.write(self.hurt)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("sealed"))


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Server]:
    options = ("--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--allow-anonymous", "--require-seal")
    with Server(*options, served.path) as running:
        served.damage()
        yield running


def base(server: Server, protocol: str) -> str:
    """Where the snapshot's streams and its file are, with the last slash."""
    return f"{server.http}/" if protocol == "http" else f"http{server.urls['s3'].removeprefix('s3')}snap/"


def get(url: str, first: int, length: int) -> requests.Response:
    return requests.get(url, headers={"Range": f"bytes={first}-{first + length - 1}"}, timeout=TIMEOUT_S)


@pytest.mark.parametrize("stream", ["disk", "memory"])
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_blocks_over_http_and_s3(served: Served, server: Server, stream: str, protocol: str) -> None:
    url = f"{base(server, protocol)}{stream}"
    right = served.right[stream]
    for number in range(len(right) // BLOCK):
        answer = get(url, number * BLOCK + 100, 1000)
        if number == BAD[stream]:
            assert answer.status_code == 500
            assert str(served.path.parent) not in answer.text
        elif abs(number - BAD[stream]) > 1:
            assert (answer.status_code, answer.content) == (206, right[number * BLOCK + 100 :][:1000])


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_the_file_itself_over_http_and_s3(served: Served, server: Server, protocol: str) -> None:
    url = f"{base(server, protocol)}snap.hxz"
    for place in served.places:
        assert get(url, place, 1).status_code == 500
        assert get(url, place - 5000, 10_000).status_code == 500
        for well in (place - 40_000, place + 40_000):
            answer = get(url, well, 5000)
            assert (answer.status_code, answer.content) == (206, served.file[well : well + 5000])
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as whole, pytest.raises(http.client.IncompleteRead) as cut:
        whole.read()
    got = cut.value.partial
    assert got == served.file[: len(got)]
    assert len(got) < served.places[0]


@pytest.mark.parametrize("mode", ["simple", "structured", "extended"])
@pytest.mark.parametrize("stream", ["disk", "memory"])
def test_blocks_over_nbd(served: Served, server: Server, mode: str, stream: str) -> None:
    right = served.right[stream]
    with Client(("127.0.0.1", server.nbd_port)).negotiate(mode) as client:
        client.go("snap" if stream == "disk" else "snap/memory")
        for number in range(len(right) // BLOCK):
            reply = client.request(c.CMD_READ, number * BLOCK + 100, 1000)
            if number == BAD[stream]:
                assert reply.error == c.NBD_EIO
            elif abs(number - BAD[stream]) > 1:
                assert (reply.error, reply.data) == (0, right[number * BLOCK + 100 :][:1000])


def test_one_line_and_one_count_for_each_refusal(served: Served, server: Server) -> None:
    def counted() -> tuple[int, int]:
        text = requests.get(f"{server.http}/metrics", timeout=TIMEOUT_S).text
        errors = re.search(r"^hexz_errors_total (\d+)", text, re.M)
        failed = re.search(r'^hexz_storage_reads_total\{snapshot="snap",outcome="failed"\} (\d+)', text, re.M)
        assert errors and failed
        return int(errors[1]), int(failed[1])

    lines, before = server.stderr().count("\n"), counted()
    assert get(f"{server.http}/disk", BAD["disk"] * BLOCK, 10).status_code == 500
    after = counted()
    assert after[0] == before[0] + 1
    assert after[1] > before[1]
    (line,) = server.stderr().splitlines()[lines:]
    assert "are not those that were sealed" in line
    assert str(served.path) in line


def test_facts_say_that_it_is_sealed(server: Server) -> None:
    assert requests.get(f"{server.http}/info", timeout=TIMEOUT_S).json()["sealed"] == "plain"
    assert requests.get(f"{base(server, 's3')}info.json", timeout=TIMEOUT_S).json()["sealed"] == "plain"


def test_images(tmp_path: Path) -> None:
    served = Served(tmp_path)
    with House(tmp_path, "--require-seal", served.path) as house:
        house.register("one", backend="hexz", snapshot="snap")
        served.damage()
        right = served.right["disk"]
        for number in range(len(right) // BLOCK):
            first = number * BLOCK + 100
            status, _, data = house.ask("GET", "/one", headers={"Range": f"bytes={first}-{first + 999}"})
            if number == BAD["disk"]:
                assert status == 500
            elif abs(number - BAD["disk"]) > 1:
                assert (status, data) == (206, right[first : first + 1000])


def test_mounts(served: Served, tmp_path: Path) -> None:
    """The control API holds what it mounts to the same."""
    for name, data in (("good", served.file), ("bare", served.file), ("stale", served.file[:-1])):
        (tmp_path / f"{name}.hxz").write_bytes(data)
    seal(str(tmp_path / "good.hxz"))
    seal_path(tmp_path / "stale.hxz").write_bytes(seal_path(tmp_path / "good.hxz").read_bytes())
    control = tmp_path / "control"
    with Server("--http-port", 0, "--control", control, "--require-seal", tmp_path / "good.hxz"):
        for name, says in (("bare", "has no seal"), ("stale", "run hexz seal on it again")):
            body = {"source": str(tmp_path / f"{name}.hxz"), "fs_type": "rafs", "config": "{}"}
            answer = ask(control, "POST", f"/api/v1/mount?mountpoint=/{name}", body)
            assert answer.status >= 400
            assert says in json.loads(answer.body)["message"]
