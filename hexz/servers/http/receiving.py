"""What a client sends, within bounds of size and time: heads, bodies by length and in chunks."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable

from hexz.protocol.http.chunks import Chunks
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import MAX_HEAD, MAX_TARGET, Framing
from hexz.servers.connection import Connection

__all__ = ["Body", "Receiver"]

log = logging.getLogger("hexz.http")

HEAD_S = 20.0
"""How long a request's head may take from its first byte to its last."""
FIRST_HEAD_S = 20.0
"""How long a new connection may say nothing: whoever takes this for another protocol's port should not wait in vain."""
IDLE_S = 75.0
"""How long a connection may wait between requests."""
BRISK_S = 1.0
"""How long a wait lasts before the clock and the summons of a successor are looked at; idle ones then use a poll."""
LAST_REQUEST_S = 1.0
"""While draining: how long a request may still come on a kept connection, because it was sent before its client knew.

RFC 9112 section 9.6: it is answered, and the answer says that it is the last.
"""
SPARE_HEAD_S = 1.0
"""How long the head of a connection that has no place may take in all."""
BODY_S = 20.0
"""How long a request's body may keep the server waiting, beyond the time that `SLOWEST_BODY` allows for its bytes."""
SLOWEST_BODY = 4096
"""A body may come this slowly, bytes a second, for as long as it takes."""
MAX_DRAINED = 256 << 10
"""An unread request body of up to so many bytes is read away; beyond it the connection is closed."""
RECEIVE = 16 << 10
_TIMED_OUT = (BlockingIOError, TimeoutError, socket.timeout)


class Receiver:
    """The receiving side of a connection: one buffer, and a limit on every wait."""

    def __init__(self, connection: Connection, patient: bool = False, last_request_s: float | None = None) -> None:
        """A `patient` one waits for the next request as long as it takes; while draining, `last_request_s` seconds."""
        self._connection = connection
        self._patient = patient and not connection.spare
        self._last_request_s = LAST_REQUEST_S if last_request_s is None else last_request_s
        self._sock = sock = connection.sock
        self._secure = isinstance(sock, ssl.SSLSocket)
        self.buffer = b""
        """Received and not yet used."""
        self.look: Callable[[], None] | None = None
        """Asked while a body is waited for; what it raises ends that."""
        self._body_bytes = 0
        self._body_waited = 0.0
        self.limit_waits(BRISK_S)

    def limit_waits(self, seconds: float) -> None:
        """Let every receive wait so long at most."""
        # A socket timeout of Python's would add a poll to every call and make sends wait too; the kernel's does not.
        if self._secure:
            self._sock.settimeout(seconds)
        else:
            limit = struct.pack("ll", int(seconds), max(int(seconds % 1 * 1e6), 1))  # all zeros would mean for ever
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def head(self) -> bytes | None:
        """A request's head without its last empty line; None when there will be no more.

        That is when the peer has gone or was idle too long, when a successor is to read the next request, or when
        the daemon stops and no request was on the way any more.
        Raises: RequestError (400, 408, 414, 431).
        """
        self._body_bytes = 0
        self._body_waited = 0.0
        buffer = self.buffer
        if not buffer:  # the usual case: nothing is pipelined, and the whole head comes at once
            began = time.monotonic()
            try:
                buffer = self._sock.recv(RECEIVE)
            except _TIMED_OUT:
                return self._head_in_parts(b"", began)
            if not buffer:
                return None
        end = buffer.find(b"\r\n\r\n")
        if end > 0 and buffer[0] != 13:
            self.buffer = buffer[end + 4 :]
            if end > MAX_HEAD:
                raise _too_large(buffer)
            return buffer[:end]
        return self._head_in_parts(buffer, time.monotonic())

    def _longest_silence(self) -> float:
        if self._connection.spare:
            return SPARE_HEAD_S
        fresh = not (self._connection.spoken or self._connection.adopted is not None)
        return FIRST_HEAD_S if fresh else IDLE_S

    def _note_silence(self) -> None:
        if not self._connection.spoken and not self._connection.spare:
            log.info(
                "%s: no request within %g s on %s: a client of NBD would wait like that, for its server to speak first",
                self._connection.peer, FIRST_HEAD_S, self._connection.listener.url,
            )  # fmt: skip

    def _head_in_parts(self, buffer: bytes, began: float) -> bytes | None:
        # The wait for the first byte began when `began` says; that for the rest begins with the first byte.
        while True:
            if buffer[:2] == b"\r\n":  # an empty line before a request is skipped (RFC 9112 section 2.2)
                buffer = buffer[2:]
            end = buffer.find(b"\r\n\r\n")
            if 0 <= end <= MAX_HEAD:
                self.buffer = buffer[end + 4 :]
                return buffer[:end]
            if len(buffer) > MAX_HEAD:
                raise _too_large(buffer)
            line = buffer.find(b"\n")
            if line == 0 or (line > 0 and buffer[line - 1] != 13):
                raise RequestError(400, "lines end with CR LF")  # its empty line would never come
            started = bool(buffer)
            waited = time.monotonic() - began
            most = SPARE_HEAD_S if self._connection.spare else HEAD_S
            if started and waited > most:
                raise RequestError(408, f"the request's head took more than {most:g} s")
            if self._connection.summoned:
                self.buffer = buffer
                return None
            if not started and self._connection.draining:
                left = self._connection.last_call(self._last_request_s)
                if left <= 0:
                    return None
                if not self._connection.await_input(left):
                    continue
            elif not started and (waited > self._longest_silence() and not self._patient):
                self._note_silence()
                return None
            elif not started and waited >= BRISK_S:
                self._connection.await_input(None if self._patient else self._longest_silence() - waited)
            try:
                data = self._sock.recv(RECEIVE)
            except _TIMED_OUT:
                continue
            if not data:
                return None
            if not started:
                began = time.monotonic()
            buffer += data

    @property
    def pipelined(self) -> bool:
        """The whole head of another request has come."""
        return b"\r\n\r\n" in self.buffer

    def some(self, most: int) -> bytes:
        """Up to `most` bytes of a body; empty when the peer stopped sending.

        Raises: RequestError (408) when the peer is too slow.
        """
        if not self.buffer:
            self.fill(most)
        data, self.buffer = self.buffer[:most], self.buffer[most:]
        return data

    def fill(self, most: int) -> bool:
        """Receive more of a body behind what is in the buffer; False when the peer stopped sending.

        Raises: RequestError (408) when the peer is too slow.
        """
        began = time.monotonic()
        left = BODY_S + self._body_bytes / SLOWEST_BODY - self._body_waited
        try:
            data = self._receive_body(max(RECEIVE, most), began + left)
        except _TIMED_OUT:
            raise RequestError(408, f"the request's body kept the server waiting more than {BODY_S:g} s") from None
        finally:
            self.limit_waits(BRISK_S)
        self._body_waited += time.monotonic() - began
        self._body_bytes += len(data)
        self.buffer += data
        return bool(data)

    def _receive_body(self, most: int, deadline: float) -> bytes:
        """Receive, and `look` meanwhile.  Raises: one of `_TIMED_OUT`, what `look` raises."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self.look is None:
                self.limit_waits(left)
                return self._sock.recv(most)
            self.look()
            self.limit_waits(min(left, BRISK_S))
            with contextlib.suppress(*_TIMED_OUT):
                return self._sock.recv(most)


def _too_large(buffer: bytes) -> RequestError:
    first = buffer.find(b"\r\n")
    if first < 0 or first > MAX_TARGET + 64:
        return RequestError(414, f"the request target has more than {MAX_TARGET} bytes")
    return RequestError(431, f"the request's head has more than {MAX_HEAD} bytes")


class Body:
    """A request's body; read it with `read`, what is left is drained afterwards.

    `length` is the announced length in bytes, None when it comes in chunks; `taken` is what was received and used of
    it, whatever chunks cost besides included.
    """

    def __init__(self, receiver: Receiver, framing: Framing, go_on: Callable[[], None] | None = None) -> None:
        """`go_on` tells a client that waits for it to send its body (RFC 9110 section 10.1.1)."""
        self.length: int | None = None if framing.chunked else framing.length
        self.taken = 0
        self._receiver = receiver
        receiver.look = None
        self._chunks = Chunks() if framing.chunked else None
        self._left = framing.length
        self._go_on = go_on
        self._broken = False
        self.finished = not framing.chunked and not framing.length

    @property
    def untouched(self) -> bool:
        """The client still waits for ``100 Continue``: it has not begun to send the body."""
        return self._go_on is not None and not self.finished

    def ask(self, look: Callable[[], None]) -> None:
        """Call `look` whenever the client is waited for, and every second meanwhile; a RequestError ends the body."""
        self._receiver.look = look

    def read(self, most: int) -> bytes:
        """Up to `most` bytes; empty at the end.

        Raises: RequestError when the chunks are malformed, or the body ends early or is too slow.
        """
        if self._broken:
            raise RequestError(400, "the request's body is malformed")
        try:
            return self._read(most)
        except RequestError:
            self._broken = True  # where the next request begins is no longer known
            raise

    def _read(self, most: int) -> bytes:
        go_on, self._go_on = self._go_on, None
        if go_on is not None:
            go_on()
        if self.finished:
            return b""
        if self._chunks is not None:
            return self._read_chunks(self._chunks, most)
        data = self._receiver.some(min(most, self._left))
        if not data:
            raise RequestError(400, "the request's body ended early")
        self.taken += len(data)
        self._left -= len(data)
        self.finished = not self._left
        return data

    def _read_chunks(self, chunks: Chunks, most: int) -> bytes:
        receiver = self._receiver
        while True:
            data, used = chunks.decode(receiver.buffer, most)
            receiver.buffer = receiver.buffer[used:]
            self.taken += used
            self.finished = chunks.finished
            if data or self.finished:
                return data
            if not receiver.fill(most):
                raise RequestError(400, "the request's body ended early")

    def drain(self) -> bool:
        """Read away what is left, if that is little; False when the connection has to be closed instead."""
        most = self.taken + MAX_DRAINED
        while not self.finished and self.taken <= most:
            if self._go_on is not None or self._left > MAX_DRAINED:
                return False
            try:
                self.read(RECEIVE)
            except (RequestError, OSError):
                return False
        return self.finished
