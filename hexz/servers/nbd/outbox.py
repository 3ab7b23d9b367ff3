"""Replies on their way to one client: put together while they come, sent with one call.

A reply with data is kept as its request; the views of cached data that one send
takes live only as long as that send.  When the peer is slow, what is not sent yet
is put together again from the cache, piece by piece, each time there is room: a
connection that waits pins no data.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple, Union

from hexz.errors import BlockError, HexzError, Overloaded
from hexz.metrics import Metrics, SnapshotMetrics
from hexz.protocol.nbd import constants as c
from hexz.protocol.nbd.replies import SIMPLE_REPLY, Buffer, ChunkedReplies, simple_error
from hexz.servers.nbd.counting import NbdCounting
from hexz.servers.sending import send_secure, wait_writable
from hexz.snapshot import ZEROS, Stream

__all__ = ["MAX_BUFFERS", "MAX_VIEWS", "ZERO_BYTES", "Export", "Outbox"]

log = logging.getLogger("hexz.nbd")

MAX_BUFFERS = 960
"""Buffers of one send, but for the last reply's; the kernel takes 1024 (IOV_MAX)."""
MAX_VIEWS = 60
"""Buffers that one reply adds to a send; one of more goes out by itself."""
MAX_BATCH = 1 << 20
"""Bytes of replies put together before they are sent; a longer read goes out in pieces of this size."""
MAX_SECURE_BATCH = 64 << 10
"""The same under TLS, where a send is a copy."""

Read = tuple[int, int, int, bool]
"""A read to answer: cookie, offset, length, and whether it must be one chunk."""
Reply = Union[bytes, Read]
ZERO_BYTES = ZEROS.obj


class Export(NamedTuple):
    """A stream, the size it has for the client (at least its own, the rest is zeros), and what counts its requests.

    `totals` count for all exports together.
    """

    stream: Stream
    size: int
    metrics: SnapshotMetrics
    totals: Metrics


class Outbox:
    """What one connection has to send; used by the connection's thread alone."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        stream: Stream,
        chunks: ChunkedReplies | None,
        counting: NbdCounting,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        """`chunks` builds structured or extended replies; None means simple ones.  `counting` hears of troubles.

        `hurried` says that the export was taken away: the client then has no time to take up reading again.
        """
        self._hurried = hurried
        self._counting = counting
        self._sock = sock
        self._peer = peer
        self._stream = stream
        self._chunks = chunks
        self._secure = isinstance(sock, ssl.SSLSocket)
        self.most = MAX_SECURE_BATCH if self._secure else MAX_BATCH
        self._buffers: list[Buffer] = []
        self._replies: list[Reply] = []
        self._pending = 0  # bytes in `_buffers`

    def put_bytes(self, reply: bytes) -> None:
        """Queue a reply without data of the stream."""
        if self._pending + len(reply) > self.most or len(self._buffers) >= MAX_BUFFERS:
            self.flush()
        self._buffers.append(reply)
        self._replies.append(reply)
        self._pending += len(reply)

    def put_error(self, cookie: int, offset: int, error: int, message: str) -> None:
        """Queue the refusal of the request with this cookie and offset."""
        log.debug("%s: refused: %s", self._peer, message)
        if self._chunks is None:
            self.put_bytes(simple_error(error, cookie))
        else:
            self.put_bytes(self._chunks.error(error, message, cookie, offset))

    def put_trouble(self, cookie: int, offset: int, error: HexzError | OSError) -> None:
        """Queue the news that the request failed for want of good data."""
        log.warning("%s: %s", self._peer, error)
        self._counting.trouble(error)
        number = error.nbd_errno if isinstance(error, HexzError) else c.NBD_EIO
        self.put_error(cookie, offset, number, _told(error))

    def put_read(self, read: Read) -> None:
        """Queue the reply to a read, decompressing here what is missing; a long one is sent at once."""
        cookie, offset, length, _ = read
        if length > self.most or self._pending + length > self.most or len(self._buffers) >= MAX_BUFFERS:
            self.flush()
        try:
            first = self._piece(read, offset, min(length, self.most))
        except (HexzError, OSError) as error:
            self.put_trouble(cookie, offset, error)
            return
        if length > self.most or len(first) > MAX_VIEWS:
            del first
            self.flush()
            self._send_read(read, 0)
            return
        self._buffers += first
        self._replies.append(read)
        self._pending += sum(map(len, first))

    def flush(self) -> None:
        """Send what was put together, however long it takes."""
        if not self._replies:
            return
        replies, self._replies = self._replies, []
        buffers, self._buffers = self._buffers, []
        pending, self._pending = self._pending, 0
        if self._secure:
            joined = b"".join(buffers)
            del buffers
            self._send_all(joined)
            return
        try:
            sent = self._sock.sendmsg(buffers, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        del buffers
        if sent != pending:
            self.send_rest(replies, sent)

    def send_rest(self, replies: Sequence[Reply], skip: int) -> None:
        """Send replies one by one, but for their first `skip` bytes, which are out."""
        for reply in replies:
            if not isinstance(reply, bytes):
                skip = self._send_read(reply, skip)
            elif skip < len(reply):
                self._send_all(reply[skip:])
                skip = 0
            else:
                skip -= len(reply)

    def _send_read(self, read: Read, skip: int) -> int:
        """Send a read's reply but for its first `skip` bytes; how many bytes of the next replies are out.

        Raises: ConnectionAbortedError when data is lost in the middle of a reply that cannot say so.
        """
        cookie, offset, length, _ = read
        for at in range(offset, offset + length, self.most):
            try:
                skip = self._send_piece(read, at, min(self.most, offset + length - at), skip)
            except HexzError as error:
                log.warning("%s: %s", self._peer, error)
                self._counting.trouble(error)
                if self._chunks is not None:
                    self._send_all(self._chunks.error(error.nbd_errno, _told(error), cookie, offset, at))
                elif at == offset:
                    self._send_all(simple_error(error.nbd_errno, cookie))
                else:
                    # "The server MUST immediately initiate a hard disconnect" (proto.md, "NBD_CMD_READ").
                    raise ConnectionAbortedError("hanging up in the middle of a reply") from error
                return 0
        return skip

    def _send_piece(self, read: Read, at: int, size: int, skip: int) -> int:
        """Send a piece but for its first `skip` bytes.  Raises: HexzError only while none of it is out."""
        while True:
            try:
                buffers = self._piece(read, at, size)
            except HexzError as error:
                if skip:
                    raise ConnectionAbortedError(f"hanging up in the middle of a reply: {error}") from error
                raise
            total = sum(map(len, buffers))
            if skip >= total:
                return skip - total
            if self._secure:
                joined = b"".join(buffers)
                del buffers
                self._send_all(joined)
                return 0
            _drop(buffers, skip)
            with contextlib.suppress(BlockingIOError):  # then no byte is out
                skip += self._sock.sendmsg(buffers[:MAX_BUFFERS], (), socket.MSG_DONTWAIT)
            if skip == total:
                return 0
            del buffers
            wait_writable(self._sock, self._hurried)

    def _send_all(self, data: bytes) -> None:
        """Send all of a short reply, or of what has to be one piece under TLS.  Raises: PeerStalled, OSError."""
        if self._secure:
            send_secure(self._sock, data, self._hurried)
            return
        while data:
            try:
                data = data[self._sock.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                wait_writable(self._sock, self._hurried)

    def _piece(self, read: Read, at: int, size: int) -> list[Buffer]:
        """The buffers of one piece of a read's reply; always the same for the same piece.

        Raises: HexzError, OSError.
        """
        cookie, offset, length, whole = read
        inside = max(min(size, self._stream.size - at), 0)
        views = self._stream.read(at, inside) if inside else []
        if inside < size:
            views.append(ZEROS[: size - inside])
        if self._chunks is None:
            return [SIMPLE_REPLY.pack(c.SIMPLE_REPLY_MAGIC, 0, cookie), *views] if at == offset else [*views]
        if whole:
            return [self._chunks.data_head(cookie, offset, offset, length, True), *views]
        return self._chunks.data_and_holes(cookie, offset, at, views, at + size == offset + length, ZERO_BYTES)


def _told(error: Exception) -> str:
    """What the client is told: where files lie on the server is for the log alone."""
    if isinstance(error, BlockError):
        return f"the {error.stream} block at {error.position} is damaged"
    if isinstance(error, Overloaded):
        return str(error)
    return "the snapshot cannot be read"


def _drop(buffers: list[Buffer], skip: int) -> None:
    """Take the first `skip` bytes off `buffers`, which have more."""
    while skip >= len(buffers[0]):
        skip -= len(buffers.pop(0))
    buffers[0] = memoryview(buffers[0])[skip:]
