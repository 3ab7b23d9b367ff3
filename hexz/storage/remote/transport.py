"""Kept connections to one server, and one exchange on them: a GET, the head of its answer, its body.

Written on sockets and not on ``http.client``: that gives each ``recv`` a time-out of its own, so that a server which
sends a byte now and then is waited for without end, and it takes four times as long.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from hexz.protocol.http.chunks import Chunks
from hexz.protocol.http.errors import ReplyError, RequestError
from hexz.protocol.http.reply import MAX_REPLY_HEAD, ReplyHead, is_part, parse_reply_head
from hexz.storage.remote.errors import Hidden, Stale
from hexz.storage.remote.places import OriginName, is_inside

__all__ = ["Pool", "Reply", "ServerConnection", "clock"]

CONNECT_S = 5.0
STALL_S = 5.0
"""How long a server may say nothing, at the beginning of an answer or within it, before another connection is tried,
the first time."""
MAX_IDLE = 64
"""Connections kept of one server."""
IDLE_S = 60.0
"""After so long without use a connection is not trusted to be open any more."""
PIECE = 256 << 10
"""Most bytes received in one call, so that the deadline is looked at between."""
LONGEST_WHOLE = 4 << 20
"""Of an answer with the whole instead of a span, so much is received; a longer one is refused."""
LONGEST_TROUBLE = 16 << 10
"""So much of an answer that says what is wrong."""
TROUBLE_S = 1.0
"""How long to wait for more of such an answer."""
QUICKACK = getattr(socket, "TCP_QUICKACK", None)

clock = time.monotonic


class Reply(NamedTuple):
    """An answer: its head and its body, and when (`clock`) the head had come."""

    head: ReplyHead
    body: bytearray
    first: float


class ServerConnection:
    """One connection; used by one thread at a time."""

    def __init__(self, origin: OriginName, tls: ssl.SSLContext | None, deadline: float, public_only: bool) -> None:
        """Connect; with `public_only` to no address that lies inside (loopback, private, link-local).

        Raises: OSError, Hidden.
        """
        self.idle_since = clock()
        self.reusable = True
        """The last answer was read to its end, and another may follow."""
        self.fresh = True
        """No answer has come over it so far."""
        self._stall_s = STALL_S
        self._sock = _connect(origin, deadline, public_only)
        self._deadline = deadline
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._sock.settimeout(_remaining(deadline, CONNECT_S))
                self._sock = tls.wrap_socket(self._sock, server_hostname=origin.host)
        except BaseException:
            self._sock.close()
            raise

    def get(self, request: bytes, wanted: int, deadline: float, stall_s: float = STALL_S) -> Reply:
        """Send `request`, and receive an answer: a span has at most the bytes `wanted`.

        The server may say nothing for `stall_s` at a time.  Of other answers as much comes along as may tell what is
        wrong, or a short whole instead of the span.
        Raises: Stale, ReplyError, OSError (also for a deadline, seconds of `clock`, that passed).
        """
        self.reusable = False
        self._deadline = min(deadline, clock() + stall_s)  # for the head, which is short
        self._stall_s = stall_s
        try:
            self._quicken()
            self._sock.settimeout(_remaining(self._deadline, stall_s))
            self._sock.sendall(request)
            got = self._receive_some()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            if self.fresh:
                raise
            raise Stale from None
        self.fresh = False
        while True:
            end = got.find(b"\r\n\r\n")
            if end < 0 and len(got) <= MAX_REPLY_HEAD:
                more = self._receive_more()
                if not more:
                    raise ReplyError("the connection ended within its head")
                got += more
                continue
            if not 0 <= end <= MAX_REPLY_HEAD:
                raise ReplyError(f"its head has more than {MAX_REPLY_HEAD} bytes")
            head = parse_reply_head(bytes(got[:end]))
            if head.status >= 200:
                break
            del got[: end + 4]  # an interim answer (RFC 9110 section 15.2)
        first = clock()
        self._deadline = deadline
        body = self._body(head, got[end + 4 :], wanted)
        return Reply(head, body, first)

    def _receive_some(self) -> bytearray:
        got = bytearray(self._sock.recv(64 << 10))
        if not got:
            if not self.fresh:
                raise Stale
            raise ReplyError("the connection ended before an answer")
        return got

    def _receive_more(self) -> bytes:
        self._sock.settimeout(_remaining(self._deadline, self._stall_s))
        return self._sock.recv(64 << 10)

    def _body(self, head: ReplyHead, rest: bytearray, wanted: int) -> bytearray:
        length = head.length
        if head.status in (204, 304):
            length = 0  # whatever it says (RFC 9110 section 8.6)
        most = wanted if is_part(head) else LONGEST_WHOLE if head.status == 200 else LONGEST_TROUBLE
        if length is None or length > most:
            if is_part(head):
                said = "does not say how long it is" if length is None else f"has {length} bytes instead of {wanted}"
                raise ReplyError(f"the answer {said}")
            return rest if head.status == 200 else self._trouble(head, rest)
        if len(rest) > length:
            raise ReplyError("there is more than the answer's Content-Length")
        body = bytearray(length)
        body[: len(rest)] = rest
        at = len(rest)
        with memoryview(body) as view:
            while at < length:
                self._sock.settimeout(_remaining(self._deadline, self._stall_s))
                count = self._sock.recv_into(view[at : at + PIECE])
                if not count:
                    raise ReplyError(f"the connection ended after {at} of {length} bytes")
                at += count
                self._quicken()
        self.reusable = head.keeps_connection
        return body

    def _trouble(self, head: ReplyHead, body: bytearray) -> bytearray:
        """As much as comes soon of an answer that says what is wrong, and not how long it is or too much.

        Amazon's errors come in chunks.
        """
        chunks = Chunks() if head.headers.get("transfer-encoding", "").lower() == "chunked" else None
        plain = bytearray()
        try:
            while len(body) < LONGEST_TROUBLE:
                if chunks is not None:
                    part, taken = chunks.decode(bytes(body), LONGEST_TROUBLE)
                    plain += part
                    del body[:taken]
                    if chunks.finished or len(plain) >= LONGEST_TROUBLE:
                        break
                    if part:
                        continue
                self._sock.settimeout(_remaining(self._deadline, TROUBLE_S))
                more = self._sock.recv(LONGEST_TROUBLE)
                if not more:
                    break
                body += more
        except (OSError, RequestError):
            return plain or body
        return (body if chunks is None else plain)[:LONGEST_TROUBLE]

    def _quicken(self) -> None:
        # A store that sends head and body apart waits for the first one's ACK, which a kernel delays by 40 ms.
        if QUICKACK is not None:
            self._sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)

    def close(self) -> None:
        """Close it; idempotent."""
        self._sock.close()


class Pool:
    """The kept connections of one server."""

    def __init__(self, origin: OriginName, tls: Callable[[], ssl.SSLContext] | None) -> None:
        """`tls` gives how certificates are checked, for a server that has them."""
        self.origin = origin
        self._tls = tls
        self._lock = threading.Lock()  # guards what follows
        self._made = 0
        self._idle: deque[ServerConnection] = deque()
        self._closed = False

    def take(self, deadline: float, public_only: bool = False, kept: bool = True) -> ServerConnection:
        """A connection, a kept one if there is one and `kept` says so.

        Raises: OSError, Hidden.
        """
        now = clock()
        while kept:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()  # the one used last is the least likely to have been closed
            if now - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        with self._lock:
            self._made += 1
        return ServerConnection(self.origin, self._tls() if self._tls is not None else None, deadline, public_only)

    def prepare(self, count: int) -> int:
        """How many connections have to be made, by `add`, until there were so many; no two callers make the same."""
        with self._lock:
            lacking = max(0, count - self._made)
            self._made += lacking
        return lacking

    def add(self, deadline: float) -> None:
        """Make a connection that is used later: who needs it then does not wait for it.  Raises: OSError, Hidden."""
        connection = ServerConnection(self.origin, self._tls() if self._tls is not None else None, deadline, False)
        connection.fresh = False  # by the time it is used it may have been closed, as a kept one may
        with self._lock:
            closed = self._closed
            if not closed:
                self._idle.appendleft(connection)  # those that were used already are faster
        if closed:
            connection.close()

    def give(self, connection: ServerConnection) -> None:
        """Keep a connection whose answer was read to its end, or close it; close those that nobody wanted for long."""
        connection.idle_since = now = clock()
        out = []
        with self._lock:
            if connection.reusable and not self._closed:
                self._idle.append(connection)
            else:
                out.append(connection)
            # By now the server has closed them, too; those used last are taken first.
            while self._idle and (len(self._idle) > MAX_IDLE or now - self._idle[0].idle_since >= IDLE_S):
                out.append(self._idle.popleft())
        for old in out:
            old.close()

    def drop_idle(self) -> None:
        """Close what is kept, as when one of them turned out to be dead."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close what is kept, and keep nothing any more."""
        with self._lock:
            self._closed = True
        self.drop_idle()


def _remaining(deadline: float, most: float) -> float:
    left = deadline - clock()
    if left <= 0:
        raise TimeoutError("timed out")
    return min(left, most)


def _connect(origin: OriginName, deadline: float, public_only: bool) -> socket.socket:
    """A connected socket to the first of the host's addresses that answers.  Raises: OSError, Hidden."""
    trouble: Exception = OSError("the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM):
        if public_only and is_inside(str(address[0])):
            trouble = Hidden(f"{origin.host} is at {address[0]}, which is not followed from elsewhere")
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_remaining(deadline, CONNECT_S))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            trouble = error
    raise trouble
