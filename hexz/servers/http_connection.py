"""One HTTP/1.x connection: read a head, ask the application, send its response, again.

An `Application` is a function from `Request` to `Response`; it does no I/O on the
socket.  To add one: write a class with a `respond` method, build responses with
the functions of `hexz.protocol.http.responses` (`represent` does ranges and
conditions for anything with a `read(offset, length)`), raise `RequestError` or a
`HexzError` to refuse, read a request's body with `request.body.read`, and give
it to `HttpService`.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import struct
import time
from typing import NamedTuple, Protocol

from hexz.access import AccessEntry, AccessLog
from hexz.errors import HexzError
from hexz.protocol.http.dates import format_date
from hexz.protocol.http.head import (
    MAX_HEAD,
    MAX_TARGET,
    Framing,
    RequestError,
    RequestHead,
    framing_of,
    parse_head,
)
from hexz.protocol.http.responses import Response, error_response, pack_head
from hexz.servers.base import Connection
from hexz.servers.sending import Sender

__all__ = ["Application", "Body", "HttpConnection", "Request"]

log = logging.getLogger("hexz.http")

HEAD_S = 20.0
"""How long a request's head may take from its first byte to its last."""
IDLE_S = 75.0
"""How long a connection may wait between requests."""
BODY_S = 30.0
"""How long each receive of a request's body may take."""
MAX_DRAINED = 256 << 10
"""An unread request body of up to so many bytes is read away; beyond it the connection is closed."""
MAX_CHUNK_LINE = 256
RECEIVE = 16 << 10
LINGER_S = 1.0
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\x20-\x7e\t]*)?")


class Body:
    """A request's body; read it with `read`, what is left is drained afterwards.

    `length` is the announced length in bytes, None when it comes in chunks.
    """

    def __init__(self, connection: HttpConnection, framing: Framing, expects: bool) -> None:
        self.length: int | None = None if framing.chunked else framing.length
        self._connection = connection
        self._chunked = framing.chunked
        self._left = framing.length  # of the body, or of the chunk
        self._expects = expects
        self.finished = not framing.chunked and not framing.length

    @property
    def untouched(self) -> bool:
        """The client still waits for ``100 Continue``: it has not begun to send the body."""
        return self._expects and not self.finished

    def read(self, most: int) -> bytes:
        """Up to `most` bytes; empty at the end.

        Raises: RequestError when the chunks are malformed or the body ends early.
        """
        if self._expects:
            self._expects = False
            self._connection.send_continue()
        if self._chunked and not self._left and not self.finished:
            self._next_chunk()
        if self.finished:
            return b""
        data = self._connection.receive_some(min(most, self._left))
        if not data:
            raise RequestError(400, "the request's body ended early")
        self._left -= len(data)
        if self._chunked and not self._left:
            if self._connection.receive_line(2) != b"":
                raise RequestError(400, "a chunk does not end where it should")
        elif not self._left:
            self.finished = True
        return data

    def _next_chunk(self) -> None:
        size = _CHUNK_SIZE.fullmatch(self._connection.receive_line(MAX_CHUNK_LINE))
        if size is None:
            raise RequestError(400, "a chunk's size is malformed")
        self._left = int(size[1], 16)
        if not self._left:
            for _ in range(100):
                if not self._connection.receive_line(MAX_HEAD):
                    self.finished = True
                    return
            raise RequestError(400, "too many trailers")

    def drain(self) -> bool:
        """Read away what is left, if that is little; False when the connection has to be closed instead."""
        drained = 0
        while not self.finished and drained <= MAX_DRAINED:
            if self._expects or (not self._chunked and self._left > MAX_DRAINED):
                return False
            drained += len(self.read(RECEIVE))
        return self.finished


class Request(NamedTuple):
    """What an application gets: the head, the body, and who asks (`token` is the name of the token used)."""

    head: RequestHead
    body: Body
    peer: str
    secure: bool
    token: str | None


class Application(Protocol):
    """Answers requests."""

    def respond(self, request: Request) -> Response:
        """The response.  Raises: RequestError, HexzError, OSError to refuse."""


class Policy(Protocol):
    """Who may ask: consulted before the application."""

    def admit(self, head: RequestHead, peer: str) -> tuple[str | None, Response | None]:
        """The token's name if one was used, and a refusal if there is one."""

    def sent(self, peer: str, size: int) -> None:
        """`size` body bytes went to `peer`."""


class HttpConnection:
    """The loop over one connection's requests; the connection's thread runs it."""

    def __init__(
        self,
        connection: Connection,
        application: Application,
        policy: Policy,
        access_log: AccessLog | None,
        extra_headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """`extra_headers` go into every response."""
        self._connection = connection
        self._sock = connection.sock
        self._secure = isinstance(connection.sock, ssl.SSLSocket)
        self._application = application
        self._policy = policy
        self._access_log = access_log
        self._extra = extra_headers
        self._sender = Sender(connection.sock)
        self._buffer = b""
        self._answered = False

    def run(self) -> None:
        """Serve until the peer or the drain ends the connection."""
        self._limit_receive(HEAD_S)
        try:
            while self._serve_one():
                if self._connection.draining:
                    break
        except RequestError as error:
            self._refuse(error)
        self._linger()

    def _limit_receive(self, seconds: float) -> None:
        # A socket timeout of Python's would add a poll to every call and make sends wait too; the kernel's does not.
        if self._secure:
            self._sock.settimeout(seconds)
        else:
            self._sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            )

    # Receiving

    def _receive_head(self) -> bytes | None:
        """A request's head without its last empty line; None when the peer has gone or was idle too long.

        Raises: RequestError (408, 414, 431).
        """
        began = time.monotonic()
        while True:
            if self._buffer[:2] == b"\r\n":  # an empty line before a request is skipped (RFC 9112 section 2.2)
                self._buffer = self._buffer[2:]
            end = self._buffer.find(b"\r\n\r\n")
            if 0 <= end <= MAX_HEAD:
                head = self._buffer[:end]
                self._buffer = self._buffer[end + 4 :]
                return head
            if len(self._buffer) > MAX_HEAD:
                first = self._buffer.find(b"\r\n")
                if first < 0 or first > MAX_TARGET + 64:
                    raise RequestError(414, f"the request target has more than {MAX_TARGET} bytes")
                raise RequestError(431, f"the request's head has more than {MAX_HEAD} bytes")
            started = bool(self._buffer)
            waited = time.monotonic() - began
            if waited > (HEAD_S if started else IDLE_S):
                if started:
                    raise RequestError(408, f"the request's head took more than {HEAD_S:.0f} s")
                return None
            try:
                data = self._sock.recv(RECEIVE)
            except (BlockingIOError, TimeoutError, socket.timeout):
                continue
            if not data:
                return None
            if not started:
                began = time.monotonic()
            self._buffer += data

    def receive_some(self, most: int) -> bytes:
        """Up to `most` bytes of a body; empty when the peer stopped sending."""
        if not self._buffer:
            self._limit_receive(BODY_S)
            try:
                self._buffer = self._sock.recv(RECEIVE)
            except (BlockingIOError, TimeoutError, socket.timeout):
                raise RequestError(408, f"the request's body paused for more than {BODY_S:.0f} s") from None
            finally:
                self._limit_receive(HEAD_S)
        data, self._buffer = self._buffer[:most], self._buffer[most:]
        return data

    def receive_line(self, most: int) -> bytes:
        """A line of up to `most` bytes, without its end.  Raises: RequestError."""
        line = b""
        while not line.endswith(b"\r\n"):
            if len(line) >= most + 2:
                raise RequestError(400, "a line of the chunked body is too long")
            more = self.receive_some(1)
            if not more:
                raise RequestError(400, "the request's body ended early")
            line += more
        return line[:-2]

    def send_continue(self) -> None:
        """Tell the client to go on with its body (RFC 9110 section 10.1.1)."""
        self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    # Answering

    def _serve_one(self) -> bool:
        """Serve one request; False when the connection is to be closed."""
        raw = self._receive_head()
        if raw is None:
            return False
        began = time.monotonic()
        self._answered = False
        head = parse_head(raw)
        framing = framing_of(head)
        expects = self._expects_continue(head)
        body = Body(self, framing, expects)
        token, response = self._policy.admit(head, self._connection.peer)
        if response is None:
            response = self._ask(Request(head, body, self._connection.peer, self._secure, token))
        keep_alive = head.keep_alive and not response.close and not self._connection.draining
        if not body.finished:
            keep_alive = keep_alive and self._drain(body)
        sent = 0
        try:
            response, sent = self._send(head, response, keep_alive)
        finally:
            if response.done is not None:
                response.done()
            self._policy.sent(self._connection.peer, sent)
            if self._access_log is not None:
                duration = time.monotonic() - began
                self._access_log.write(AccessEntry(self._connection.peer, token, head, response.status, sent, duration))
        return keep_alive

    @staticmethod
    def _expects_continue(head: RequestHead) -> bool:
        expect = head.headers.get("expect")
        if expect is None or not head.minor:
            return False
        if expect.lower() != "100-continue":
            raise RequestError(417, "the only expectation known here is 100-continue")
        return True

    def _ask(self, request: Request) -> Response:
        try:
            return self._application.respond(request)
        except RequestError as error:
            return error_response(error.status, str(error))
        except HexzError as error:
            if error.http_status >= 500:
                log.warning("%s: %s: %s", request.peer, request.head.target, error)
            return error_response(error.http_status, str(error))
        except OSError as error:
            log.warning("%s: %s: %s", request.peer, request.head.target, error)
            return error_response(500, "the system failed")

    @staticmethod
    def _drain(body: Body) -> bool:
        try:
            return body.drain()
        except (RequestError, OSError):
            return False

    def _send(self, head: RequestHead, response: Response, keep_alive: bool) -> tuple[Response, int]:
        """Send the response; the one that was sent, which is an error if nothing of the body could be read."""
        packed = pack_head(response, keep_alive, current_date(), self._headers(head, keep_alive))
        bodiless = head.method == "HEAD" or response.status in (204, 304)
        self._answered = True
        try:
            return response, self._sender.send(packed, () if bodiless else response.body)
        except HexzError as error:
            log.warning("%s: %s: %s", self._connection.peer, head.target, error)
            if self._sender.total:
                raise ConnectionAbortedError("hanging up in the middle of a response") from error
            failed = error_response(error.http_status, str(error))._replace(done=response.done)
            packed = pack_head(failed, keep_alive, current_date(), self._headers(head, keep_alive))
            return failed, self._sender.send(packed, failed.body)

    def _headers(self, head: RequestHead, keep_alive: bool) -> tuple[tuple[str, str], ...]:
        if keep_alive and not head.minor:
            return (*self._extra, ("Connection", "keep-alive"))
        return self._extra

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that could not be understood; where it ends is unknown, so the connection ends here."""
        if self._answered:
            return
        log.info("%s: %d: %s", self._connection.peer, error.status, error)
        response = error_response(error.status, str(error))
        self._sender.send(pack_head(response, False, current_date(), self._extra), response.body)

    def _linger(self) -> None:
        """Let the peer read the last response before a reset can overtake it (RFC 9112 section 9.6)."""
        if self._secure:
            return
        self._sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LINGER_S
        self._limit_receive(LINGER_S)
        while time.monotonic() < deadline and self._sock.recv(RECEIVE):
            continue


_date = (0, "")


def current_date() -> str:
    """The present time as an HTTP date, formatted once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, format_date(now))
    return _date[1]
