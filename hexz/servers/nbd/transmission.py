"""The transmission loop: one receive takes what has come, one send answers what can be answered.

The connection's thread owns the socket.  It parses every complete request in its
buffer, answers cached reads at once, several in one ``sendmsg`` with headers and
cached data interleaved, and hands cold reads to the miss pool; those replies
follow when their blocks are there, in whatever order.  While others read cached data
too, the crowd's thread stands in for it.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from time import perf_counter

from hexz.errors import HexzError
from hexz.metrics.words import FAILED, OK
from hexz.protocol.nbd import constants as c
from hexz.protocol.nbd.handshake import Negotiated
from hexz.protocol.nbd.replies import (
    EXTENDED_DATA,
    EXTENDED_REQUEST,
    REQUEST,
    SIMPLE_REPLY,
    STRUCTURED_DATA,
    ChunkedReplies,
    simple_error,
)
from hexz.protocol.nbd.rules import Refusal, Request, refusal
from hexz.servers.connection import SILENT_S, Connection
from hexz.servers.nbd.counting import Counting
from hexz.servers.nbd.crowd import LARGEST, Crowd, Streak
from hexz.servers.nbd.late import receive_late
from hexz.servers.nbd.misses import Cold, ColdReads, MissPool
from hexz.servers.nbd.outbox import MAX_BUFFERS, ZERO_BYTES, Export, Outbox
from hexz.servers.nbd.status import describe

__all__ = ["Transmission"]

log = logging.getLogger("hexz.nbd")

RECEIVE_BYTES = 16 << 10
"""The receive buffer: room for 585 requests."""
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
        self._format = EXTENDED_REQUEST if negotiated.extended else REQUEST
        self._magic = c.EXTENDED_REQUEST_MAGIC if negotiated.extended else c.REQUEST_MAGIC
        self._buffer = bytearray(max(RECEIVE_BYTES, len(received)))
        self._buffer[: len(received)] = received
        self._view = memoryview(self._buffer)
        self._start = 0  # the requests not looked at yet: from here in the buffer
        self._filled = len(received)  # to here
        self._crowd = crowd
        self._streak = Streak(crowd)
        self._missed = False  # the read at `_start` was just looked for in the cache in vain
        self._ended = False  # written by the crowd's thread while this connection's sleeps
        self._counting = Counting(export.metrics, export.stream, connection.peer)
        self._outbox = Outbox(
            sock, connection.peer, export.stream, self._chunks, self._counting, lambda: connection.leaving
        )
        self._cold = ColdReads(pool, export.stream)
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
            while self._answer_received() and self._stay_in_crowd() and self._receive():
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

    # The requests in the buffer

    def _answer_received(self) -> bool:
        """Deal with every complete request in the buffer; False when the connection is to end."""
        lone = self._filled - self._start == self._format.size and not self._cold.waiting
        outbox = self._outbox
        going_on = plain = True
        while going_on:
            self._missed = False
            self._answer_cached(outbox.most, outbox.flush)
            if self._filled - self._start < self._format.size:
                break
            plain = False
            going_on = self._answer_next(lone)
        if not going_on:
            self._start = self._filled  # what follows a farewell, or comes out of step, is nothing
        if plain and 0 < outbox.pending <= LARGEST and not self._secure:
            self._streak.turn()
        else:
            self._streak.end()
        outbox.flush()
        return going_on

    # In the crowd

    def _stay_in_crowd(self) -> bool:
        """Let the crowd serve this connection while it can; False when the client has gone."""
        if not self._streak.shared or self._cold.waiting or self._start != self._filled:
            return True
        self._streak.end()
        connection, counting = self._connection, self._counting
        connection.silence = lambda: perf_counter() - counting.began
        self._crowd.stay(self._sock.fileno(), self._serve_in_crowd, connection.listener.summons)
        connection.silence = None
        self._outbox.send_late()
        return not self._ended and (self._filled - self._start < self._format.size or self._answer_received())

    def _serve_in_crowd(self) -> bool:
        """In the crowd's thread: answer what has come; False when that is not all there is to do."""
        try:
            if not self._receive_into_buffer(socket.MSG_DONTWAIT):
                self._ended = True
                return False
            self._answer_cached(LARGEST, self._outbox.send_now)
            small = self._outbox.pending <= LARGEST
            return self._outbox.send_now() and small and self._start == self._filled
        except BlockingIOError:
            return True
        except OSError as error:
            log.debug("%s: %s", self._connection.peer, error)
            self._ended = True
            return False
        except Exception:
            log.exception("%s: unexpected trouble in the crowd", self._connection.peer)
            self._ended = True
            return False

    def _answer_cached(self, largest: int, send: Callable[[], bool]) -> None:
        """Queue the replies to cached reads of at most `largest` bytes, up to the first request that is something else.

        `send` is called where a batch is full; it ends here as well when that is False.
        """
        if self._connection.draining:
            return
        outbox = self._outbox
        buffers, replies, most = outbox.buffers, outbox.replies, outbox.most
        read_cached, end = self._stream.read_cached, self._stream.size
        chunks, extended, magic_wanted = self._chunks, self._extended, self._magic
        size = self._format.size
        used = self._start
        stop = self._filled - (self._filled - used) % size
        counting = self._counting
        odd, usual = counting.odd, counting.usual
        for magic, flags, command, cookie, offset, length in self._format.iter_unpack(self._view[used:stop]):
            if magic != magic_wanted or command or flags or not 0 < length <= largest or offset + length > end:
                break
            if outbox.pending + length > most or len(buffers) >= MAX_BUFFERS:
                if not send():
                    break
                usual = counting.usual
            views = read_cached(offset, length)
            if views is None or len(views) != 1:
                self._missed = views is None
                break
            if chunks is None:
                head = SIMPLE_REPLY.pack(c.SIMPLE_REPLY_MAGIC, 0, cookie)
            elif views[0].obj is ZERO_BYTES:
                head = chunks.hole(cookie, offset, offset, length, True)
                views.clear()
            elif extended:
                head = EXTENDED_DATA.pack(
                    c.EXTENDED_REPLY_MAGIC, 1, c.CHUNK_OFFSET_DATA, cookie, offset, length + 8, offset
                )
            else:
                head = STRUCTURED_DATA.pack(
                    c.STRUCTURED_REPLY_MAGIC, 1, c.CHUNK_OFFSET_DATA, cookie, length + 8, offset
                )
            outbox.pending += len(head) + (length if views else 0)
            buffers.append(head)
            buffers += views
            replies.append((cookie, offset, length, False))
            if length != usual:
                odd.append(length)
            used += size
            views = None  # a send that waits pins no data
        self._start = used

    def _answer_next(self, lone: bool) -> bool:
        """Deal with the next request, whatever it is; False when the connection is to end."""
        magic, *fields = self._format.unpack_from(self._buffer, self._start)
        self._start += self._format.size
        if magic != self._magic:
            log.info("%s: a request without its magic: framing is lost", self._connection.peer)
            return False
        request = Request(*fields)
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

    def _answer(self, request: Request, lone: bool) -> None:
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

    def _refusal(self, request: Request) -> Refusal | None:
        if self._connection.draining:
            return Refusal(c.NBD_ESHUTDOWN, "the server is stopping")
        return refusal(
            request, self._size, self._chunks is not None, self._extended, bool(self._contexts), self._outbox.most
        )

    def _put_ok(self, request: Request) -> None:
        if self._chunks is None:
            self._outbox.put_bytes(simple_error(0, request.cookie))
        else:
            self._outbox.put_bytes(self._chunks.done(request.cookie, request.offset))

    def _put_status(self, request: Request) -> None:
        assert self._chunks is not None
        try:
            contexts = describe(self._stream, self._size, request, self._contexts)
        except (HexzError, OSError) as error:
            self._outbox.put_trouble(request.cookie, request.offset, error)
            return
        self._outbox.put_bytes(self._chunks.status(request.cookie, request.offset, contexts))

    def _read(self, request: Request, lone: bool) -> None:
        counting = self._counting
        read = (request.cookie, request.offset, request.length, bool(request.flags & c.CMD_FLAG_DF))
        if not request.length:
            self._put_ok(request)
            return
        flight = counting.departs(request.offset, request.length)
        here = lone and self._stream.block_size <= INLINE_BLOCK
        cold = self._missed or self._is_cold(request)
        if here or not cold or not self._hand_over(Cold(*read, counting.began, flight)):
            before = counting.mark()
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

    def _is_cold(self, read: Request) -> bool:
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
