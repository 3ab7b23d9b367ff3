"""Send parts of a response so that a peer which does not read pins no memory.

Data of a `Piece` is read right before a send and let go right after it: while the
socket is full only offsets are kept, and the bytes come from the cache again.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from hexz.protocol.http.responses import Part, Piece, Response
from hexz.servers.errors import PeerStalled
from hexz.servers.spool import IN_MEMORY, Held

__all__ = ["HURRIED_S", "STALL_S", "Sender", "held", "send_secure", "wait_writable"]

STALL_S = 60.0
"""How long a peer may take nothing at all before it is given up."""
HURRIED_S = 2.0
"""The same once what it reads was taken away."""
LOOK_S = 1.0
"""How often it is looked, meanwhile, whether it was."""
PIECE_BYTES = 1 << 20
SECURE_PIECE_BYTES = 16 << 10
"""The same under TLS, where a send is a copy that waits with its peer: one record."""
MAX_BUFFERS = 1000
"""Buffers of one send; the kernel takes 1024 (IOV_MAX)."""


class Sender:
    """Sends responses on one socket; `total` counts what the kernel took of the present one, head included."""

    def __init__(self, sock: socket.socket, hurried: Callable[[], bool]) -> None:
        """`hurried` says that what is sent was taken away."""
        self._sock = sock
        self._hurried = hurried
        self._secure = isinstance(sock, ssl.SSLSocket)
        self.total = 0
        self._head = 0

    @property
    def sent(self) -> int:
        """What the kernel took of the present response's body, bytes."""
        return max(self.total - self._head, 0)

    def send(self, head: bytes, parts: Sequence[Part]) -> int:
        """Send `head` and `parts`, the head together with the first data; the body bytes sent.

        Raises: what reading a source raises (with `total` still 0 when it was the first
        read); PeerStalled, OSError when the peer has gone.
        """
        self.total = 0
        self._head = len(head)
        self.resume(head, parts)
        return self.total - len(head)

    def resume(self, pending: bytes, parts: Sequence[Part]) -> None:
        """Send what is left of a response: `pending` and `parts`."""
        for part in parts:
            if isinstance(part, bytes):
                pending += part
                continue
            _, offset, length = part
            end = offset + length
            while offset < end:
                done = self._send_some(pending, part, offset, end)
                taken = min(done, len(pending))
                pending = pending[taken:]
                offset += done - taken
        while pending:
            pending = pending[self._send_some(pending, None, 0, 0) :]

    def _send_some(self, pending: bytes, piece: Piece | None, offset: int, end: int) -> int:
        """Send what the socket takes of `pending` and the piece from `offset` on; wait if it takes nothing."""
        if self._secure:
            return self._send_secure(pending, piece, offset, end)
        buffers: list[bytes | memoryview] = [pending] if pending else []
        if piece is not None:
            buffers += piece.source.read(offset, min(PIECE_BYTES, end - offset))
            del buffers[MAX_BUFFERS:]
        try:
            sent = self._sock.sendmsg(buffers, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            del buffers
            if piece is not None and isinstance(piece.source, Held):
                piece.source.put_aside()
            wait_writable(self._sock, self._hurried)
            return 0
        self.total += sent
        return sent

    def _send_secure(self, pending: bytes, piece: Piece | None, offset: int, end: int) -> int:
        data = pending
        if piece is not None:
            if isinstance(piece.source, Held):
                piece.source.put_aside()  # a send waits, with no word of it before
            data += b"".join(piece.source.read(offset, min(SECURE_PIECE_BYTES, end - offset)))
        send_secure(self._sock, data, self._hurried)
        self.total += len(data)
        return len(data)


def held(response: Response) -> Response:
    """The same response with what is long in its body in places where it need not stay in memory."""
    long = [part for part in response.body if isinstance(part, bytes) and len(part) > IN_MEMORY]
    if not long:
        return response
    parts: list[Part] = []
    sources: list[Held] = []
    for part in response.body:
        if isinstance(part, bytes) and len(part) > IN_MEMORY:
            sources.append(Held(part))
            parts.append(Piece(sources[-1], 0, len(part)))
        else:
            parts.append(part)

    before = response.done  # and not the response, which has the bytes

    def done() -> None:
        for source in sources:
            source.close()
        if before is not None:
            before()

    return response._replace(body=tuple(parts), done=done)


def wait_writable(sock: socket.socket, hurried: Callable[[], bool]) -> None:
    """Wait until the socket takes something.

    Raises: PeerStalled.
    """
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    since = time.monotonic()
    while not poll.poll(LOOK_S * 1000):
        _bear(since, hurried)


def send_secure(sock: socket.socket, data: bytes, hurried: Callable[[], bool]) -> None:
    """Send `data` under TLS, record by record, each of which may wait; the socket's time-out is as before then.

    Raises: PeerStalled, OSError.
    """
    before = sock.gettimeout()
    sock.settimeout(LOOK_S)
    since = time.monotonic()
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
            since = time.monotonic()
        except (TimeoutError, socket.timeout):  # what of the record is out is known to OpenSSL: the same again
            _bear(since, hurried)
    sock.settimeout(before)


def _bear(since: float, hurried: Callable[[], bool]) -> None:
    """Raises: PeerStalled where a peer that took nothing `since` then has had its time."""
    patience = HURRIED_S if hurried() else STALL_S
    if time.monotonic() - since >= patience:
        raise PeerStalled(f"the peer took nothing for {patience:.0f} s")
