"""Whatever a file says of itself, a daemon that serves it stays small: every such file, asked for over every route."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hexz.cache import ByteBudget, Once
from hexz.errors import CorruptSnapshot, SnapshotTooLarge
from hexz.format.index import build_master_index, check_disjoint, check_records, parse_master_index
from hexz.format.metadata import MAX_FILES, MAX_METADATA, NO_LISTING, Listing, member_path, parse_listing
from hexz.format.records import PageRecord
from hexz.protocol.nbd import constants as c
from hexz.snapshot import new_context, open_snapshot
from hexz.snapshot.loader import SHARED_BLOCK
from hexz.snapshot.manifests import Manifest
from hexz.snapshot.pages import RECORD_COST
from tests.bounds import little_memory
from tests.crafted import Craft
from tests.nbd.wire import Client
from tests.peers import Server
from tests.waiting import until

CACHE = 16 << 20
MOST = 300 << 20
"""Peak of the whole daemon, bytes: itself, its cache, and a few of the largest blocks on their way out."""
CLIENTS = 4
LARGEST_BLOCK = 64 << 20


def long_stored(folder: Path) -> Path:
    """Blocks of 4 KiB that are said to be stored in 1.5 GiB, of a file that is mostly a hole."""
    craft = Craft()
    stored = 3 << 29
    for crc in range(3):
        craft.entry(4096 + 8192, stored, 4096, crc)
    craft.page()
    craft.index_offset = 4096 + 8192 + stored
    whole = craft.finish()
    index = whole[4096 + len(craft.body) :]
    path = folder / "t.hxz"
    with path.open("wb") as file:
        file.write(whole[: 4096 + len(craft.body)])
        file.seek(craft.index_offset)
        file.write(index)
    return path


def largest_blocks(folder: Path) -> Path:
    """A dozen blocks of 64 MiB in a few MiB."""
    craft = Craft()
    for letter in range(12):
        craft.data(bytes([letter + 1]) * LARGEST_BLOCK)
    craft.page()
    return craft.write(folder / "t.hxz")


def widest_windows(folder: Path) -> Path:
    """Frames that ask their reader to keep 128 MiB at hand."""
    craft = Craft(compression="zstd")
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    for letter in range(12):
        chunk = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        craft.raw(chunk.compress(bytes([letter + 1]) * 65536) + chunk.flush(), 65536)
    craft.page()
    return craft.write(folder / "t.hxz")


def many_pages(folder: Path, pages: int = 2_300_000) -> Path:
    """An index of 64 MiB: as many pages as one may list."""
    path = folder / "t.hxz"
    craft = Craft("A20")
    craft.flags = (1, 0, 0)
    index_offset = 4096 + pages * 28
    record = struct.Struct("<QIQQ")
    with path.open("wb") as file:
        file.write(craft.header(index_offset, 0))
        file.seek(index_offset)
        file.write(struct.pack("<Q", pages))
        for first in range(0, pages, 10_000):
            numbers = range(first, min(first + 10_000, pages))
            file.write(b"".join(record.pack(4096 + 28 * n, 28, n, n * 4096) for n in numbers))
        file.write(struct.pack("<QQQ", 0, pages * 4096, 0))
    return path


def endless_zeros(folder: Path) -> Path:
    """Streams of 2^63 bytes in a page of 4 GiB blocks, and in none."""
    craft = Craft()
    for _ in range(4096):
        craft.zero(0xFFFF_FFFF)
    craft.page()
    craft.sizes["aux"] = 1 << 63
    return craft.write(folder / "t.hxz")


def with_metadata(folder: Path, metadata: bytes) -> Path:
    craft = Craft()
    craft.data(b"x" * 4096)
    craft.page()
    craft.metadata = metadata
    return craft.write(folder / "t.hxz")


def filled(head: bytes, part: bytes, tail: bytes) -> bytes:
    """As long as metadata may be."""
    return head + part * ((MAX_METADATA - len(head) - len(tail)) // len(part)) + tail


def many_empty_objects(folder: Path) -> Path:
    """A list of files with millions of entries."""
    return with_metadata(folder, filled(b'{"files":[', b"{},", b"{}]}"))


def many_files(folder: Path) -> Path:
    """A list of as many files as are read, in the same place under the shortest names."""
    listed = b",".join(b'{"path":"%x","offset":0,"size":1}' % number for number in range(MAX_FILES))
    return with_metadata(folder, b'{"files":[' + listed + b"]}")


def many_lists(folder: Path) -> Path:
    """Millions of lists beside the one of files, and within it."""
    half = (MAX_METADATA // 3 - 100) // 2
    lists = b"[]," * half + b"[]"
    return with_metadata(
        folder, b'{"a":[' + lists + b'],"files":[{"path":"a","offset":0,"size":1,"x":[' + lists + b"]}]}"
    )


def many_escapes(folder: Path) -> Path:
    """A string of millions of quotes, none of which ends it."""
    return with_metadata(folder, filled(b'{"files":[{"path":"', b'\\"', b'","offset":0,"size":1}]}'))


def parents_with_metadata(folder: Path) -> Path:
    """A child of parents that have 4 GiB of metadata each, in files that are mostly holes."""
    child = Craft()
    for number in range(24):
        craft = Craft()
        craft.data(bytes([number]) * 100)
        craft.page()
        craft.metadata_place = craft.end + 60, 0xFFFF_FFFF
        path = craft.write(folder / f"p{number}.hxz")
        os.truncate(path, craft.end + 60 + 0xFFFF_FFFF)
        child.parents.append(path.name)
    child.parent(4096)
    child.page()
    return child.write(folder / "t.hxz")


FILES: dict[str, Callable[[Path], Path]] = {
    "long stored blocks": long_stored,
    "largest blocks": largest_blocks,
    "widest windows": widest_windows,
    "many pages": many_pages,
    "endless zeros": endless_zeros,
    "many empty objects": many_empty_objects,
    "many files": many_files,
    "many lists": many_lists,
    "many escapes": many_escapes,
    "parents with metadata": parents_with_metadata,
}


def s3_of(server: Server) -> str:
    return server.urls["s3"].rstrip("/").replace("s3:", "http:")


def ask_http(server: Server) -> None:
    """Every route of HTTP, and a few bytes from different places at once."""
    for route in ("", "info", "extents", "snapshots", "snapshots/t/files/", "metrics"):
        requests.get(f"{server.http}/{route}", timeout=60)
    for route in ("t.hxz", "memory", "images/t"):
        requests.get(f"{server.http}/{route}", headers={"Range": "bytes=0-9"}, timeout=60)
    requests.get(f"{server.http}/images/t/extents", timeout=60, stream=True).close()

    def some(number: int) -> None:
        start = number * LARGEST_BLOCK
        for url in (f"{server.http}/disk", f"{s3_of(server)}/t/disk"):
            requests.get(url, headers={"Range": f"bytes={start}-{start}"}, timeout=60)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(some, range(CLIENTS)))


def ask_s3(server: Server) -> None:
    base = s3_of(server)
    for route in ("", "t?list-type=2", "t?list-type=2&prefix=files/", "t/t.hxz", "t/files/a"):
        requests.get(f"{base}/{route}", headers={"Range": "bytes=0-9"}, timeout=60)


def ask_nbd(server: Server) -> None:
    """Reads from different places over several connections, none of which takes its replies at first."""
    clients = [Client(("127.0.0.1", server.nbd_port)) for _ in range(CLIENTS)]
    for number, client in enumerate(clients):
        client.negotiate("structured")
        client.set_contexts("", "base:allocation")
        client.go()
        client.send(client.pack(c.CMD_READ, number * LARGEST_BLOCK, 512))
        client.send(client.pack(c.CMD_BLOCK_STATUS, 0, 1 << 20))
    for client in clients:
        client.take(1)
        client.sock.close()


@pytest.mark.parametrize("what", FILES)
def test_a_daemon_that_serves_it_stays_small(tmp_path: Path, what: str) -> None:
    path = FILES[what](tmp_path)
    try:
        server = Server("--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--cache-size", CACHE, path)
    except AssertionError as error:
        assert "did not start" in str(error) and "Traceback" not in str(error)
        assert re.search(r"hexz-serve: .*t\.hxz: ", str(error))
        return
    with server:
        ask_http(server)
        ask_s3(server)
        ask_nbd(server)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) << 10 < MOST


@pytest.mark.parametrize("logical, extra, right", [(4096, 1040, True), (4096, 1041, False), (0, 1040, True)])
def test_stored_bytes_are_about_as_many_as_they_hold(tmp_path: Path, logical: int, extra: int, right: bool) -> None:
    craft = Craft()
    craft.data(b"x" * 4096)
    craft.raw(bytes(2 * logical + extra), logical)
    craft.data(b"y" * 1000)
    craft.page()
    path = craft.write(tmp_path / "t.hxz")
    with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
        disk = snapshot.streams["disk"]
        if right:
            assert b"".join(disk.read(0, 4096)) == b"x" * 4096
        else:
            with pytest.raises(CorruptSnapshot, match="no codec"):
                disk.read(0, 4096)


def test_an_index_takes_the_bytes_of_its_file_and_no_more(tmp_path: Path) -> None:
    path = many_pages(tmp_path, 200_000)
    context = new_context(32 << 20)
    with little_memory(), open_snapshot(str(path), context) as snapshot:
        records = snapshot.streams["disk"].pages.records
        assert len(records) == 200_000
        assert records[199_999] == (4096 + 28 * 199_999, 28, 199_999, 199_999 * 4096)
        assert context.pages.has_room((32 << 20) - 200_000 * RECORD_COST)
        assert not context.pages.has_room((32 << 20) - 200_000 * RECORD_COST + 1)
        assert snapshot.streams["disk"].pages.number_at(150_000 * 4096 + 5) == 150_000
    assert context.pages.has_room(32 << 20)


def test_all_open_snapshots_together_have_room_for_their_indexes_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    context = new_context(1 << 20)
    first, second = many_pages(tmp_path / "a", 500_000), many_pages(tmp_path / "b", 500_000)
    with little_memory(), open_snapshot(str(first), context):
        with pytest.raises(SnapshotTooLarge, match="--cache-size"):
            open_snapshot(str(second), context)
    with little_memory(), open_snapshot(str(second), context) as snapshot:
        assert snapshot.streams["disk"].size == 500_000 * 4096


def hashed_parent(folder: Path, blocks: int) -> tuple[Path, list[bytes]]:
    """A file of equal blocks with different hashes, and a child that refers to the last of them by its hash."""
    hashes = [hashlib.blake2b(struct.pack("<I", number), digest_size=32).digest() for number in range(blocks)]
    craft = Craft()
    stored = craft.encode(b"x" * 4096)
    place = craft.store(stored)
    for digest in hashes:
        craft.entry(place, len(stored), 4096, zlib.crc32(stored), digest)
        if len(craft.entries) == 4096:
            craft.page()
    if craft.entries:
        craft.page()
    craft.write(folder / "parent.hxz")
    child = Craft()
    child.parents = ["parent.hxz"]
    child.parent(4096, hashes[-1])
    child.page()
    return child.write(folder / "child.hxz"), hashes


@pytest.mark.usefixtures("made_up_hashes")
def test_blocks_are_found_by_their_hashes_in_8_bytes_each(tmp_path: Path) -> None:
    child, hashes = hashed_parent(tmp_path, 50_000)
    context = new_context(1 << 20)
    with open_snapshot(str(child), context) as snapshot:
        assert b"".join(snapshot.streams["disk"].read(0, 4096)) == b"x" * 4096
        index = snapshot.parents[0].lineage.hash_index()
        assert index is snapshot.parents[0].lineage.hash_index()
        held = sum(sys.getsizeof(keys) for keys in index._sorted)
        assert held < 50_000 * 8 * 1.2
        for number in range(0, 50_000, 777):
            place = index.find(hashes[number])
            assert place is not None and place.position == number * 4096
        assert index.find(bytes(31) + b"n") is None
        assert not context.pages.has_room((32 << 20) - 50_000 * 8)
    assert context.pages.has_room(32 << 20)


@pytest.mark.usefixtures("made_up_hashes")
def test_more_hashes_than_there_is_room_for_are_an_error(tmp_path: Path) -> None:
    child, _ = hashed_parent(tmp_path, 5000)
    context = new_context(1 << 20)
    with open_snapshot(str(child), context) as snapshot:
        context.pages.hold((32 << 20) - 39_000)
        with pytest.raises(SnapshotTooLarge, match="by their hashes"):
            snapshot.streams["disk"].read(0, 4096)
        context.pages.hold(39_000 - (32 << 20))
        assert b"".join(snapshot.streams["disk"].read(0, 4096)) == b"x" * 4096


def test_what_many_want_is_made_once_and_failure_is_tried_anew() -> None:
    once: Once[object] = Once()
    made: list[object] = []
    start = threading.Barrier(16)

    def make() -> object:
        made.append(object())
        time.sleep(0.05)
        if len(made) == 1:
            raise ValueError("the first one")
        return made[-1]

    def want(_: int) -> object:
        start.wait()
        try:
            return once.get(make)
        except ValueError:
            return None

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(want, range(16)))
    assert len(made) == 2
    assert got.count(None) == 1 and got.count(made[1]) == 15


def test_records_are_what_they_were_and_are_checked_in_any_order() -> None:
    main = [PageRecord(1 << 40 | 5000 + 28 * n, 28, n, n * 10) for n in range(70_000)]
    aux = [PageRecord((1 << 63) + 1, 60, (1 << 64) - 5000, 0), PageRecord(4096, 88, 1 << 33, 100)]
    data = build_master_index(main, aux, 700_000, 200)
    index = parse_master_index(data + b"what follows")
    assert [*index.main] == main and [*index.aux] == aux
    assert (index.main_size, index.aux_size, index.length) == (700_000, 200, len(data))
    check_records(index.main, 700_000, 1 << 41)
    check_records(index.aux, 200, 1 << 64)
    check_disjoint(index.main, index.aux)


def test_bytes_in_use_are_bounded_and_whoever_came_first_goes_first() -> None:
    budget = ByteBudget(100)
    order: list[str] = []
    inside = threading.Event()

    def work(name: str, size: int) -> None:
        with budget.taken(size):
            order.append(name)

    def hold() -> None:
        with budget.taken(250):  # more than all: one alone may
            inside.set()
            until(lambda: len(budget._waiting) == 3)
            order.append("large")

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(30)
    others = []
    for number, (name, size) in enumerate([("a", 90), ("b", 200), ("c", 1)]):
        others.append(threading.Thread(target=work, args=(name, size)))
        others[-1].start()
        until(lambda most=number: len(budget._waiting) > most or order)  # type: ignore[misc]
    for thread in [holder, *others]:
        thread.join(30)
    assert order == ["large", "a", "b", "c"]
    with budget.taken(60), budget.taken(40):
        pass


def test_who_reads_little_of_a_large_block_does_not_keep_the_block(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(bytes(range(256)) * (3 * SHARED_BLOCK // 256))
    craft.data(b"z" * 1000)
    craft.page()
    path = craft.write(tmp_path / "t.hxz")
    with open_snapshot(str(path), new_context(64 << 20)) as snapshot:
        disk = snapshot.streams["disk"]
        for read in (disk.read, disk.read_cached):
            views = read(300, 500) or []
            assert b"".join(views) == (bytes(range(256)) * 4)[300:800]
            assert all(len(view.obj) <= SHARED_BLOCK for view in views)  # type: ignore[arg-type]
            views = read(0, 3 * SHARED_BLOCK) or []
            assert sum(map(len, views)) == 3 * SHARED_BLOCK


def archive(folder: Path, name: str, files: int) -> Path:
    craft = Craft()
    craft.data(b"x" * 4096)
    craft.page()
    craft.metadata = json.dumps({"files": [{"path": f"{n}", "offset": n, "size": 1} for n in range(files)]}).encode()
    return craft.write(folder / name)


def test_lists_of_files_that_are_kept_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hexz.snapshot.manifests.MAX_KEPT", 1000)
    context = new_context(1 << 20)
    reads = []
    original = Manifest._read

    def counting(self: Manifest) -> Listing:
        reads.append(self)
        return original(self)

    monkeypatch.setattr(Manifest, "_read", counting)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_snapshot(str(archive(tmp_path, f"{number}.hxz", 400)), context))
            for number in range(5)
        ]
        assert not reads
        for _ in range(2):
            for snapshot in opened:
                assert snapshot.lists_files
                assert snapshot.info()["files"] == 400
        assert len(reads) == 5
        for snapshot in [*opened, opened[0]]:
            assert [file.path for file in snapshot.files or []] == [str(n) for n in range(400)]
            assert sum(map(len, context.manifests._kept.values())) <= 1000
    assert not context.manifests._kept


def test_many_who_want_a_list_have_it_read_once_while_others_go_on(tmp_path: Path) -> None:
    path = many_files(tmp_path)
    other = archive(tmp_path, "other.hxz", 1)
    with Server("--http-port", 0, f"t={path}", f"other={other}") as server:

        def ask(number: int) -> float:
            began = time.monotonic()
            name, route = ("t", "info") if number < 8 else ("other", "disk")
            answer = requests.get(f"{server.http}/snapshots/{name}/{route}", timeout=120)
            assert answer.status_code == 200
            if name == "t":
                assert answer.json()["files"] == MAX_FILES
            return time.monotonic() - began

        with ThreadPoolExecutor(9) as pool:
            taken = [*pool.map(ask, range(9))]
        assert taken[8] < max(taken[:8]) + 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.sampled_from(['"', "\\", "[{", '\\"]']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=6), VALUES), max_size=5),
    st.dictionaries(st.text(max_size=3), VALUES, max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_lists_walked_through_say_what_they_say_parsed(
    entries: list[tuple[str, object]], beside: dict[str, object], plain: bool, indent: int | None
) -> None:
    listed = [{"size": 1, "extra": extra, "path": f"x{name}", "offset": 0} for name, extra in entries]
    text = json.dumps({**beside, "files": listed, "z": 1}, ensure_ascii=plain, indent=indent)
    found = parse_listing(text.encode(), 10, 0)
    assert {file.path for file in found.files or []} == {member_path(str(item["path"])) for item in listed}
    assert parse_listing(text.encode()[:-1], 10, 0) == NO_LISTING


@pytest.mark.parametrize("damage", [b"}", b"x", b",", b"\xff", b"[]"])
def test_what_goes_on_behind_the_object_is_no_list(damage: bytes) -> None:
    whole = b' {"files" : [ {"path":"a","offset":0,"size":1} ] } '
    assert parse_listing(whole, 10, 0).files
    assert parse_listing(b"\xef\xbb\xbf" + whole, 10, 0).files
    assert parse_listing(whole + damage, 10, 0) == NO_LISTING
