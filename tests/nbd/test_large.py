"""Exports of more than 4 GiB, the largest reads, and what is told of both."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hexz.protocol.nbd import constants as c
from tests.crafted import Craft
from tests.nbd.serving import PATIENCE_S, Serving
from tests.nbd.wire import STRUCTURED_MODES, Client, extents
from tests.waiting import until

MODES = ("simple", *STRUCTURED_MODES)
GAP = 3 << 30
HEAD = bytes(range(256)) * 256
TAIL = bytes(range(255, -1, -1)) * 256
SIZE = len(HEAD) + 2 * GAP + len(TAIL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Data, 6 GiB of zeros, data."""
    craft = Craft(block_size=64 << 10)
    craft.data(HEAD)
    craft.zero(GAP)
    craft.zero(GAP)
    craft.data(TAIL)
    craft.page()
    with Serving(craft.write(tmp_path_factory.mktemp("large") / "large.hxz")) as running:
        yield running


@pytest.mark.parametrize("mode", MODES)
def test_offsets_have_64_bits(server: Serving, mode: str) -> None:
    with server.client() as client:
        assert client.negotiate(mode).go()[0] == SIZE
        assert client.read(SIZE - len(TAIL) - 100, 300) == bytes(100) + TAIL[:200]
        assert client.read(SIZE - 1, 1) == TAIL[-1:]
        assert client.read((1 << 32) - 5, 10) == bytes(10)
        assert client.request(c.CMD_READ, SIZE - 1, 2).error == c.NBD_EINVAL


@pytest.mark.parametrize("mode", MODES)
def test_the_largest_read_is_answered_and_a_larger_one_refused(server: Serving, mode: str) -> None:
    """«SHOULD ... payload of at least 2**25 bytes»; beyond the announced maximum «EINVAL or EOVERFLOW»."""
    with server.client() as client:
        client.negotiate(mode).go()
        start = SIZE - len(TAIL) - c.MAX_READ + 4096
        reply = client.request(c.CMD_READ, start, c.MAX_READ)
        assert reply.data == bytes(c.MAX_READ - 4096) + TAIL[:4096]
        if mode != "simple":
            sent = sum(len(payload) for _, _, payload in reply.chunks)
            assert sent < 64 << 10, "zeros do not travel"
        assert client.request(c.CMD_READ, 0, c.MAX_READ + 1).error == c.NBD_EINVAL
        assert client.read(0, 10) == HEAD[:10]


def mapped(client: Client, most: int) -> list[tuple[int, int]]:
    """The whole map, asked for from where the answer before ended."""
    at = 0
    found: list[tuple[int, int]] = []
    while at < SIZE:
        (part,) = extents(client.request(c.CMD_BLOCK_STATUS, at, min(most, SIZE - at))).values()
        for length, flags in part:
            assert length
            at += length
            if found and found[-1][1] == flags:
                found[-1] = (found[-1][0] + length, flags)
            else:
                found.append((length, flags))
    return found


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_the_map_is_the_same_in_both_widths(server: Serving, mode: str) -> None:
    """«The server MAY return ... a shorter list»; 32-bit lengths in structured replies, 64-bit ones in extended."""
    hole = c.STATE_HOLE | c.STATE_ZERO
    with server.client() as client:
        client.negotiate(mode)
        client.set_contexts("", "base:allocation")
        client.go()
        most = (1 << 32) - 1 if mode == "structured" else SIZE
        assert mapped(client, most) == [(len(HEAD), 0), (2 * GAP, hole), (len(TAIL), 0)]


def test_small_replies_do_not_wait_for_more(server: Serving) -> None:
    """«SHOULD set TCP_NODELAY»."""
    with server.client() as client:
        client.go()
        until(lambda: len(server.listener.live()) == 1)  # those of the tests before have gone
        (connection,) = server.listener.live()
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_requests_may_come_with_the_end_of_the_handshake(server: Serving) -> None:
    """A client need not wait for the last reply of the handshake: what follows it is a request."""
    with server.client() as client:
        name = c.IHAVEOPT + bytes(3) + b"\1" + bytes(4)
        batch = b"".join(client.pack(c.CMD_READ, number, 50) for number in range(300))
        client.sock.settimeout(PATIENCE_S)
        client.send(name + batch)
        assert client.take(10)[:8] == SIZE.to_bytes(8, "big")
        asked = {number + 1: (c.CMD_READ, number, 50) for number in range(300)}
        while asked:
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == HEAD[offset : offset + length]
