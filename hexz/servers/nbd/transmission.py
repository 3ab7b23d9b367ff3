"""The transmission phase: one receive takes what has come, one send answers what can be answered.

The connection's thread owns the socket.  As long as cached reads come, it stays in one loop, `CachedReads`, which
answers each receive with one ``sendmsg``, headers and cached data interleaved.  Everything else goes request by
request: cold reads are handed to the miss pool, and those replies follow when their blocks are there, in any order.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import time
from time import perf_counter

from hexz.errors import HexzError
from hexz.metrics.labels import FAILED, OK
from hexz.protocol.nbd import constants as c
from hexz.protocol.nbd.handshake import Negotiated
from hexz.protocol.nbd.replies import (
    REQUEST_FORMS,
    ChunkedReplies,
    simple_error,
)
from hexz.protocol.nbd.rules import NbdRefusal, NbdRequest, refusal
from hexz.servers.connection import SILENT_S, Connection
from hexz.servers.crowd import Crowd
from hexz.servers.nbd.cached import CachedReads
from hexz.servers.nbd.counting import NbdCounting
from hexz.servers.nbd.misses import Cold, ColdReads, MissPool
from hexz.servers.nbd.outbox import Export, Outbox
from hexz.servers.nbd.status import describe
from hexz.servers.nbd.stopping import receive_late

__all__ = ["Transmission"]

log = logging.getLogger("hexz.nbd")

RECEIVE_BYTES = 8 << 10
"""The receive buffer, which every connection has: room for 292 requests."""
MID_REQUEST_S = 30.0
"""How long the rest of a request, or of the data that it carries, may take."""
UNIX_SEND_BYTES = 512 << 10
"""What the kernel may hold for the peer of a unix socket, so that replies need not go in pieces; TCP sees to itself."""
BRISK_S = 1
"""A client that sent nothing for so long is waited for with a poll, which hears the summons of a successor too."""
INLINE_BLOCK = 1 << 20
"""Up to this block size a lone cold read is decompressed right here: handing it over would take longer."""


class Transmission:
    """One client's requests on one export."""

    def __init__(
        self,
        connection: Connection,
        export: Export,
        negotiated: Negotiated,
        pool: MissPool,
        crowd: Crowd,
        received: bytes,
    ) -> None:
        """`received` is what came with the handshake's last message."""
        self._connection = connection
        self._sock = sock = connection.sock
        self._secure = isinstance(sock, ssl.SSLSocket)
        self._stream = export.stream
        self._size = export.size
        self._contexts = negotiated.contexts
        self._chunks = ChunkedReplies(negotiated.extended) if negotiated.structured else None
        self._extended = negotiated.extended
        self._format, self._magic = REQUEST_FORMS[negotiated.extended]
        self._buffer = bytearray(max(RECEIVE_BYTES, len(received)))
        self._buffer[: len(received)] = received
        self._view = memoryview(self._buffer)
        self._start = 0  # the requests not looked at yet: from here in the buffer
        self._filled = len(received)  # to here
        self._counting = NbdCounting(export.metrics, export.totals, export.stream.name, connection.peer)
        self._outbox = Outbox(
            sock, connection.peer, export.stream, self._chunks, self._counting, lambda: connection.hurried
        )
        self._cached = CachedReads(connection, export.stream, self._chunks, self._outbox, self._counting, crowd)
        self._cold = ColdReads(pool, export.stream)
        self._missed: dict[int, int] = {}  # by cookie: bytes loaded for requests still to be answered
        self._summoned = False
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
        if not self._secure:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", BRISK_S, 0))

    @property
    def parked(self) -> bytes | None:
        """After `run`: what was received of the next request if a successor is to go on, else None."""
        return bytes(self._buffer[self._start : self._filled]) if self._summoned else None

    def run(self) -> None:
        """Serve until the client leaves, the daemon stops, or a successor takes over."""
        try:
            while self._answer_received() and self._serve_cached() and self._receive():
                continue
            self._finish()
        finally:
            self._cold.abandon()
            self._counting.close()

    # Receiving

    def _receive(self) -> bool:
        """Wait for more requests, and answer cold reads meanwhile; False when no more can come."""
        if self._connection.summoned and not self._secure:
            self._summoned = True
            return False
        while self._cold.waiting:
            self._answer_loaded()
            if self._has_input() or (self._cold.waiting and self._cold.wait(self._sock)):
                break
        if self._start == self._filled:
            return self._receive_more()
        deadline = time.monotonic() + MID_REQUEST_S
        while self._filled - self._start < self._format.size:
            if not self._await_input(deadline):
                log.info("%s: half a request and nothing more for %d s", self._connection.peer, MID_REQUEST_S)
                return False
            if not self._receive_more():
                return False
        return True

    def _receive_more(self) -> bool:
        if self._secure:
            return self._receive_secure()
        try:
            return self._receive_into_buffer(0)
        except BlockingIOError:
            self._connection.await_input(None)
            return True  # to look at the summons first

    def _receive_secure(self) -> bool:
        """The same under TLS, which waits in here, with no time-out that would tell of it."""
        self._connection.idle_since = time.monotonic() + SILENT_S
        try:
            return self._receive_into_buffer(0)
        finally:
            self._connection.idle_since = None

    def _receive_into_buffer(self, flags: int) -> bool:
        """Receive once behind what is still to be looked at; False at the end of the stream."""
        room = self._room()
        count = self._sock.recv_into(room, len(room), flags)
        self._filled += count
        self._counting.began = perf_counter()
        return count > 0

    def _room(self) -> memoryview:
        """The buffer behind what is still to be looked at, which moves to its front."""
        rest = self._filled - self._start
        if rest and self._start:
            self._buffer[:rest] = self._buffer[self._start : self._filled]
        self._start, self._filled = 0, rest
        return self._view[rest:] if rest else self._view

    def _has_input(self) -> bool:
        """Whether there is data that a poll of the socket does not see: TLS hands out whole records."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def _await_input(self, deadline: float) -> bool:
        """Wait for data until `deadline` (monotonic seconds); False when there is none."""
        if self._has_input():
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))

    def _serve_cached(self) -> bool:
        """Answer cached reads as long as nothing else comes; False when nobody is there."""
        if self._secure or self._cold.waiting or self._start != self._filled:
            return True
        going_on = self._cached.serve(self._view)
        self._start, self._filled = self._cached.start, self._cached.filled
        return going_on

    # Everything else

    def _answer_received(self) -> bool:
        """Deal with every complete request in the buffer; False when the connection is to end."""
        lone = self._filled - self._start == self._format.size and not self._cold.waiting
        if not lone and self._cold.quick and self._stream.block_size <= INLINE_BLOCK:
            self._load_what_came()
        going_on = True
        while going_on and self._filled - self._start >= self._format.size:
            going_on = self._answer_next(lone)
        if not going_on:
            self._start = self._filled  # what follows a farewell, or comes out of step, is nothing
        self._outbox.flush()
        return going_on

    def _load_what_came(self) -> None:
        """Load what reads of one block each lack, before any is answered: to hand them over would take longer."""
        stop = self._filled - (self._filled - self._start) % self._format.size
        most, end = self._stream.block_size, self._stream.size
        self._missed = self._cold.load_here(
            (cookie, offset, length)
            for magic, _, command, cookie, offset, length in self._format.iter_unpack(self._view[self._start : stop])
            if magic == self._magic and command == c.CMD_READ and 0 < length <= most and offset + length <= end
        )

    def _answer_next(self, lone: bool) -> bool:
        """Deal with the next request, whatever it is; False when the connection is to end."""
        magic, *fields = self._format.unpack_from(self._buffer, self._start)
        self._start += self._format.size
        if magic != self._magic:
            log.info("%s: a request without its magic: framing is lost", self._connection.peer)
            return False
        request = NbdRequest(*fields)
        if request.command == c.CMD_DISC:
            return False
        if request.command == c.CMD_WRITE or request.flags & c.CMD_FLAG_PAYLOAD_LEN:
            if not self._skip_payload(request.length):
                return False
            lone = False
        self._answer(request, lone)
        return True

    def _skip_payload(self, length: int) -> bool:
        """Read the data of a request away; False when that cannot be done."""
        if length > c.MAX_SKIPPED:
            log.info("%s: %d bytes of payload are too many", self._connection.peer, length)
            return False
        available = min(self._filled - self._start, length)
        self._start += available
        length -= available
        scratch = memoryview(bytearray(min(length, RECEIVE_BYTES)))
        deadline = time.monotonic() + MID_REQUEST_S
        while length:
            count = self._sock.recv_into(scratch[:length]) if self._await_input(deadline) else 0
            if not count:
                return False
            length -= count
        return True

    # Answering

    def _answer(self, request: NbdRequest, lone: bool) -> None:
        """Queue the reply of one request, or hand it to the pool."""
        refused = self._refusal(request)
        if refused is not None:
            self._counting.refused(request.command)
            self._outbox.put_error(request.cookie, request.offset, refused.error, refused.message)
        elif request.command == c.CMD_READ:
            self._read(request, lone)
        elif request.command == c.CMD_CACHE:
            length = min(request.length, self._stream.size - request.offset)
            if length > 0:
                self._stream.prefetch(request.offset, length)
            self._counting.add(request.command, OK, 0, self._counting.began)
            self._put_ok(request)
        else:
            before = self._counting.mark()
            self._put_status(request)
            self._counting.answered(request.command, 0, before)

    def _refusal(self, request: NbdRequest) -> NbdRefusal | None:
        if self._connection.draining:
            return NbdRefusal(c.NBD_ESHUTDOWN, "the server is stopping")
        return refusal(
            request, self._size, self._chunks is not None, self._extended, bool(self._contexts), self._outbox.most
        )

    def _put_ok(self, request: NbdRequest) -> None:
        if self._chunks is None:
            self._outbox.put_bytes(simple_error(0, request.cookie))
        else:
            self._outbox.put_bytes(self._chunks.done(request.cookie, request.offset))

    def _put_status(self, request: NbdRequest) -> None:
        assert self._chunks is not None
        try:
            contexts = describe(self._stream, self._size, request, self._contexts)
        except (HexzError, OSError) as error:
            self._outbox.put_trouble(request.cookie, request.offset, error)
            return
        self._outbox.put_bytes(self._chunks.status(request.cookie, request.offset, contexts))

    def _read(self, request: NbdRequest, lone: bool) -> None:
        counting = self._counting
        read = (request.cookie, request.offset, request.length, bool(request.flags & c.CMD_FLAG_DF))
        if not request.length:
            self._put_ok(request)
            return
        flight = counting.departs(request.offset, request.length)
        here = lone and self._stream.block_size <= INLINE_BLOCK
        if here or not self._is_cold(request) or not self._hand_over(Cold(*read, counting.began, flight)):
            before = counting.mark(self._missed.pop(request.cookie, 0))
            self._outbox.put_read(read)
            counting.landed(flight)
            counting.answered(request.command, request.length, before)

    def _hand_over(self, read: Cold) -> bool:
        """Have the pool load what `read` needs; False when it takes nothing at all."""
        while not self._cold.hand_over(read):
            if not self._cold.waiting:
                return False
            # The pool has enough to do: loading here as well would only have more threads fight for the interpreter.
            self._cold.wait(None)
            self._answer_loaded()
        return True

    def _is_cold(self, read: NbdRequest) -> bool:
        """Whether the read has to wait for a block; a long one is never: it is sent while it is loaded."""
        inside = min(read.length, self._stream.size - read.offset)
        return read.length <= self._outbox.most and inside > 0 and self._stream.read_cached(read.offset, inside) is None

    def _answer_loaded(self) -> None:
        for read, trouble, missing in self._cold.take():
            troubles = self._counting.troubles
            if trouble is None:
                self._outbox.put_read(read[:4])
            else:
                self._outbox.put_trouble(read.cookie, read.offset, trouble)
            good = troubles == self._counting.troubles
            self._counting.landed(read.flight)
            self._counting.add(c.CMD_READ, OK if good else FAILED, read.length * good, read.began, missing)
        self._outbox.flush()

    # Ending

    def _finish(self) -> None:
        """Answer what is under way, and while draining refuse what still comes."""
        while self._cold.waiting:
            self._cold.wait(None)
            self._answer_loaded()
        while self._connection.draining and not self._secure:
            count = receive_late(self._sock, self._room())
            self._filled += count
            if not count or not self._answer_received():
                return
