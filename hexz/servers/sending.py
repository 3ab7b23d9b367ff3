"""Send parts of a response so that a peer which does not read pins no memory.

Data of a `Piece` is read right before a send and let go right after it: while the
socket is full only offsets are kept, and the bytes come from the cache again.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Sequence

from hexz.protocol.http.responses import Part, Piece, Response
from hexz.servers.spool import IN_MEMORY, Held

__all__ = ["STALL_S", "PeerStalled", "Sender", "held"]

STALL_S = 60.0
"""How long a peer may take nothing at all before it is given up."""
PIECE_BYTES = 1 << 20
SECURE_PIECE_BYTES = 16 << 10
"""The same under TLS, where a send is a copy that waits with its peer: one record."""
MAX_BUFFERS = 1000
"""Buffers of one send; the kernel takes 1024 (IOV_MAX)."""


class PeerStalled(OSError):
    """The peer took nothing for `STALL_S` seconds."""


class Sender:
    """Sends responses on one socket; `total` counts what the kernel took of the present one, head included."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
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
            wait_writable(self._sock)
            return 0
        self.total += sent
        return sent

    def _send_secure(self, pending: bytes, piece: Piece | None, offset: int, end: int) -> int:
        data = pending
        if piece is not None:
            if isinstance(piece.source, Held):
                piece.source.put_aside()  # a send waits, with no word of it before
            data += b"".join(piece.source.read(offset, min(SECURE_PIECE_BYTES, end - offset)))
        before = self._sock.gettimeout()
        self._sock.settimeout(STALL_S)
        self._sock.sendall(data)
        self._sock.settimeout(before)
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


def wait_writable(sock: socket.socket) -> None:
    """Wait until the socket takes something.

    Raises: PeerStalled after `STALL_S` seconds.
    """
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(STALL_S * 1000):
        raise PeerStalled(f"the peer took nothing for {STALL_S:.0f} s")
