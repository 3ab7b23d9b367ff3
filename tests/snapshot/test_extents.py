"""What an index says of a stream: the same however the list is cut, and at a cost that nobody can drive up."""

from __future__ import annotations

import json
import socket
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hexz.catalog import Catalog
from hexz.format.index import MAX_PAGE_ENTRIES
from hexz.images import hexz as images_hexz
from hexz.images.registry import Registry
from hexz.protocol.http.head import Framing, parse_head
from hexz.protocol.nbd import constants as c
from hexz.protocol.nbd.rules import NbdRequest
from hexz.servers.connection import Connection
from hexz.servers.errors import PeerGone
from hexz.servers.http import snapshots as http_snapshots
from hexz.servers.http.application import Request as HttpRequest
from hexz.servers.http.receiving import Body, Receiver
from hexz.servers.http.snapshots import CatalogApplication
from hexz.servers.images.application import ImagesApplication
from hexz.servers.nbd import status
from hexz.snapshot import DATA, PARENT, ZERO, Effort, Extent, Stream, new_context, open_snapshot
from tests.crafted import Craft
from tests.http.serving import request, serving
from tests.nbd.serving import Serving as NbdServing
from tests.nbd.wire import extents
from tests.waiting import until

Blocks = list[tuple[str, int]]
"""The kind and the length in bytes of one block after the other."""
FAR = 1 << 33
"""A place in a sparse file that needs more than 32 bits."""
KINDS = st.lists(st.tuples(st.sampled_from([DATA, ZERO, PARENT]), st.integers(0, 3)), min_size=1, max_size=40)


def craft(path: Path, blocks: Blocks, page: int = MAX_PAGE_ENTRIES, parents: tuple[str, ...] = ()) -> Path:
    """A snapshot of these blocks, with so many in each page."""
    made = Craft()
    made.parents = list(parents)
    stored = made.store(bytes(4096))
    for number, (kind, length) in enumerate(blocks, 1):
        if kind == DATA:
            made.entry(stored, 1, length)
        elif kind == ZERO:
            made.zero(length)
        else:
            made.parent(length)
        if number % page == 0:
            made.page()
    if made.entries:
        made.page()
    return made.write(path)


def joined(blocks: Blocks) -> list[Extent]:
    """The extents of these blocks, counted one by one."""
    found = []
    start = 0
    for kind, run in groupby((block for block in blocks if block[1]), key=lambda block: block[0]):
        length = sum(size for _, size in run)
        found.append(Extent(start, length, kind))
        start += length
    return found


def in_steps(stream: Stream, flat: bool, effort: int) -> list[Extent]:
    """The whole list, asked for again from where it ended each time."""
    found: list[Extent] = []
    at = 0
    while at < stream.size:
        more = stream.flat_extents if flat else stream.extents
        part = list(more(at, stream.size - at, Effort(effort)))
        assert part and part[0].start == at, "each answer goes on where the last one ended, and goes somewhere"
        for one, after in zip(part, part[1:]):
            assert one.start + one.length == after.start and one.kind != after.kind
        found += part
        at = part[-1].start + part[-1].length
    return joined([(extent.kind, extent.length) for extent in found])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(KINDS, KINDS, st.integers(1, 9), st.integers(1, 2000))
def test_a_list_says_the_same_whole_and_in_parts(
    tmp_path: Path, below: Blocks, above: Blocks, page: int, effort: int
) -> None:
    """Blocks of any length, also none; pages of one kind and of several; parents, and what lies past their end."""
    base = [(ZERO if kind == PARENT else kind, length) for kind, length in below]
    craft(tmp_path / "base.hxz", base, page)
    child = open_snapshot(
        str(craft(tmp_path / "child.hxz", above, page, ("base.hxz",))), new_context(1 << 20, workers=0)
    )
    try:
        stream = child.streams.get("disk")
        if stream is None:
            return
        whole = joined(above)
        assert list(stream.extents(0, stream.size)) == whole
        assert in_steps(stream, False, effort) == whole
        bytewise = [kind for kind, length in base for _ in range(length)]
        position = 0
        expected: Blocks = []
        for kind, length in above:
            for at in range(position, position + length):
                known = bytewise[at] if at < len(bytewise) else ZERO
                expected.append((known if kind == PARENT else kind, 1))
            position += length
        assert list(stream.flat_extents(0, stream.size)) == joined(expected)
        assert in_steps(stream, True, effort) == joined(expected)
        for at in range(0, stream.size, 7):
            some = list(stream.flat_extents(at, min(5, stream.size - at)))
            assert [kind for _, length, kind in some for _ in range(length)] == [
                one for one, _ in expected[at : at + 5]
            ]
    finally:
        child.close()


def test_data_far_into_a_file_is_data(tmp_path: Path) -> None:
    """Stored places of more than 32 bits, some of whose words look like those of a block in a parent."""
    made = Craft()
    stored = made.store(bytes(8))
    for offset in (stored, FAR, 0, FAR + 5, 0):
        made.entry(offset, 4 if offset else 0, 512)
    made.page()
    index = made.finish()[made.end :]
    made.index_offset = 2 * FAR  # behind a hole, in which those places lie
    path = made.write(tmp_path / "far.hxz")
    with path.open("r+b") as file:
        file.truncate(made.end)
        file.seek(made.index_offset)
        file.write(index)
    snapshot = open_snapshot(str(path), new_context(1 << 20, workers=0))
    found = [(extent.length, extent.kind) for extent in snapshot.streams["disk"].extents(0, 2560)]
    assert found == [(1024, DATA), (512, ZERO), (512, DATA), (512, ZERO)]
    snapshot.close()


def test_http_looks_at_so_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros cost no bytes of an answer, but time; an answer that was cut says where to go on."""
    pages, page = 12, 100
    path = craft(tmp_path / "sparse.hxz", [(ZERO, 512)] * (pages * page), page)
    monkeypatch.setattr(http_snapshots, "MAX_BLOCKS", 1000)
    with serving({"sparse": path}) as server, server.client() as client:
        at = 0
        answers = []
        while at is not None:
            answers.append(json.loads(client.ask("GET", f"/extents?start={at}").body))
            at = answers[-1]["next"]
        lengths = [answer["length"] for answer in answers]
        assert sum(lengths) == pages * page * 512
        assert max(lengths) == 3 * page * 512  # three pages and what they cost besides are all of it
        for answer in answers:
            assert answer["extents"] == [{"start": answer["start"], "length": answer["length"], "kind": "zero"}]
        assert json.loads(client.ask("GET", "/extents?start=5&length=9").body)["next"] is None


def test_nbd_looks_at_so_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the header says that blocks are, and whatever the request spans."""
    pages, page = 12, 100
    path = craft(tmp_path / "sparse.hxz", [(ZERO, 512)] * (pages * page), page)
    monkeypatch.setattr(status, "MAX_BLOCKS", 1000)
    size = pages * page * 512
    with NbdServing(path, pad=1 << 20) as server, server.client() as client:
        client.negotiate("structured")
        (context,) = client.set_contexts("", "base:allocation")
        exported, _ = client.go("")
        assert exported > size  # zeros that the export has on top
        found = extents(client.request(c.CMD_BLOCK_STATUS, 0, exported))[context]
        assert found == [(3 * page * 512, c.STATE_HOLE | c.STATE_ZERO)]
        last = size - page * 512
        found = extents(client.request(c.CMD_BLOCK_STATUS, last, exported - last))[context]
        assert found == [(exported - last, c.STATE_HOLE | c.STATE_ZERO)]


def test_a_parent_of_small_blocks_is_looked_at_no_further(tmp_path: Path) -> None:
    """One entry of the child may span any number of its parent's blocks."""
    craft(tmp_path / "base.hxz", [(ZERO, 1)] * 20_000, 1000)
    path = craft(tmp_path / "child.hxz", [(PARENT, 20_000)], 1, ("base.hxz",))
    with open_snapshot(str(path), new_context(1 << 20, workers=0)) as child:
        stream = child.streams["disk"]
        request = NbdRequest(0, c.CMD_BLOCK_STATUS, 1, 0, stream.size)
        ((_, whole),) = status.describe(stream, stream.size, request, (c.BASE_ALLOCATION,))
        assert whole == [(20_000, c.STATE_HOLE | c.STATE_ZERO)]
        (part,) = stream.flat_extents(0, stream.size, Effort(3000))
        assert part == Extent(0, 3000, ZERO)


@pytest.mark.parametrize("context", ["zero", "dirty"])
def test_the_images_api_looks_for_its_client_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    """Its list of extents is whole whatever that takes, so it is given up once the client has gone."""
    monkeypatch.setattr(images_hexz, "STEP", 1)
    craft(tmp_path / "base.hxz", [(ZERO, 512)] * 900, 100)
    craft(tmp_path / "child.hxz", [(PARENT, 512)] * 400 + [(ZERO, 512)] * 600, 100, ("base.hxz",))
    catalog = Catalog(new_context(1 << 20, workers=0))
    catalog.add("child", str(tmp_path / "child.hxz"))
    application = ImagesApplication(Registry(catalog))
    looks: list[int] = []
    most = 1000

    def watch() -> None:
        if len(looks) == most:
            raise PeerGone
        looks.append(1)

    with socket.socket() as sock:
        receiver = Receiver(Connection(sock, None, "peer"))  # type: ignore[arg-type]
        head = parse_head(f"GET /images/child/extents?context={context} HTTP/1.1\r\nHost: h".encode())
        asked = HttpRequest(head, Body(receiver, Framing(0, False)), "peer", False, None, watch)
        response = application.respond(asked)
        assert response.status == 200 and response.done is not None
        response.done()
        assert len(looks) >= 10, "once a page"
        looks.clear()
        most = 3
        with pytest.raises(PeerGone):
            application.respond(asked)
    assert catalog.remove("child"), "nothing is held any more"
    catalog.close()


@pytest.mark.parametrize("target", ["/extents", "/snapshots/snap/extents"])
def test_a_list_of_a_snapshots_extents_ends_with_its_client(tmp_path: Path, target: str) -> None:
    """It is looked for before each page of the index, though a long run of pages is one extent."""
    craft(tmp_path / "snap.hxz", [(ZERO, 512)] * 900, 100)
    catalog = Catalog(new_context(1 << 20, workers=0))
    catalog.add("snap", str(tmp_path / "snap.hxz"))
    application = CatalogApplication(catalog)
    looks: list[int] = []
    most = 1000

    def watch() -> None:
        if len(looks) == most:
            raise PeerGone
        looks.append(1)

    with socket.socket() as sock:
        receiver = Receiver(Connection(sock, None, "peer"))  # type: ignore[arg-type]
        head = parse_head(f"GET {target} HTTP/1.1\r\nHost: h".encode())
        asked = HttpRequest(head, Body(receiver, Framing(0, False)), "peer", False, None, watch)
        assert application.respond(asked).status == 200
        assert len(looks) == 9
        looks.clear()
        most = 3
        with pytest.raises(PeerGone):
            application.respond(asked)
    assert catalog.remove("snap"), "nothing is held any more"
    catalog.close()


def test_a_checksum_ends_with_its_client(tmp_path: Path) -> None:
    """A few kilobytes of file may be of any size: hashing that much would go on for years."""
    made = Craft()
    made.sizes["main"] = 1 << 62
    made.flags = (0, 0, 0)
    catalog = Catalog(new_context(1 << 20, workers=0))
    catalog.add("huge", str(made.write(tmp_path / "huge.hxz")))
    with serving({}, application=ImagesApplication(Registry(catalog))) as server:
        with server.client() as client:
            client.send(request("GET", "/images/huge/checksum"))
            until(lambda: len(server.listener.live()) == 1)
        until(lambda: not server.listener.live())
    assert catalog.remove("huge"), "nothing is held any more"
    catalog.close()
