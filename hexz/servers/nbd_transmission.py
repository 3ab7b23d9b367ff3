"""The transmission loop: one receive takes what has come, one send answers what can be answered.

The connection's thread owns the socket.  It parses every complete request in its
buffer, answers cached reads at once, several in one ``sendmsg`` with headers and
cached data interleaved, and hands cold reads to the miss pool; those replies
follow when their blocks are there, in whatever order.

While the peer does not read, the connection keeps no data: a reply that is not
sent yet is an offset and a length, and its views are taken from the cache again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import time
from collections import deque
from typing import NamedTuple, Union

from hexz.errors import HexzError
from hexz.protocol.nbd import constants as c
from hexz.protocol.nbd.handshake import Negotiated
from hexz.protocol.nbd.replies import (
    EXTENDED_REQUEST,
    REQUEST,
    SIMPLE_REPLY,
    STRUCTURED_DATA,
    Buffer,
    ChunkedReplies,
    simple_error,
)
from hexz.protocol.nbd.rules import Refusal, Request, refusal
from hexz.servers.base import Connection
from hexz.servers.nbd_misses import MissPool, MissQueue
from hexz.servers.nbd_status import describe
from hexz.snapshot import ZEROS, Stream

__all__ = ["Export", "Transmission"]

log = logging.getLogger("hexz.nbd")

RECEIVE_BYTES = 16 << 10
"""The receive buffer: room for 585 requests."""
MAX_BUFFERS = 960
"""Buffers of one send, but for the last reply's; the kernel takes 1024 (IOV_MAX)."""
MAX_VIEWS = 60
"""Buffers that one reply adds to a send; one of more pieces goes out by itself."""
MAX_BATCH = 1 << 20
"""Bytes of replies put together before they are sent; a longer read goes out in pieces of this size."""
MAX_SECURE_BATCH = 64 << 10
"""The same under TLS, where a send is a copy."""
MAX_WAITING = 256
"""Cold reads of one connection under way; beyond it the socket is not read."""
MID_REQUEST_S = 30.0
"""How long the rest of a request may take."""
LAST_REQUESTS_S = 0.25
"""While draining: how long a client that has no reply to come is listened to."""
INLINE_BLOCK = 1 << 20
"""Up to this block size a lone cold read is decompressed right here: handing it over would take longer."""

Read = tuple[int, int, int, bool]
"""A read to answer: cookie, offset, length, and whether it must not be cut into chunks."""
Reply = Union[bytes, Read]
_ZERO_BYTES = ZEROS.obj


class Export(NamedTuple):
    """A stream and the size it has for the client: at least its own, the rest is zeros."""

    stream: Stream
    size: int


class Transmission:
    """One client's requests on one export."""

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        export: Export,
        negotiated: Negotiated,
        pool: MissPool,
        received: bytes,
    ) -> None:
        """`received` is what came with the handshake's last message."""
        self._connection = connection
        self._sock = sock
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
        self._filled = len(received)
        self._most = MAX_SECURE_BATCH if self._secure else MAX_BATCH
        self._out: list[Buffer] = []  # what the next send takes
        self._replies: list[Reply] = []  # the same as replies, to build it again should the send stop half way
        self._pending = 0  # bytes of data in _out
        self._pool = pool
        self._queue = MissQueue()
        self._waiting = 0  # cold reads handed to the pool and not taken back
        self._finished: deque[tuple[Request, HexzError | OSError | None]] = deque()  # filled by the pool
        self._wake: tuple[int, int] | None = None

    def run(self) -> None:
        """Serve until the client leaves or the daemon stops."""
        try:
            while self._parse() and self._receive():
                continue
            self._finish()
        finally:
            while self._waiting:  # the pool still writes to the wake-up pipe
                self._await_pool()
                while self._finished:
                    self._finished.popleft()
                    self._waiting -= 1
            if self._wake is not None:
                os.close(self._wake[0])
                os.close(self._wake[1])

    # Receiving

    def _receive(self) -> bool:
        """Wait for more requests, or for cold blocks; False when no more can come."""
        while self._waiting:
            self._take_finished()
            self._flush()
            if self._waiting and self._wait_any():
                break
        if self._filled and not self._secure and not _ready(self._sock, select.POLLIN, MID_REQUEST_S):
            log.info("%s: half a request and nothing more for %d s", self._connection.peer, MID_REQUEST_S)
            return False
        count = self._sock.recv_into(memoryview(self._buffer)[self._filled :])
        self._filled += count
        return count > 0

    def _wait_any(self) -> bool:
        """Wait for the socket (unless too much is under way) or the pool; True when it is the socket."""
        assert self._wake is not None
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        if self._waiting < MAX_WAITING:
            poll.register(self._sock, select.POLLIN)
        ready = dict(poll.poll())
        if self._wake[0] in ready:
            os.read(self._wake[0], 4096)
        return self._sock.fileno() in ready

    def _parse(self) -> bool:
        """Deal with every complete request in the buffer; False when the connection is to end."""
        while self._filled >= self._format.size:
            if not self._parse_run():
                self._flush()
                return False
        self._flush()
        return True

    def _parse_run(self) -> bool:
        """Deal with requests up to the buffer's end, or to the first that carries data."""
        size = self._format.size
        count = self._filled // size
        read_cached = self._stream.read_cached
        end = self._stream.size
        simple = self._chunks is None
        magic_wanted = self._magic
        pack_simple = SIMPLE_REPLY.pack
        pack_data = STRUCTURED_DATA.pack
        most = self._most
        fast = not self._extended and not self._connection.draining
        lone = count == 1 and not self._waiting
        used = 0
        for magic, flags, command, cookie, offset, length in self._format.iter_unpack(
            memoryview(self._buffer)[: count * size]
        ):
            used += size
            if magic != magic_wanted:
                log.info("%s: a request without its magic: framing is lost", self._connection.peer)
                return False
            if fast and not command and not flags and 0 < length <= most and offset + length <= end:
                views = read_cached(offset, length)
                if views is not None and len(views) == 1 and (simple or views[0].obj is not _ZERO_BYTES):
                    out = self._out
                    if simple:
                        out.append(pack_simple(c.SIMPLE_REPLY_MAGIC, 0, cookie))
                    else:
                        out.append(
                            pack_data(
                                c.STRUCTURED_REPLY_MAGIC,
                                c.CHUNK_FLAG_DONE,
                                c.CHUNK_OFFSET_DATA,
                                cookie,
                                length + 8,
                                offset,
                            )
                        )
                    out.append(views[0])
                    self._replies.append((cookie, offset, length, False))
                    self._pending += length
                    if self._pending >= most or len(out) >= MAX_BUFFERS:
                        self._flush()
                    continue
            if command == c.CMD_DISC:
                self._filled = 0
                return False
            request = Request(flags, command, cookie, offset, length)
            if command == c.CMD_WRITE or flags & c.CMD_FLAG_PAYLOAD_LEN:
                return self._skip_payload(request, used)
            self._answer(request, lone)
        self._keep(used)
        return True

    def _keep(self, used: int) -> None:
        """Move what follows the first `used` bytes to the front of the buffer."""
        rest = self._filled - used
        if rest:
            self._buffer[:rest] = self._buffer[used : self._filled]
        self._filled = rest

    def _skip_payload(self, request: Request, used: int) -> bool:
        """Refuse a request that carries data, and read the data away; False when that cannot be done."""
        length = request.length
        if length > c.MAX_SKIPPED:
            log.info("%s: %d bytes of payload are too many", self._connection.peer, length)
            return False
        available = min(self._filled - used, length)
        self._keep(used + available)
        length -= available
        scratch = memoryview(bytearray(min(length, RECEIVE_BYTES)))
        while length:
            if not self._secure and not _ready(self._sock, select.POLLIN, MID_REQUEST_S):
                return False
            count = self._sock.recv_into(scratch[:length])
            if not count:
                return False
            length -= count
        self._answer(request, False)
        return True

    # Answering

    def _answer(self, request: Request, lone: bool) -> None:
        """Queue the reply of one request, or hand it to the pool."""
        refused = self._refusal(request)
        if refused is not None:
            self._put_error(request, refused.error, refused.message)
        elif request.command == c.CMD_READ:
            if self._is_cold(request) and not (lone and self._stream.block_size <= INLINE_BLOCK):
                self._hand_over(request)
            else:
                self._put_read(request)
        elif request.command == c.CMD_CACHE:
            length = min(request.length, self._stream.size - request.offset)
            if length > 0:
                self._stream.prefetch(request.offset, length)
            self._put_ok(request)
        else:
            self._put_status(request)

    def _refusal(self, request: Request) -> Refusal | None:
        if self._connection.draining:
            return Refusal(c.NBD_ESHUTDOWN, "the server is stopping")
        return refusal(request, self._size, self._chunks is not None, self._extended, bool(self._contexts))

    def _is_cold(self, request: Request) -> bool:
        """Whether the read has to wait for a block, and waiting may be done elsewhere."""
        if self._secure or not 0 < request.length <= self._most:
            return False
        length = min(request.length, self._stream.size - request.offset)
        return length > 0 and self._stream.read_cached(request.offset, length) is None

    def _put_bytes(self, reply: bytes) -> None:
        self._out.append(reply)
        self._replies.append(reply)
        self._pending += len(reply)
        if self._pending >= self._most or len(self._out) >= MAX_BUFFERS:
            self._flush()

    def _put_error(self, request: Request, error: int, message: str) -> None:
        log.debug("%s: command %d: %s", self._connection.peer, request.command, message)
        if self._chunks is None:
            self._put_bytes(simple_error(error, request.cookie))
        else:
            self._put_bytes(self._chunks.error(error, message, request.cookie, request.offset))

    def _put_ok(self, request: Request) -> None:
        if self._chunks is None:
            self._put_bytes(simple_error(0, request.cookie))
        else:
            self._put_bytes(self._chunks.done(request.cookie, request.offset))

    def _put_status(self, request: Request) -> None:
        assert self._chunks is not None
        try:
            contexts = describe(self._stream, self._size, request, self._contexts)
        except (HexzError, OSError) as error:
            self._put_trouble(request, error)
            return
        self._put_bytes(self._chunks.status(request.cookie, request.offset, contexts))

    def _put_trouble(self, request: Request, error: HexzError | OSError) -> None:
        log.warning("%s: %s", self._connection.peer, error)
        self._put_error(request, error.nbd_errno if isinstance(error, HexzError) else c.NBD_EIO, str(error))

    def _put_read(self, request: Request) -> None:
        """Answer a read, decompressing here what is missing."""
        if not request.length:
            self._put_ok(request)
            return
        read = (request.cookie, request.offset, request.length, bool(request.flags & c.CMD_FLAG_DF))
        try:
            first = self._build(read, request.offset, min(request.length, self._most))
        except (HexzError, OSError) as error:
            self._put_trouble(request, error)
            return
        if request.length > self._most or len(first) > MAX_VIEWS:
            self._flush()
            del first
            self._send_read(read, 0)
            return
        self._out += first
        self._replies.append(read)
        self._pending += request.length
        if self._pending >= self._most or len(self._out) >= MAX_BUFFERS:
            self._flush()

    # Cold reads

    def _hand_over(self, request: Request) -> None:
        if self._wake is None:
            self._wake = os.pipe()
            os.set_blocking(self._wake[1], False)
        self._waiting += 1
        self._pool.submit(self._queue, lambda: self._load(request))

    def _load(self, request: Request) -> None:
        """In a thread of the pool: get the blocks into the cache."""
        trouble: HexzError | OSError | None = None
        try:
            self._stream.read(request.offset, min(request.length, self._stream.size - request.offset))
        except (HexzError, OSError) as error:
            trouble = error
        except Exception as error:
            log.exception("%s: unexpected trouble", self._connection.peer)
            trouble = OSError(c.NBD_EIO, str(error))
        self._finished.append((request, trouble))
        assert self._wake is not None
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake[1], b"\0")

    def _take_finished(self) -> None:
        while self._finished:
            request, trouble = self._finished.popleft()
            self._waiting -= 1
            if trouble is None:
                self._put_read(request)
            else:
                self._put_trouble(request, trouble)

    def _await_pool(self) -> None:
        if not self._finished:
            assert self._wake is not None
            os.read(self._wake[0], 4096)

    def _finish(self) -> None:
        """Answer what is under way, and while draining refuse what still comes."""
        while self._waiting:
            self._await_pool()
            self._take_finished()
            self._flush()
        deadline = time.monotonic() + LAST_REQUESTS_S
        while self._connection.draining and not self._secure and time.monotonic() < deadline:
            try:
                count = self._sock.recv_into(memoryview(self._buffer)[self._filled :], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                count = 0
            self._filled += count
            if not count:
                time.sleep(0.01)  # a socket shut for reading is always readable: there is nothing to wait for
            elif not self._parse():
                return

    # Sending

    def _flush(self) -> None:
        """Send what was put together."""
        if not self._replies:
            return
        out, replies = self._out, self._replies
        self._out, self._replies, self._pending = [], [], 0
        if self._secure:
            self._sock.sendall(b"".join(out))
            return
        try:
            sent = self._sock.sendmsg(out, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent == sum(map(len, out)):
            return
        del out
        for reply in replies:
            sent = self._send_bytes(reply, sent) if isinstance(reply, bytes) else self._send_read(reply, sent)

    def _send_bytes(self, reply: bytes, skip: int) -> int:
        """Send a reply but for its first `skip` bytes, which are out; how many bytes of the next ones are out."""
        if skip < len(reply):
            self._sock.sendall(reply[skip:])
        return max(skip - len(reply), 0)

    def _send_read(self, read: Read, skip: int) -> int:
        """The same for a read, piece by piece; views are held only during a send.

        Raises: ConnectionAbortedError when data is lost in the middle of a reply that cannot say so.
        """
        cookie, offset, length, whole = read
        for at in range(offset, offset + length, self._most):
            try:
                skip = self._send_piece(read, at, min(self._most, offset + length - at), skip)
            except HexzError as error:
                log.warning("%s: %s", self._connection.peer, error)
                if at == offset and self._chunks is None:
                    self._sock.sendall(simple_error(error.nbd_errno, cookie))
                elif self._chunks is not None and (at == offset or not whole):
                    self._sock.sendall(self._chunks.error(error.nbd_errno, str(error), cookie, offset, at))
                else:
                    raise ConnectionAbortedError("hanging up in the middle of a reply") from error
                return 0
        return skip

    def _send_piece(self, read: Read, at: int, size: int, skip: int) -> int:
        """Send a piece but for its first `skip` bytes.  Raises: HexzError only while none of it is out."""
        while True:
            try:
                buffers = self._build(read, at, size)
            except HexzError as error:
                if skip:
                    raise ConnectionAbortedError(f"hanging up in the middle of a reply: {error}") from error
                raise
            total = sum(map(len, buffers))
            if skip >= total:
                return skip - total
            if self._secure:
                self._sock.sendall(b"".join(buffers))
                return 0
            _drop(buffers, skip)
            try:
                sent = self._sock.sendmsg(buffers[:MAX_BUFFERS], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            skip += sent
            if skip == total:
                return 0
            del buffers
            _ready(self._sock, select.POLLOUT, None)

    def _build(self, read: Read, at: int, size: int) -> list[Buffer]:
        """The buffers of one piece of a read's reply; always the same for the same piece.

        Raises: HexzError, OSError.
        """
        cookie, offset, length, whole = read
        views = self._views(at, size)
        first, last = at == offset, at + size == offset + length
        if self._chunks is None:
            return [SIMPLE_REPLY.pack(c.SIMPLE_REPLY_MAGIC, 0, cookie), *views] if first else [*views]
        if whole:
            return [self._chunks.data_head(cookie, offset, offset, length, True), *views] if first else [*views]
        return self._chunks.data_and_holes(cookie, offset, at, views, last, _ZERO_BYTES)

    def _views(self, at: int, size: int) -> list[memoryview]:
        inside = min(size, self._stream.size - at)
        views = self._stream.read(at, inside) if inside > 0 else []
        if inside < size:
            views.append(ZEROS[: size - max(inside, 0)])
        return views


def _drop(buffers: list[Buffer], skip: int) -> None:
    """Take the first `skip` bytes off `buffers`, which have more."""
    while skip >= len(buffers[0]):
        skip -= len(buffers.pop(0))
    buffers[0] = memoryview(buffers[0])[skip:]


def _ready(sock: socket.socket, event: int, timeout: float | None) -> bool:
    """Wait until `sock` can be read or written; False after `timeout` seconds."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
