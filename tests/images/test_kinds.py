"""Snapshots, overlays and raw files as images: extents that are true, and the requests of both APIs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hexz.catalog import Catalog
from hexz.errors import HexzError
from hexz.images.backend import coalesced
from hexz.images.hexz import HexzBackend
from hexz.snapshot import Stream, new_context
from hexz.tools.pack import pack
from tests import samples, vectors
from tests.http.serving import Client, request
from tests.images.house import House

BLOCK = 65536
SIZE = 20 * BLOCK + 100
OLD = samples.image(SIZE, seed=90)
MEMORY = samples.image(70_000, seed=91)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "old.raw").write_bytes(OLD)
    (folder / "memory.raw").write_bytes(MEMORY)
    (folder / "empty.raw").write_bytes(b"")
    new = OLD[:BLOCK] + b"new!" + OLD[BLOCK + 4 : 5 * BLOCK] + bytes(2 * BLOCK) + OLD[7 * BLOCK :] + b"grown"
    (folder / "new.raw").write_bytes(new)
    pack(str(folder / "old.raw"), str(folder / "old.hxz"), memory=str(folder / "memory.raw"))
    pack(str(folder / "new.raw"), str(folder / "new.hxz"), parent=str(folder / "old.hxz"))
    pack(str(folder / "empty.raw"), str(folder / "empty.hxz"))
    with House(folder, folder / "old.hxz", folder / "new.hxz", folder / "empty.hxz") as made:
        yield made


THIN = [name for name, vector in sorted(vectors.load().items()) if vector["parents"]]


@pytest.mark.parametrize("name", THIN)
def test_clean_is_what_the_parent_has_and_zero_is_zeros(name: str) -> None:
    vector = vectors.load()[name]
    password = vectors.password(vector)
    catalog = Catalog(new_context(16 << 20, password.encode() if password else None))
    try:
        catalog.add("image", str(vectors.path(name)))
    except HexzError:
        return  # one of those that nobody can open, which others test
    session = HexzBackend(lambda: catalog.stream("image")).open()
    stream: Stream = session.stream  # type: ignore[attr-defined]
    parent = stream.first_parent
    clean = end = 0
    for extent in coalesced(session.extents(0, session.size, True)):
        assert extent.start == end and extent.length > 0
        end += extent.length
        if not extent.dirty:
            clean += extent.length
            assert parent is not None and end <= parent.size
            assert b"".join(parent.read(extent.start, extent.length)) == b"".join(
                stream.read(extent.start, extent.length)
            )
        if extent.zero:
            assert not any(b"".join(stream.read(extent.start, extent.length)))
    assert end == session.size
    # What these inherit is at the same place, so that it is known without reading it.
    assert clean or "-thin-" not in name
    session.close()


def test_extents_of_a_thin_snapshot(house: House) -> None:
    dirty = [(e["start"], e["length"]) for e in house.extents("new", "?context=dirty") if e["dirty"]]
    joined: list[tuple[int, int]] = []
    for start, length in dirty:
        if joined and sum(joined[-1]) == start:
            start, length = joined[-1][0], joined.pop()[1] + length
        joined.append((start, length))
    assert joined == [(BLOCK, BLOCK), (5 * BLOCK, 2 * BLOCK), (20 * BLOCK, 105)]
    zero = [e for e in house.extents("new") if e["zero"] and e["start"] <= 5 * BLOCK < e["start"] + e["length"]]
    assert zero and zero[0]["start"] + zero[0]["length"] >= 7 * BLOCK
    # Of a snapshot without a parent all is dirty.
    assert all(e["dirty"] for e in house.extents("old", "?context=dirty"))
    assert house.json("OPTIONS", "/old")["dirty"] is False and house.json("OPTIONS", "/new")["dirty"] is True
    # Parts are the whole, cut.
    for start, length in ((0, 1), (BLOCK - 1, 2), (5 * BLOCK + 7, SIZE)):
        part = house.json("GET", f"/new/extents?context=dirty&start={start}&length={length}")
        assert part[0]["start"] == start and part[-1]["start"] + part[-1]["length"] == min(start + length, SIZE + 5)
    assert house.json("GET", f"/new/extents?start={SIZE * 9}") == []
    etag = house.ask("GET", "/new/extents")[1]["etag"]
    assert house.ask("GET", "/new/extents", None, {"If-None-Match": etag})[0] == 304
    assert house.ask("GET", "/new/extents?context=dirty", None, {"If-None-Match": etag})[0] == 200


def test_memory_is_an_image_of_its_own(house: House) -> None:
    assert house.ask("GET", "/old.memory")[2] == MEMORY
    assert house.ask("GET", "/new.memory")[0] == 404
    house.register("ram", backend="hexz", snapshot="old", stream="memory")
    assert house.ask("GET", "/ram", None, {"Range": "bytes=-5"})[2] == MEMORY[-5:]


def test_an_empty_image_has_no_extents_and_says_so(house: House) -> None:
    options = house.ask("OPTIONS", "/empty")
    if options[0] == 200:  # with no stream at all it is no image
        assert "extents" not in json.loads(options[2])["features"]
        assert house.ask("GET", "/empty")[::2] == (200, b"")
        assert house.json("GET", "/empty/extents") == []
    path = house.files / "empty.raw"
    path.write_bytes(b"")
    house.register("nothing", backend="file", file=str(path))
    assert "extents" not in house.json("OPTIONS", "/nothing")["features"]
    assert house.ask("GET", "/nothing", None, {"Range": "bytes=0-0"})[0] == 416
    assert house.json("GET", "/nothing/extents") == []


def test_extents_of_a_raw_file_are_those_of_the_file_system(house: House) -> None:
    path = house.files / "holes.raw"
    with path.open("wb") as file:
        file.write(b"x" * BLOCK)
        file.seek(10 * BLOCK)
        file.write(b"y" * BLOCK)
        file.truncate(20 * BLOCK)
    house.register("holes", backend="file", file=str(path))
    found = house.extents("holes")
    assert [(e["start"], e["length"], e["hole"]) for e in found] == [
        (0, BLOCK, False), (BLOCK, 9 * BLOCK, True), (10 * BLOCK, BLOCK, False), (11 * BLOCK, 9 * BLOCK, True),
    ]  # fmt: skip
    assert house.json("GET", f"/holes/extents?start={2 * BLOCK}&length={8 * BLOCK + 1}") == [
        {"start": 2 * BLOCK, "length": 8 * BLOCK, "zero": True, "hole": True},
        {"start": 10 * BLOCK, "length": 1, "zero": False, "hole": False},
    ]
    assert all(e["dirty"] for e in house.extents("holes", "?context=dirty"))


def test_extents_of_an_overlay_are_its_map_over_the_snapshot(house: House) -> None:
    house.register("over", backend="overlay", snapshot="old", file=str(house.files / "over"))
    assert not any(e["dirty"] for e in house.extents("over", "?context=dirty"))
    before = house.extents("over")
    assert before == house.extents("old")
    house.json("PATCH", "/over", b"abc", {"Range": f"bytes={BLOCK - 1}-{BLOCK + 1}"})
    house.json("PATCH", "/over", json.dumps({"op": "zero", "offset": 10 * BLOCK, "size": BLOCK + 1}).encode())
    dirty = [(e["start"], e["length"], e["zero"]) for e in house.extents("over", "?context=dirty") if e["dirty"]]
    assert sum(length for _, length, _ in dirty) == 4 * BLOCK and (10 * BLOCK, BLOCK, True) in dirty
    expected = bytearray(OLD)
    expected[BLOCK - 1 : BLOCK + 2] = b"abc"
    expected[10 * BLOCK : 11 * BLOCK + 1] = bytes(BLOCK + 1)
    assert house.ask("GET", "/over")[2] == expected
    assert house.json("PUT", "/over?flush=n", b"tail", {"Content-Range": f"bytes {SIZE - 4}-{SIZE - 1}/*"}) == {
        "ok": True, "bytes_written": 4, "flushed": False,
    }  # fmt: skip
    assert house.ask("GET", "/over", None, {"Range": "bytes=-4"})[2] == b"tail"


def test_writers_take_turns(house: House) -> None:
    house.register("turns", backend="overlay", snapshot="old", file=str(house.files / "turns"))
    with Client(house.address) as slow:
        slow.send(request("PUT", "/images/turns", {"Content-Length": str(SIZE), "Expect": "100-continue"}))
        assert slow.receive().status == 100  # it has its turn
        slow.send(OLD[:100_000])
        answers: list[tuple[int, dict[str, str], bytes]] = []

        def write() -> None:
            answers.append(house.ask("PATCH", "/turns", b"x", {"Range": "bytes=0-0"}))

        writer = threading.Thread(target=write)
        writer.start()
        assert house.ask("GET", "/turns")[0] == 200  # readers need no turn of the writers'
        writer.join()
        assert answers[0][0] == 503 and answers[0][1]["retry-after"] == "1"
        assert json.loads(answers[0][2]) == {"error": "too many parallel writes"}
        slow.send(OLD[100_000:])
        assert slow.receive().status == 200
    assert house.ask("PATCH", "/turns", b"x", {"Range": "bytes=0-0"})[0] == 200


TABLE: list[tuple[str, str, bytes | None, dict[str, str], int]] = [
    ("GET", "/old/extents?context=all", None, {}, 400),
    ("GET", "/old/extents?start=x", None, {}, 400),
    ("GET", "/old/extents/x", None, {}, 404),
    ("GET", "/old/extent", None, {}, 404),
    ("GET", "/old/checksum?algorithm=md4", None, {}, 400),
    ("GET", "/old/checksum?block_size=5", None, {}, 400),
    ("GET", "/old/checksum/algorithms", None, {}, 200),
    ("OPTIONS", "/*", None, {}, 200),
    ("OPTIONS", "/old/extents", None, {}, 204),
    ("OPTIONS", "/old/flush", None, {}, 204),
    ("HEAD", "/old/extents", None, {}, 200),
    ("GET", "", None, {}, 404),
    ("GET", "/", None, {}, 404),
    ("PATCH", "/table", b"{}", {"Content-Type": "text/plain"}, 415),
    ("PATCH", "/table", b"{}", {"Content-Type": "application/json; charset=utf-8"}, 400),
    ("PATCH", "/table", b'{"op":"flush"}', {}, 200),
    ("PATCH", "/table", b'{"op":"zero","size":1,"offset":99999999}', {}, 400),
    ("PATCH", "/table", b'{"op":"zero","size":99999999,"offset":1}', {}, 200),
    ("PATCH", "/table", b"x" * 70_000, {"Content-Type": "application/json"}, 400),
    ("PATCH", "/table", b"xy", {"Range": "bytes=0-0"}, 400),
    ("PATCH", "/table", b"xy", {"Range": "bytes=0-0,2-2"}, 400),
    ("PATCH", "/table", b"xy", {"Range": "lines=0-1"}, 400),
    ("PATCH", "/table", b"xy", {"Range": "bytes=99999999-"}, 416),
    ("PATCH", "/table", b"", {"Range": "bytes=0-0"}, 400),
    ("PATCH", "/table?flush=maybe", b"x", {"Range": "bytes=0-0"}, 400),
    ("PUT", "/table", b"x", {"Content-Range": "bytes */5"}, 400),
    ("PUT", "/table", b"x", {"Content-Range": "bytes 0-0/7"}, 400),
    ("PUT", "/raw", b"x", {"Content-Range": "bytes 0-0/*"}, 400),
    ("POST", "/table/flush", b"", {}, 200),
    ("POST", "/table", b"", {}, 405),
]


def test_a_table_of_requests(house: House) -> None:
    house.register("table", backend="overlay", snapshot="old", file=str(house.files / "table"))
    (house.files / "table.raw").write_bytes(b"raw")
    house.register("raw", backend="file", file=str(house.files / "table.raw"))
    wrong = []
    for method, path, body, headers, expected in TABLE:
        status, _, data = house.ask(method, path, body, headers)
        if status != expected:
            wrong.append((method, path, headers, status, expected))
        assert status < 400 or json.loads(data)["error"]
    assert not wrong
    chunked = request("PUT", "/images/raw", {"Transfer-Encoding": "chunked"}) + b"1\r\nx\r\n0\r\n\r\n"
    with Client(house.address) as client:
        client.send(chunked)
        answer = client.receive()
        assert (answer.status, json.loads(answer.body)["error"]) == (400, "Content-Length is missing")


def test_checksums_are_hashes_of_the_blocks_hashes(house: House) -> None:
    algorithms = house.json("GET", "/old/checksum/algorithms")["algorithms"]
    assert {"blake2b", "sha1", "sha256"} <= set(algorithms)
    for algorithm, size in (("sha256", 1 << 20), ("blake2b", 4 << 20), ("sha1", 12 << 20)):
        answer = house.json("GET", f"/old/checksum?algorithm={algorithm}&block_size={size}")

        def new(algorithm: str = algorithm) -> Any:
            return hashlib.blake2b(digest_size=32) if algorithm == "blake2b" else hashlib.new(algorithm)

        total = new()
        for at in range(0, SIZE, size):
            block = new()
            block.update(OLD[at : at + size])
            total.update(block.digest())
        assert answer == {"algorithm": algorithm, "block_size": size, "checksum": total.hexdigest()}
