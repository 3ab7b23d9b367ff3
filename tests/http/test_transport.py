"""The connection: keep-alive, pipelining, bodies, limits, and what is refused because proxies could read it otherwise.

Sections are of RFC 9112 unless another one is named.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.errors import BlockError
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.head import MAX_HEAD
from hexz.protocol.http.responses import Representation, Response, json_response, represent
from hexz.servers import sending
from hexz.servers.connection import Connection
from hexz.servers.http import receiving as http_receiving
from hexz.servers.http.application import Request
from hexz.servers.watch import LOOK_S
from tests.http.serving import PATIENCE_S, Serving, request, serving

GET = request("GET", "/healthz")


class Echo:
    """An application that tells what it got of a body, serves noise, and fails on request."""

    def __init__(self) -> None:
        self.released = 0

    def respond(self, request: Request) -> Response:
        path = request.head.path
        if path == "/unread":
            return json_response({})
        if path == "/bug":
            raise RuntimeError("bug")
        if path.startswith("/bad"):
            source = Faulty(int(path[4:]))
            return represent(request.head, Representation(source, 4 << 20, "a/b", Validators("e", 0)), 0, self._done)
        if path == "/big":
            return represent(
                request.head, Representation(Faulty(1 << 40), 1 << 30, "a/b", Validators("e", 0)), 0, self._done
            )
        data = b""
        while more := request.body.read(1 << 16):
            data += more
        return json_response({"length": len(data), "sum": sum(data), "announced": request.body.length})

    def _done(self) -> None:
        self.released += 1


class Faulty:
    """Bytes up to a point, and an error from there on."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def read(self, offset: int, length: int) -> list[bytes]:
        if offset + length > self.bad:
            raise BlockError("/secret/path", "disk", self.bad, 0, "CRC-32 mismatch")
        return [bytes(length)]


@pytest.fixture(scope="module")
def echo() -> Iterator[Serving]:
    with serving({}, application=Echo()) as server:
        yield server


def exchange(server: Serving, data: bytes) -> tuple[list[int], bool]:
    """The statuses of all answers to `data`, and whether the server then closed the connection."""
    with server.client() as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        statuses = []
        closed = False
        while True:
            try:
                reply = client.receive()
            except (EOFError, ConnectionError):
                return statuses, closed
            statuses.append(reply.status)
            closed = reply.headers.get("connection") == "close"


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [("1.1", None, True), ("1.1", "close", False), ("1.1", "Foo, Close", False), ("1.0", None, False),
     ("1.0", "keep-alive", True), ("1.0", "close", False)],
)  # fmt: skip
def test_persistence(server: Serving, version: str, connection: str | None, kept: bool) -> None:
    """9.3, 9.6: who closes says so, and an HTTP/1.0 client is told when its connection stays."""
    with server.client() as client:
        client.send(request("GET", "/healthz", {"Connection": connection} if connection else None, version))
        reply = client.receive()
        assert (reply.status, reply.version) == (200, "HTTP/1.1")  # 2.3: the version is the server's own
        assert reply.headers.get("connection") == ("close" if not kept else "keep-alive" if version == "1.0" else None)
        if kept:
            assert client.ask("GET", "/healthz").status == 200
        else:
            assert client.ended()


def test_pipelining_and_requests_in_pieces(server: Serving) -> None:
    """9.3.2; and each request also byte by byte: where a receive ends means nothing."""
    with server.client() as client:
        client.send(GET * 50)
        assert [client.receive().status for _ in range(50)] == [200] * 50
        for at in range(len(GET)):
            client.send(GET[at : at + 1])
        assert client.receive().status == 200
        half = len(GET) // 2
        client.send(GET + GET[:half])
        assert client.receive().status == 200
        client.send(GET[half:] + b"\r\n" + GET)  # 2.2: an empty line before a request
        assert [client.receive().status, client.receive().status] == [200, 200]


BODY = b"hello"
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize(
    ("headers", "body", "length"),
    [
        ({"Content-Length": "5"}, b"hello", 5),
        ({"Content-Length": "0"}, b"", 0),
        ({"Content-Length": "0005"}, b"hello", 5),
        ({}, b"", 0),
        (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n", 5),
        (CHUNKED, b"2;a=b\r\nhe\r\n00003 ; c\r\nllo\r\n0\r\nTrailer: x\r\nMore: y\r\n\r\n", 5),
        (CHUNKED, b"0\r\n\r\n", 0),
        (CHUNKED, b"A\r\n0123456789\r\n0\r\n\r\n", 10),
        ({"Content-Length": "300000"}, b"x" * 300_000, 300_000),
    ],
)
@pytest.mark.parametrize("path", ["/read", "/unread"])
def test_bodies(echo: Serving, path: str, headers: dict[str, str], body: bytes, length: int) -> None:
    """6.3, 7.1: a body is read by its framing; what nobody read is skipped when short."""
    with echo.client() as client:
        client.send(request("PUT", path, headers))
        client.send(body)
        reply = client.receive()
        assert reply.status == 200
        if path == "/read":
            assert f'"length": {length},'.encode() in reply.body
        if path == "/unread" and length > http_receiving.MAX_DRAINED:
            assert reply.headers["connection"] == "close"
        else:
            assert client.ask("GET", "/unread").status == 200


SMUGGLED = b"GET /read HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),  # 6.1
        (b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),  # 6.3
        (b"Content-Length: 5, 5\r\n", 400),
        (b"Content-Length: 5 5\r\n", 400),
        (b"Content-Length: +5\r\n", 400),
        (b"Content-Length : 5\r\n", 400),  # 5.1
        (b"Content-Length\r\n", 400),
        (b"X: a\r\n Content-Length: 5\r\n", 400),  # 5.2
        (b"X: a\nContent-Length: 5\r\n", 400),  # 2.2
        (b"X: a\rContent-Length: 5\r\n", 400),
        (b"X: a\x00\r\n", 400),  # RFC 9110 5.5
        (b"Transfer-Encoding: xchunked\r\n", 501),
        (b"Transfer-Encoding: chunked, identity\r\n", 501),
        (b"Transfer-Encoding: identity\r\n", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        (b"Expect: tea\r\n", 417),  # RFC 9110 10.1.1
    ],
)
def test_ambiguous_framing_ends_the_connection(echo: Serving, head: bytes, status: int) -> None:
    """6.1, 6.3, 11.2: one refusal, and nothing behind it is read as a request."""
    statuses, closed = exchange(echo, b"PUT /read HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n0\r\n\r\n" + SMUGGLED * 3)
    assert (statuses, closed) == ([status], True)


@pytest.mark.parametrize(
    "body",
    [
        b"ZZ\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b"5" * 17 + b"\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
@pytest.mark.parametrize("path", [b"/read", b"/unread"])
def test_malformed_chunks_end_the_connection(echo: Serving, path: bytes, body: bytes) -> None:
    """7.1, 11.2: after a body that cannot be read, nothing can be known to be a request."""
    head = b"PUT " + path + b" HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    statuses, closed = exchange(echo, head + body + SMUGGLED * 3)
    assert (statuses, closed) == ([400 if path == b"/read" else 200], True)


def test_what_chunks_cost_counts_as_the_body(echo: Serving) -> None:
    """A body that nobody wants is read away up to a bound in bytes sent, not in bytes meant."""
    chunk = b"1;" + b"x" * 240 + b"\r\na\r\n"
    few, many = (
        chunk * (size // len(chunk)) + b"0\r\n\r\n"
        for size in (http_receiving.MAX_DRAINED // 2, http_receiving.MAX_DRAINED * 2)
    )
    with echo.client() as client:
        client.send(request("PUT", "/unread", CHUNKED) + few)
        assert "connection" not in client.receive().headers
        client.send(request("PUT", "/read", CHUNKED) + many)
        assert b'"length": %d,' % many.count(b"a\r\n") in client.receive().body
        client.send(request("PUT", "/unread", CHUNKED) + many)
        assert client.receive().headers["connection"] == "close"


@pytest.mark.parametrize(
    ("fields", "status"),
    [(b"Host: h\r\nExpect: more\r\n", 417), (b"", 400), (b"Host: h\r\nContent-Length: x\r\n", 400)],
)
def test_a_refused_head_has_no_content(server: Serving, fields: bytes, status: int) -> None:
    """RFC 9110 9.3.2: also where the request is not understood."""
    for first in (b"", request("HEAD", "/disk"), GET):
        with server.client() as client:
            client.send(first + b"HEAD /disk HTTP/1.1\r\n" + fields + b"\r\n")
            if first:
                assert client.receive(first.split()[0].decode()).status == 200
            reply = client.receive("HEAD")
            assert (reply.status, reply.headers["connection"]) == (status, "close")
            assert client.ended()
    with server.client() as client:  # and the next one, of which not even the method can be read, is no HEAD
        client.send(request("HEAD", "/disk") + b"rubbish\n")
        assert client.receive("HEAD").status == 200
        assert client.receive().body


def test_a_body_cut_short(echo: Serving) -> None:
    """6.3, 8: an incomplete message is no message."""
    assert exchange(echo, request("PUT", "/read", {"Content-Length": "9"}) + b"hello") == ([400], True)
    assert exchange(echo, request("PUT", "/read", CHUNKED) + b"5\r\nhel") == ([400], True)


def test_expect_continue(echo: Serving) -> None:
    """RFC 9110 10.1.1: 100 only once the body is wanted; without it the final answer comes at once."""
    headers = {"Content-Length": "5", "Expect": "100-continue"}
    with echo.client() as client:
        client.send(request("PUT", "/read", headers))
        assert client.receive().status == 100
        client.send(BODY)
        assert client.receive().status == 200
        reply = client.ask("PUT", "/unread", headers)
        assert (reply.status, reply.headers["connection"]) == (200, "close")
    with echo.client() as client:  # HTTP/1.0 does not know it
        client.send(request("PUT", "/read", headers, "1.0") + BODY)
        assert client.receive().status == 200


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"GET /\r\n\r\n", [400]),  # 3: HTTP/0.9 has no version, and is no longer understood (RFC 9110 2.5)
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", [505]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [400]),  # TLS on a plain port
        (b"GET / HTTP/1.1\nHost: h\n\n", [400]),
        (b"GET / HTTP/1.1\r\n\r\n", [400]),  # 3.2
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", [400]),
        (b"GET http://h/healthz HTTP/1.1\r\nHost: other\r\n\r\n", [200]),  # 3.2.2
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", [414]),  # 3; RFC 9110 15.5.15
        (b"GET /" + b"a" * (MAX_HEAD + 9) + b" HTTP/1.1\r\nHost: h\r\n\r\n", [414]),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: " + b"a" * MAX_HEAD + b"\r\n\r\n", [431]),  # RFC 6585
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: a\r\n" * 101 + b"\r\n", [431]),
        (b"GET /healthz HTTP/1.1\r\nHost: h\r\n" + b"X: a\r\n" * 99 + b"\r\n", [200]),
        (b"", []),
        (b"GET / HT", []),
    ],
)
def test_odd_requests(server: Serving, data: bytes, statuses: list[int]) -> None:
    assert exchange(server, data)[0] == statuses


@given(st.lists(st.sampled_from([b"GET", b" ", b"/", b"disk", b"HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host: h", b":",
                                 b"x", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"0", b"\x00", b"\xff",
                                 b"Range: bytes=1-2", GET]), max_size=12).map(b"".join))  # fmt: skip
def test_any_bytes_are_answered_or_the_connection_ends(server: Serving, data: bytes) -> None:
    """Garbage gets well-formed answers, and the server lives on."""
    statuses, _ = exchange(server, data)
    assert all(status in (200, 206, 400, 404, 414, 431, 501, 505) for status in statuses)


def test_damage_before_and_after_the_head(caplog: pytest.LogCaptureFixture) -> None:
    """A block error is 500 while nothing was sent (RFC 9110 15.6.1), else the connection ends short (9112 8)."""
    application = Echo()
    with serving({}, application=application) as server, caplog.at_level(logging.WARNING):
        with server.client() as client:
            reply = client.ask("GET", "/bad0")
            assert (reply.status, b"secret" in reply.body) == (500, False)
            assert client.ask("GET", "/unread").status == 200
            client.send(request("GET", "/bad3000000"))
            with pytest.raises(EOFError) as caught:
                client.receive()
            assert 0 < len(caught.value.args[0]) <= 3_000_000
    assert application.released == 2
    assert [record.getMessage().count("/secret/path: disk block at") for record in caplog.records] == [1, 1]


def test_a_bug_is_a_500_and_a_traceback_in_the_log(echo: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with echo.client() as client:
        assert client.ask("GET", "/bug").status == 500
        assert client.ask("GET", "/unread").status == 200
    assert "RuntimeError: bug" in caplog.text


def test_connections_over_the_limit(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 15.6.4: 503 with Retry-After; a place that becomes free is used."""
    monkeypatch.setattr(Connection, "idle_for", lambda self: -1.0)  # however long a busy machine takes
    with serving({"snap": snapshot_file}, max_connections=2) as server:
        with server.client() as first, server.client() as second:
            assert first.ask("GET", "/healthz").status == second.ask("GET", "/healthz").status == 200
            with server.client() as third:
                reply = third.receive()
                assert (reply.status, reply.headers["retry-after"]) == (503, "5")
                assert third.ended()
        while server.listener.live():
            time.sleep(0.001)
        assert server.ask("GET", "/healthz").status == 200


HASTE_S = 1.0
"""A limit that what is quick keeps to also on a busy machine: at rest it takes a few milliseconds."""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, snapshot_file: Path) -> Iterator[Serving]:
    """A server with no patience."""
    for limit in ("HEAD_S", "FIRST_HEAD_S", "IDLE_S", "BODY_S"):
        monkeypatch.setattr(http_receiving, limit, HASTE_S)
    monkeypatch.setattr(sending, "STALL_S", HASTE_S)
    with serving({"snap": snapshot_file}, application=Echo()) as server:
        yield server


def test_slow_heads_and_bodies_are_cut(hasty: Serving) -> None:
    """RFC 9110 15.5.9: dripping does not help, for the whole head has a deadline; an idle connection just ends."""
    for start, path in (
        (b"GET /unread HTTP/1.1\r\nX: ", "head"),
        (request("PUT", "/read", {"Content-Length": "99"}), "b"),
    ):
        with hasty.client() as client:
            client.send(start)
            began = time.monotonic()
            with pytest.raises((EOFError, ConnectionError)):
                reply = None
                client.sock.settimeout(0.05)
                while time.monotonic() - began < 10 * HASTE_S:
                    client.send(b"a")
                    try:
                        reply = client.receive()
                    except socket.timeout:
                        continue
            assert time.monotonic() - began < 10 * HASTE_S, path
            assert reply is None or reply.status == 408
    with hasty.client() as client:
        assert client.ended()


def test_a_client_that_never_reads_is_given_up(hasty: Serving) -> None:
    """While it waits nothing is kept for it but a position; then what its answer needed is let go."""
    application = hasty.application
    assert isinstance(application, Echo)
    with hasty.client() as deaf:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send(request("GET", "/big"))
        assert hasty.ask("GET", "/unread").status == 200
        deadline = time.monotonic() + PATIENCE_S
        while not application.released and time.monotonic() < deadline:
            time.sleep(0.01)
        assert application.released == 1


class Toiling:
    """An application whose answer takes work until `enough` is set; `ends` tells how that came to its end."""

    def __init__(self) -> None:
        self.enough = threading.Event()
        self.ends: queue.Queue[str] = queue.Queue()

    def respond(self, request: Request) -> Response:
        try:
            while not self.enough.wait(0.001):
                request.watch()
        except BaseException as error:
            self.ends.put(type(error).__name__)
            raise
        self.ends.put("done")
        return json_response({})


def test_work_for_a_client_that_has_gone_ends(caplog: pytest.LogCaptureFixture) -> None:
    application = Toiling()
    with serving({}, application=application) as server:
        for _ in range(3):
            with server.client() as client:
                client.send(GET)
            assert application.ends.get(timeout=30) == "PeerGone"
        with server.client() as waiting:
            waiting.send(GET + GET)  # what has come already is no sign that nobody waits
            with pytest.raises(queue.Empty):
                application.ends.get(timeout=4 * LOOK_S)
            application.enough.set()
            assert [waiting.receive().status for _ in range(2)] == [200, 200]
    assert not caplog.records


def test_stopping_lets_work_end() -> None:
    """A stop shuts our side of the connection, which is not the client's."""
    application = Toiling()
    server = Serving({}, application=application)
    with server.client() as client:
        client.send(GET)
        time.sleep(2 * LOOK_S)
        stopper = threading.Thread(target=server.close, args=(30.0,))
        stopper.start()
        with pytest.raises(queue.Empty):
            application.ends.get(timeout=4 * LOOK_S)
        application.enough.set()
        assert (client.receive().status, application.ends.get(timeout=30)) == (200, "done")
        stopper.join()


def test_stopping_lets_an_answer_end(snapshot_file: Path, disk: bytes) -> None:
    """9.6: a stop closes idle connections and finishes what is being answered."""
    server = Serving({"snap": snapshot_file})
    with server.client() as idle, server.client() as busy:
        assert idle.ask("GET", "/healthz").status == 200
        busy.send(request("GET", "/disk"))
        first = busy.sock.recv(1000)
        ended: list[bool] = []
        stopper = threading.Thread(target=lambda: ended.append(server.close()))
        stopper.start()
        assert idle.ended()
        busy.rest = first
        assert busy.receive().body == disk
        assert busy.ended()
        stopper.join()
        assert ended == [True]


def test_a_snapshot_replaced_or_removed_between_requests(snapshot_file: Path, tmp_path: Path) -> None:
    """The next request of the same connection sees the new state, on the fast path too."""
    from hexz.tools.pack import pack

    (tmp_path / "raw").write_bytes(b"b" * 100_000)
    pack(str(tmp_path / "raw"), str(tmp_path / "other.hxz"))
    with serving({"snap": snapshot_file}) as server, server.client() as client:
        ranged = {"Range": "bytes=10-19"}
        before = [client.ask("GET", "/disk", ranged) for _ in range(3)]
        server.catalog.replace("snap", str(tmp_path / "other.hxz"))
        after = [client.ask("GET", "/disk", ranged) for _ in range(3)]
        assert {reply.body for reply in after} == {b"b" * 10} != {reply.body for reply in before}
        assert len({reply.headers["etag"] for reply in before + after}) == 2
        server.catalog.remove("snap")
        assert client.ask("GET", "/disk", ranged).status == 404


def test_head_and_data_go_out_together(server: Serving) -> None:
    """One small answer is one segment: the first receive has all of it."""
    with server.client() as client:
        for _ in range(5):
            client.send(request("GET", "/disk", {"Range": "bytes=0-999"}))
            data = client.sock.recv(1 << 16)
            assert len(data.partition(b"\r\n\r\n")[2]) == 1000
