"""Our NBD client against a scripted server: replies in any order and in pieces, and servers that break the rules."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hexz.errors import BadRequest
from hexz.images.backend import coalesced
from hexz.images.buffers import POOL, BufferPool
from hexz.images.errors import BackendDown, BackendError, NbdFault
from hexz.images.nbd import wire as nbd_wire
from hexz.images.nbd.backend import NbdBackend
from hexz.images.nbd.client import AHEAD, NbdConnection, StatusExtent, joined

SIZE = (3 << 20) + 700
IMAGE = random.Random(8).randbytes(SIZE)
FLUSH, ZEROES, MULTI_CONN = 1 | 4, 1 | 4 | 64, 1 | 4 | 256
READ, WRITE, DISC, FLUSH_IT, ZERO_IT, STATUS = 0, 1, 2, 3, 6, 7
SIMPLE, STRUCTURED = 0x67446698, 0x668E33EF
LAST = 1


class Asked(NamedTuple):
    """A request as it came."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


def chunk(cookie: int, kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHHQI", STRUCTURED, flags, kind, cookie, len(payload)) + payload


def data_chunk(cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
    return chunk(cookie, 1, struct.pack(">Q", offset) + IMAGE[offset : offset + length], flags)


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", SIMPLE, error, cookie) + data


Script = Callable[["Peer"], None]


class Peer:
    """The server's side of one connection, after the handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            got = self.sock.recv(length - len(data))
            if not got:
                raise ConnectionError
            data += got
        return data

    def ask(self) -> Asked:
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", self.receive(28))
        assert magic == 0x25609513
        if command == DISC:
            raise ConnectionError
        return Asked(flags, command, cookie, offset, length, self.receive(length) if command == WRITE else b"")

    def asked(self) -> Iterator[Asked]:
        while True:
            yield self.ask()

    def send(self, *data: bytes) -> None:
        self.sock.sendall(b"".join(data))


class Scripted:
    """An NBD server that shakes hands properly, and then does what the script of each connection says."""

    def __init__(
        self, folder: Path, *scripts: Script, structured: bool = True, flags: int = FLUSH, smallest: int = 1,
        contexts: bool = True,
    ) -> None:  # fmt: skip
        self.where = str(folder / "scripted.sock")
        self.structured, self.flags, self.smallest, self.contexts = structured, flags, smallest, contexts
        self.scripts = list(scripts)
        self.connections = 0
        self.failure: BaseException | None = None
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.where)
        self.listening.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        threads = []
        for script in self.scripts:
            sock, _ = self.listening.accept()
            self.connections += 1
            threads.append(threading.Thread(target=self.serve_one, args=(sock, script), daemon=True))
            threads[-1].start()
        self.listening.close()
        for thread in threads:
            thread.join()

    def serve_one(self, sock: socket.socket, script: Script) -> None:
        with sock, contextlib.suppress(ConnectionError):
            try:
                peer = Peer(sock)
                self.shake_hands(peer)
                script(peer)
            except AssertionError as error:
                self.failure = error

    def shake_hands(self, peer: Peer) -> None:
        peer.send(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3))
        peer.receive(4)
        while True:
            magic, option, length = struct.unpack(">8sII", peer.receive(16))
            assert magic == b"IHAVEOPT"
            peer.receive(length)

            def reply(kind: int, payload: bytes = b"", option: int = option) -> None:
                peer.send(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(payload)), payload)

            if option == 8 and not self.structured:
                reply(0x80000001)
                continue
            if option == 10 and self.contexts:
                reply(4, struct.pack(">I", 5) + b"base:allocation")
                reply(4, struct.pack(">I", 9) + b"qemu:dirty-bitmap:b")
            if option == 7:
                reply(3, struct.pack(">HIII", 3, self.smallest, 4096, 32 << 20))
                reply(3, struct.pack(">HQH", 0, SIZE, self.flags))
            reply(1)
            if option == 7:
                return

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        if self.failure is not None:
            raise self.failure


def whole(connection: NbdConnection, offset: int, length: int) -> bytes:
    return b"".join(bytes(piece) for piece in connection.read(offset, length))


def in_pieces_backwards(peer: Peer) -> None:
    """Answers as many requests as come at once, the last one first, in odd pieces and with the last piece first."""
    while True:
        requests = [peer.ask()]
        span = requests[0].length
        left = SIZE - requests[0].offset - span
        for _ in range(min(AHEAD - 1, -(-left // span) if span == POOL.size else 0)):
            requests.append(peer.ask())
        for asked in reversed(requests):
            cuts = sorted({0, asked.length, asked.length // 3, asked.length // 2})
            parts = list(zip(cuts, cuts[1:]))[::-1]
            for number, (start, end) in enumerate(parts):
                last = LAST if number == len(parts) - 1 else 0
                peer.send(data_chunk(asked.cookie, asked.offset + start, end - start, last))


def test_replies_come_in_any_order_and_in_pieces(tmp_path: Path) -> None:
    with Scripted(tmp_path, in_pieces_backwards) as server:
        connection = NbdConnection(server.where, "")
        assert whole(connection, 0, SIZE) == IMAGE
        assert whole(connection, SIZE - 3, 3) == IMAGE[-3:]
        assert connection.quiet()
        connection.close()


def with_holes(peer: Peer) -> None:
    for asked in peer.asked():
        middle = asked.length // 2
        hole = struct.pack(">QI", asked.offset + middle, asked.length - middle)
        peer.send(data_chunk(asked.cookie, asked.offset, middle), chunk(asked.cookie, 2, hole))
        peer.send(chunk(asked.cookie, 0, flags=LAST))


def test_holes_in_replies_are_zeros(tmp_path: Path) -> None:
    with Scripted(tmp_path, with_holes) as server:
        connection = NbdConnection(server.where, "")
        for _ in range(2):  # buffers that held data before
            assert whole(connection, 1000, 60_000) == IMAGE[1000:31_000] + bytes(30_000)
            got = whole(connection, 0, 2 * POOL.size)
            half = POOL.size // 2
            assert got == (IMAGE[:half] + bytes(half) + IMAGE[2 * half : 3 * half] + bytes(half))
        connection.close()


def simply(peer: Peer) -> None:
    for asked in peer.asked():
        data = IMAGE[asked.offset : asked.offset + asked.length] if asked.command == READ else b""
        peer.send(simple(asked.cookie, 0, data))


def test_a_server_of_simple_replies_and_large_blocks_is_read_at_any_offset(tmp_path: Path) -> None:
    def aligned(peer: Peer) -> None:
        for asked in peer.asked():
            assert asked.offset % 4096 == 0 and (asked.length % 4096 == 0 or asked.offset + asked.length == SIZE)
            peer.send(simple(asked.cookie, 0, IMAGE[asked.offset : asked.offset + asked.length]))

    with Scripted(tmp_path, aligned, structured=False, smallest=4096) as server:
        connection = NbdConnection(server.where, "")
        for offset, length in ((0, 1), (4095, 2), (5000, 1 << 20), (SIZE - 1, 1), (0, SIZE)):
            assert whole(connection, offset, length) == IMAGE[offset : offset + length]
        connection.close()


def test_pieces_are_small_where_no_large_buffer_is_free(tmp_path: Path) -> None:
    with Scripted(tmp_path, simply, structured=False) as server:
        connection = NbdConnection(server.where, "")
        taken = POOL.take(1000)
        try:
            pieces = [bytes(piece) for piece in connection.read(5, 300_000)]
        finally:
            POOL.give_back(taken)
        assert max(map(len, pieces)) == 65536 and b"".join(pieces) == IMAGE[5:300_005]
        connection.close()


def test_the_pool_never_has_more_buffers_than_it_began_with() -> None:
    pool = BufferPool(3, 10)
    first = pool.take(2)
    assert len(first) == 2 and len(pool.take(5)) == 1 and pool.take(1) == []
    pool.give_back(first)
    assert len(pool.take(9)) == 2


def refuse(peer: Peer) -> None:
    for asked in peer.asked():
        if asked.length == 1:
            peer.send(chunk(asked.cookie, 0x8001, struct.pack(">IH", 5, 6) + b"broken", LAST))
        elif asked.length == 2:
            where = struct.pack(">IHQ", 28, 0, asked.offset)
            peer.send(chunk(asked.cookie, 0x8002, where), chunk(asked.cookie, 0, flags=LAST))
        else:
            peer.send(data_chunk(asked.cookie, asked.offset, asked.length, LAST))


def test_an_error_reply_leaves_the_connection_usable(tmp_path: Path) -> None:
    with Scripted(tmp_path, refuse) as server:
        connection = NbdConnection(server.where, "")
        with pytest.raises(NbdFault, match="EIO: broken") as raised:
            whole(connection, 0, 1)
        assert raised.value.http_status == 502
        assert whole(connection, 10, 4) == IMAGE[10:14]
        with pytest.raises(BackendError, match="ENOSPC"):  # and more is to come of this one
            whole(connection, 0, 2)
        assert not connection.quiet()
        connection.close()


def hang_up(peer: Peer) -> None:
    peer.ask()


MISBEHAVIOUR: dict[str, Callable[[Asked], bytes]] = {
    "no reply": lambda asked: b"x" * 40,
    "another's cookie": lambda asked: data_chunk(asked.cookie + 7, asked.offset, asked.length, LAST),
    "before the span": lambda asked: data_chunk(asked.cookie, asked.offset - 1, asked.length, LAST),
    "behind the span": lambda asked: data_chunk(asked.cookie, asked.offset + 1, asked.length, LAST),
    "too much": lambda asked: data_chunk(asked.cookie, asked.offset, asked.length + 1, LAST),
    "too little": lambda asked: data_chunk(asked.cookie, asked.offset, asked.length - 1, LAST),
    "twice": lambda asked: 2 * data_chunk(asked.cookie, asked.offset, asked.length),
    "a part twice": lambda asked: 3 * data_chunk(asked.cookie, asked.offset, asked.length // 2),
    "a half twice": lambda asked: 2 * data_chunk(asked.cookie, asked.offset, asked.length // 2),
    "a part and a hole over it": lambda asked: (
        data_chunk(asked.cookie, asked.offset, asked.length // 2)
        + chunk(asked.cookie, 2, struct.pack(">QI", asked.offset + asked.length // 2 - 1, asked.length // 2))
    ),
    "a part over two": lambda asked: (
        data_chunk(asked.cookie, asked.offset, 100)
        + data_chunk(asked.cookie, asked.offset + 200, 100)
        + data_chunk(asked.cookie, asked.offset + 100, 200)
    ),
    "too many pieces": lambda asked: b"".join(
        data_chunk(asked.cookie, asked.offset + at, 1) for at in range(0, asked.length, 2)
    ),
    "a hole of nothing": lambda asked: chunk(asked.cookie, 2, struct.pack(">QI", asked.offset + 5, 0)),
    "nothing": lambda asked: chunk(asked.cookie, 0, flags=LAST),
    "a hole too long": lambda asked: chunk(asked.cookie, 2, struct.pack(">QI", asked.offset, asked.length + 1), LAST),
    "a hole of 4 GiB": lambda asked: chunk(asked.cookie, 2, struct.pack(">QI", asked.offset, 0xFFFFFFFF), LAST),
    "an unknown chunk": lambda asked: chunk(asked.cookie, 77, b"abc", LAST),
    "an endless error": lambda asked: struct.pack(">IHHQI", STRUCTURED, LAST, 0x8001, asked.cookie, 1 << 31),
    "a simple reply": lambda asked: simple(asked.cookie, 0, IMAGE[asked.offset : asked.offset + asked.length]),
    "block status": lambda asked: chunk(asked.cookie, 5, struct.pack(">III", 5, 1, 1), LAST),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_read_is_right_or_an_error(tmp_path: Path, name: str) -> None:
    def misbehave(peer: Peer) -> None:
        peer.send(MISBEHAVIOUR[name](peer.ask()))
        for _ in peer.asked():
            pass

    with Scripted(tmp_path, misbehave) as server:
        connection = NbdConnection(server.where, "")
        with pytest.raises(BackendError) as raised:
            whole(connection, 1000, 600)
        assert not isinstance(raised.value, (NbdFault, BackendDown)) and not connection.quiet()
        connection.close(polite=False)


def halves_of(length: int) -> list[tuple[int, int]]:
    """What a server that wants to see what lies in our buffers would send, as (start, length): never the last byte."""
    return [(0, length // 2), (0, length // 2), (1, length // 2)]


def test_what_others_read_never_comes_out_of_a_buffer(tmp_path: Path) -> None:
    secret = b"another's record" * (POOL.size // 16)
    for buffer in (taken := POOL.take(1000)):
        buffer[:] = secret
    POOL.give_back(taken)
    sent: list[bytes] = []

    def greedy(peer: Peer) -> None:
        for asked in peer.asked():
            for number, (start, length) in enumerate(halves_of(asked.length)):
                piece = b"." * length
                at = struct.pack(">Q", asked.offset + start)
                peer.send(chunk(asked.cookie, 1, at + piece, LAST if number == 2 else 0))

    with Scripted(tmp_path, *[greedy] * 4) as server:
        for length in (100, 70_000, POOL.size, SIZE):
            connection = NbdConnection(server.where, "")
            with pytest.raises(BackendError):
                sent += map(bytes, connection.read(0, length))
            connection.close(polite=False)
    assert not sent
    for owner in ("someone", "another"):
        buffers = POOL.take(1000, owner)
        assert all(not any(buffer[:4096]) and not any(buffer[-4096:]) for buffer in buffers)
        for buffer in buffers:
            buffer[:] = secret
        POOL.give_back(buffers, owner)


def dripping(peer: Peer) -> None:
    """Never silent, and never done."""
    asked = peer.ask()
    for byte in data_chunk(asked.cookie, asked.offset, asked.length, LAST):
        peer.send(bytes([byte]))
        time.sleep(0.02)


def chatting(peer: Peer) -> None:
    """Chunk after chunk, none of which is the last."""
    asked = peer.ask()
    while True:
        peer.send(chunk(asked.cookie, 0) * 100)


def taking_little(peer: Peer) -> None:
    """Reads a request so slowly that it never gets to its end."""
    for _ in range(100):
        peer.receive(10)
        time.sleep(0.02)


Attempt = Callable[[NbdConnection], object]


@pytest.mark.parametrize(
    ("server", "attempt"),
    [
        (dripping, lambda connection: whole(connection, 0, 60_000)),
        (chatting, lambda connection: whole(connection, 0, 60_000)),
        (chatting, lambda connection: connection.block_status(0, 4096)),
        (chatting, lambda connection: connection.flush()),
        (taking_little, lambda connection: connection.write(0, memoryview(bytes(SIZE)))),
    ],
)
def test_a_server_that_goes_on_for_ever_has_its_time_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Script, attempt: Attempt
) -> None:
    monkeypatch.setattr(nbd_wire, "REPLY_S", 0.6)
    monkeypatch.setattr(nbd_wire, "LOOK_S", 0.1)
    with Scripted(tmp_path, server) as peer:
        connection = NbdConnection(peer.where, "")
        with pytest.raises(BackendDown, match=r"took longer than 0.6 s"):
            attempt(connection)
        connection.close(polite=False)


def test_a_server_that_drips_in_the_handshake_has_its_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_wire, "REPLY_S", 0.5)
    where = str(tmp_path / "drip.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(where)
        listening.listen()

        def serve() -> None:
            sock, _ = listening.accept()
            with sock, contextlib.suppress(OSError):
                sock.sendall(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3))
                while True:
                    sock.sendall(b"\0")
                    time.sleep(0.1)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(BackendDown, match="took longer"):
            NbdConnection(where, "")
        thread.join()


def status(answers: list[tuple[int, list[tuple[int, int]]]]) -> Script:
    """Answers the n-th block status with the n-th list, of the context that stands before it."""

    def script(peer: Peer) -> None:
        for number, asked in enumerate(peer.asked()):
            assert asked.command == STATUS
            context, entries = answers[number]
            body = struct.pack(">I", context) + b"".join(struct.pack(">II", *entry) for entry in entries)
            other = 14 - context
            mirrored = struct.pack(">III", other, sum(length for length, _ in entries), 1 if other == 9 else 0)
            peer.send(chunk(asked.cookie, 5, body), chunk(asked.cookie, 5, mirrored, LAST))

    return script


def test_extents_go_on_where_an_answer_ends(tmp_path: Path) -> None:
    """Defect 3: an answer may cover less than was asked, or more."""
    answers = [
        (5, [(1000, 0)]),
        (5, [(1, 3), (2, 3), (997, 0)]),
        (9, [(500, 0), (500, 1)]),
        (5, [(SIZE + 5000, 2)]),
    ]
    with Scripted(tmp_path, status(answers)) as server:
        backend = NbdBackend(server.where, "", "b")
        with contextlib.closing(backend.open()) as session:
            found = list(coalesced(session.extents(0, SIZE, True)))
        backend.close()
    assert [(e.start, e.length, e.zero, e.hole, e.dirty) for e in found] == [
        (0, 1000, False, False, True),
        (1000, 3, True, True, True),
        (1003, 997, False, False, True),
        (2000, 500, False, False, False),
        (2500, 500, False, False, True),
        (3000, SIZE - 3000, True, False, True),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack(">I", 5),
        struct.pack(">IIIB", 5, 10, 0, 0),
        struct.pack(">III", 5, 0, 0),
        struct.pack(">III", 77, 10, 0),
        struct.pack(">III", 5, 10, 0),  # and nothing of the other context
    ],
)
def test_block_status_that_makes_no_sense_is_an_error(tmp_path: Path, body: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.send(chunk(peer.ask().cookie, 5, body, LAST))
        for _ in peer.asked():
            pass

    with Scripted(tmp_path, script) as server:
        connection = NbdConnection(server.where, "", "b")
        with pytest.raises(BackendError):
            connection.block_status(0, 4096)
        connection.close(polite=False)


def test_joined_cuts_at_the_borders_of_both() -> None:
    left = [StatusExtent(10, 1), StatusExtent(5, 2)]
    right = [StatusExtent(3, 0), StatusExtent(7, 1), StatusExtent(100, 0)]
    assert list(joined(left, right)) == [(3, 1, 0), (7, 1, 1), (5, 2, 0)]
    assert list(joined(left, [])) == []


def test_one_handshake_serves_many_requests(tmp_path: Path) -> None:
    """Defect 5: no connection and handshake for each request."""
    with Scripted(tmp_path, in_pieces_backwards) as server:
        backend = NbdBackend(server.where)
        for number in range(30):
            with contextlib.closing(backend.open()) as session:
                pieces = session.read(number, 100)
                assert bytes(next(pieces)[0]) == IMAGE[number : number + 100]
                pieces.close()  # as a server does that has what it needs
        assert backend.handshakes == 1 == server.connections
        backend.close()


def test_a_reading_that_is_given_up_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    def in_order(peer: Peer) -> None:
        for asked in peer.asked():
            peer.send(data_chunk(asked.cookie, asked.offset, asked.length, LAST))

    with Scripted(tmp_path, in_order, in_order) as server:
        backend = NbdBackend(server.where)
        free = POOL.take(1000)
        POOL.give_back(free)
        session = backend.open()
        pieces = session.read(0, SIZE)
        next(pieces)
        pieces.close()
        with pytest.raises(BackendDown):
            next(session.read(0, 10))
        session.close()
        with contextlib.closing(backend.open()) as again:
            assert b"".join(bytes(view) for views in again.read(0, SIZE) for view in views) == IMAGE
        assert backend.handshakes == 2
        taken = POOL.take(1000)
        assert len(taken) == len(free)
        POOL.give_back(taken)
        backend.close()


def test_a_connection_that_died_in_the_pool_is_not_used_again(tmp_path: Path) -> None:
    def once(peer: Peer) -> None:
        asked = peer.ask()
        peer.send(data_chunk(asked.cookie, asked.offset, asked.length, LAST))

    with Scripted(tmp_path, once, once) as server:
        backend = NbdBackend(server.where)
        for number in range(2):
            with contextlib.closing(backend.open()) as session:
                assert bytes(next(session.read(number, 9))[0]) == IMAGE[number : number + 9]
            backend._idle[0].connection._wire._sock.recv(1, socket.MSG_PEEK)  # until the server hung up
        assert backend.handshakes == 2
        backend.close()


def test_a_flush_covers_all_connections_that_wrote(tmp_path: Path) -> None:
    flushed = []
    lock = threading.Lock()

    def note(number: int) -> Script:
        def script(peer: Peer) -> None:
            for asked in peer.asked():
                if asked.command == FLUSH_IT:
                    with lock:
                        flushed.append(number)
                peer.send(simple(asked.cookie))

        return script

    with Scripted(tmp_path, note(0), note(1), structured=False) as server:
        backend = NbdBackend(server.where)
        one, other = backend.open(True), backend.open(True)
        one.write(0, memoryview(b"a"))
        other.write(9, memoryview(b"b"))
        one.close()
        other.close()
        with contextlib.closing(backend.open(True)) as session:
            session.flush()
        assert sorted(flushed) == [0, 1]
        backend.close()


def test_unflushed_writes_on_a_connection_that_broke_are_told_at_the_flush(tmp_path: Path) -> None:
    def one_write(peer: Peer) -> None:
        peer.send(simple(peer.ask().cookie))

    with Scripted(tmp_path, one_write, simply, simply, structured=False) as server:
        backend = NbdBackend(server.where)
        session = backend.open(True)
        session.write(0, memoryview(b"a"))
        with pytest.raises(BackendDown):
            session.write(1, memoryview(b"b"))
        session.close()
        for expected in (pytest.raises(BackendDown, match="unflushed"), contextlib.nullcontext()):
            with contextlib.closing(backend.open(True)) as session, expected:
                session.flush()
        backend.close()


def test_writes_fit_what_the_server_takes(tmp_path: Path) -> None:
    written = bytearray(SIZE)
    zeroed = []

    def take(peer: Peer) -> None:
        for asked in peer.asked():
            assert (asked.offset | asked.length) % 512 == 0
            written[asked.offset : asked.offset + len(asked.data)] = asked.data
            if asked.command == ZERO_IT:
                zeroed.append((asked.offset, asked.length))
            peer.send(chunk(asked.cookie, 0, flags=LAST))

    with Scripted(tmp_path, take, flags=ZEROES, smallest=512) as server:
        backend = NbdBackend(server.where)
        with contextlib.closing(backend.open(True)) as session:
            session.write(512, memoryview(IMAGE)[: 3 << 19])
            session.zero(1024, 1 << 20)
            for call in (lambda: session.write(1, memoryview(bytes(512))), lambda: session.zero(0, 7)):
                with pytest.raises(BadRequest, match="multiples of 512"):
                    call()
        backend.close()
    assert written[512 : 512 + (3 << 19)] == IMAGE[: 3 << 19] and zeroed == [(1024, 1 << 20)]


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"HTTP/1.1 400 Bad\r\n", "no NBD server"),
        (struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 2), "no NBD server"),
        (struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3) + struct.pack(">QIII", 1, 8, 1, 0), "something else"),
        (struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3) + struct.pack(">QIII", 0x3E889045565A9, 8, 3, 1 << 30),
         "something else"),
        (struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3) + 300 * struct.pack(">QIII", 0x3E889045565A9, 8, 3, 0),
         "does not stop"),
        (b"NBD", "hung up"),
    ],
)  # fmt: skip
def test_a_handshake_that_makes_no_sense_is_an_error(tmp_path: Path, greeting: bytes, reason: str) -> None:
    where = str(tmp_path / "odd.sock")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(where)
    listening.listen()

    def serve() -> None:
        sock, _ = listening.accept()
        with sock, contextlib.suppress(ConnectionError):  # what it says after the greeting is not read
            sock.sendall(greeting)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(BackendError, match=reason):
        NbdConnection(where, "")
    thread.join()
    listening.close()
    with pytest.raises(BackendDown, match="cannot connect"):
        NbdConnection(where, "")
