"""A proxy between a reader and a real origin: it counts what is asked, and does to it what faults say.

It speaks HTTP/1.1 to both sides, a thread a connection, and has each answer whole in memory before a byte of it goes
on, so that a fault can do anything to it. What faults there are: `tests/remote/faults.py`.

    with Proxy(store.base) as proxy:
        proxy.use("truncated", every=3)        # until proxy.clear()
        read(proxy.url("snap.hxz"))
        assert proxy.counts.requests < 20
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from tests.remote.faults import FAULTS, Fault
from tests.waiting import until

Span = tuple[int, int]
PIECE_BYTES = 64 << 10
MAX_REQUEST_BYTES = 64 << 20
BACKLOG = 2048
ORIGIN_S = 60.0
LOOK_S = 0.02
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection", "upgrade", "te"}


class Ended(Exception):
    """Nothing more goes over this connection."""


class Asked(NamedTuple):
    """A request as it came; names of headers in lower case."""

    number: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def range(self) -> tuple[int | None, int | None] | None:
        """First byte and the one after the last, None where open; (None, n) is a suffix of n bytes."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", "").strip())
        if found is None or found[0] == "bytes=-":
            return None
        first, last = (int(part) if part else None for part in found.groups())
        if first is None:
            return None, last
        return first, None if last is None else last + 1


@dataclass
class Counts:
    """What went through since the last `Proxy.forget`; read it when nothing is in flight."""

    connections: int = 0
    open: int = 0
    most_open: int = 0
    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    body_bytes: int = 0
    """Bytes of answers' bodies that were given to the kernel."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the answers as sent."""
    asked: list[Asked] = field(default_factory=list)
    spans: list[tuple[str, Span]] = field(default_factory=list)
    """Path without query, and the bytes that the origin gave for it: of a range those of Content-Range, else all."""

    def of(self, path: str | None = None) -> list[Span]:
        """The spans of one path, in order of answering."""
        return [span for one, span in self.spans if path is None or one == path]

    def fetched_bytes(self, path: str | None = None) -> int:
        """Bytes that the origin gave, each time counted."""
        return sum(stop - first for first, stop in self.of(path))

    def distinct_bytes(self, path: str | None = None) -> int:
        """Bytes that the origin gave, counted once each."""
        total = reached = 0
        spans = sorted((one, span) for one, span in self.spans if path is None or one == path)
        before = ""
        for one, (first, stop) in spans:
            reached = reached if one == before else 0
            total += max(0, stop - max(first, reached))
            reached, before = max(reached, stop), one
        return total

    def times(self, path: str, first: int, length: int = 1) -> int:
        """How many answers had any of these bytes."""
        return sum(start < first + length and first < stop for start, stop in self.of(path))


class Rule:
    """A fault and which requests, or connections, it strikes."""

    def __init__(
        self, fault: Fault, every: int = 1, skip: int = 0, times: int | None = None,
        when: Callable[[Asked], bool] | None = None,
    ) -> None:  # fmt: skip
        """After `skip` of those that `when` holds for, every `every`-th, at most `times` in all."""
        self.fault = fault
        self.every, self.skip, self.times, self.when = every, skip, times, when
        self.seen = self.struck = 0

    def strikes(self, asked: Asked | None) -> bool:
        """Whether it strikes this one; counts it."""
        if asked is not None and self.when is not None and not self.when(asked):
            return False
        index = self.seen - self.skip
        self.seen += 1
        if index < 0 or (index + 1) % self.every or (self.times is not None and self.struck >= self.times):
            return False
        self.struck += 1
        return True


def _ready(sock: socket.socket, event: int, seconds: float) -> bool:
    """Whether it comes to that within so many seconds; `select.select` knows no large descriptors."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(seconds * 1000))


class Connection:
    """A client that is connected, and the connection to the origin that is its own."""

    def __init__(self, sock: socket.socket, origin: tuple[str, int]) -> None:
        self.sock = sock
        self.origin = http.client.HTTPConnection(*origin, timeout=ORIGIN_S)
        self.thread: threading.Thread | None = None
        self.over = threading.Event()
        self.turns = 0
        """Requests that came over it."""
        self.idle_s: float | None = None
        """After how long without a request it is closed."""

    def end(self) -> None:
        """Let its thread end it with a reset, whatever that waits for; from any thread."""
        self.over.set()
        self.linger_not()
        # The end of what is read wakes who reads, and tells the peer nothing. A TLS socket's own method would.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def linger_not(self) -> None:
        """Closing it sends a reset."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def wait(self, seconds: float) -> None:
        """Pause.  Raises: Ended when the connection is to end."""
        if self.over.wait(seconds):
            raise Ended

    def wait_left(self) -> None:
        """Return when the client has closed it.  Raises: Ended."""
        while not _ready(self.sock, select.POLLRDHUP, LOOK_S):
            self.wait(0)

    def send(self, data: bytes) -> None:
        """Give all of it to the kernel.  Raises: Ended, OSError."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.sendall(data)
            return
        rest = memoryview(data)
        while rest:
            if self.over.is_set():
                raise Ended
            if _ready(self.sock, select.POLLOUT, LOOK_S):
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self.sock.send(rest, socket.MSG_DONTWAIT) :]


class Turn:
    """One request and its answer, which faults change before it is sent; or a connection that was just made."""

    def __init__(self, proxy: Proxy, connection: Connection, asked: Asked | None) -> None:
        self._proxy = proxy
        self.connection = connection
        self._asked = asked
        self.status = 0
        """0 as long as nobody has answered."""
        self.reason = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.interim = b""
        """What is sent before the head."""
        self.raw_head: bytes | None = None
        """Sent in the place of the head."""
        self.framed = True
        """Whether Content-Length is made to fit the body."""
        self.delay_s = 0.0
        """Before the answer goes."""
        self.piece = PIECE_BYTES
        self.pause_s = 0.0
        """After each piece of what is sent."""
        self.head_stop: int | None = None
        """How many bytes of the head go before `then` comes; None: all."""
        self.body_stop: int | None = None
        """How many bytes of the body go before `then` comes; None: all."""
        self.then: Callable[[Turn], object] | None = None
        """What comes after the answer, or after what goes of it; nothing: the next request."""
        self.more: Callable[[], Iterator[bytes]] | None = None
        """What is sent after the body."""
        self.sent_bytes = 0
        """Of the body."""

    @property
    def asked(self) -> Asked:
        """The request.  Raises: AssertionError for a connection."""
        assert self._asked is not None
        return self._asked

    @property
    def is_head(self) -> bool:
        """Whether the answer has no body whatever its head says."""
        return self.asked.method == "HEAD"

    @property
    def root(self) -> str:
        """The proxy's URL, without a path."""
        return self._proxy.root

    @property
    def origin(self) -> str:
        """The origin's URL, without a path."""
        return "http://{}:{}".format(*self._proxy.origin)

    def header(self, name: str) -> str | None:
        """A field of the answer."""
        return next((value for one, value in self.headers if one.lower() == name.lower()), None)

    def set(self, name: str, value: str | None) -> None:
        """Change, add or (None) take away a field of the answer."""
        at = next((n for n, (one, _) in enumerate(self.headers) if one.lower() == name.lower()), len(self.headers))
        self.headers = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        if value is not None:
            self.headers.insert(at, (name, value))

    @property
    def span(self) -> tuple[int, int, int] | None:
        """What Content-Range says: first byte, the one after the last, total; None where it says nothing."""
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.header("content-range") or "")
        return (int(found[1]), int(found[2]) + 1, int(found[3])) if found and self.status == 206 else None

    @span.setter
    def span(self, span: tuple[int, int, int]) -> None:
        self.set("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{span[2]}")

    def reply(self, status: int, body: bytes = b"", **fields: str) -> None:
        """Answer in the origin's place; `content_type="x"` is Content-Type."""
        self.status, self.reason, self.body = status, "", body
        self.headers = [(name.replace("_", "-").title(), value) for name, value in fields.items()]

    def fetch(self, **changed: str | None) -> None:
        """Ask the origin, with headers changed or (None) left out, and take its answer; `if_match=None` is If-Match."""
        self._proxy.ask_origin(self, {name.replace("_", "-"): value for name, value in changed.items()})

    # What may come in the place of the answer, or after it

    def hang(self) -> None:
        """Say nothing more until the client gives up."""
        self.connection.wait_left()
        raise Ended

    def reset(self) -> None:
        """End the connection with a reset."""
        self.connection.linger_not()
        raise Ended

    def close(self) -> None:
        """End the connection as if all had been said."""
        raise Ended

    # Sending

    def _send(self, data: bytes) -> None:
        for start in range(0, len(data), self.piece):
            self._proxy.wait_thawed(self.connection)
            self.connection.send(data[start : start + self.piece])
            if self.pause_s:
                self.connection.wait(self.pause_s)

    def _head(self, length: int) -> bytes:
        if self.raw_head is not None:
            return self.raw_head
        if self.framed and not self.is_head:
            self.set("Content-Length", str(length))
        reason = self.reason or http.client.responses.get(self.status, "Odd")
        lines = [f"HTTP/1.1 {self.status} {reason}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def deliver(self) -> None:
        """Send the answer.  Raises: Ended, OSError."""
        body = b"" if self.is_head or self.status in (204, 304) else self.body
        head = self.interim + self._head(len(body))
        if self.head_stop is not None:
            self._send(head[: self.head_stop])
        else:
            kept = body[: self.body_stop]
            self._send(head + kept)
            self.sent_bytes = len(kept)
            for data in self.more() if self.more is not None and not self.is_head else ():
                self._send(data)
                self.sent_bytes += len(data)
        if self.then is not None:
            self.then(self)


class Proxy:
    """The proxy; a context manager. `base` is its URL in the place of the origin's."""

    def __init__(self, origin: str, tls: ssl.SSLContext | None = None) -> None:
        """`origin` is a URL, whose path `base` has too; with `tls` clients come over TLS."""
        parts = urlsplit(origin)
        assert parts.hostname and parts.scheme == "http"
        self.origin = (parts.hostname, parts.port or 80)
        self._tls = tls
        self._lock = threading.Lock()
        """Of rules, connections and counts."""
        self._rules: list[Rule] = []
        self._connections: set[Connection] = set()
        self._thawed = threading.Event()
        self._thawed.set()
        self.counts = Counts()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self.root = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        """Its URL without a path: the endpoint of an S3 store behind it."""
        self.base = f"{self.root}{parts.path.rstrip('/')}"
        self._accepting = self._start_accepting()

    def url(self, name: str) -> str:
        """Where a snapshot is, seen through the proxy."""
        return f"{self.base}/{quote(name)}"

    # What goes wrong

    def use(
        self, fault: str | Fault, every: int = 1, skip: int = 0, times: int | None = None,
        when: Callable[[Asked], bool] | None = None,
    ) -> Rule:  # fmt: skip
        """Let a fault strike, one of the table by name or any other; those there are already go on."""
        rule = Rule(FAULTS[fault] if isinstance(fault, str) else fault, every, skip, times, when)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """No faults any more, and no freeze; what was struck already goes on as it is."""
        with self._lock:
            self._rules.clear()
        self._thawed.set()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            for connection in self._connections:
                connection.end()

    def freeze(self) -> None:
        """Connections are made and kept, and nobody says anything more, until `thaw`."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on where `freeze` left off."""
        self._thawed.set()

    def wait_thawed(self, connection: Connection) -> None:
        """Return when nothing is frozen.  Raises: Ended, also when the client has left."""
        while not self._thawed.wait(LOOK_S):
            connection.wait(0)
            if _ready(connection.sock, select.POLLRDHUP, 0):
                raise Ended

    def down(self) -> None:
        """Be gone: connections are reset, and new ones refused, until `up`."""
        self._stop_accepting()
        # Bound and not listening, it refuses, and nobody else gets the port.
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self.cut()

    def up(self) -> None:
        """Be there again, on the same port."""
        self._listener.listen(BACKLOG)
        self._accepting = self._start_accepting()

    # What was asked

    def forget(self) -> Counts:
        """Count from nothing again.  Returns what was counted until now."""
        with self._lock:
            before, self.counts = self.counts, Counts()
            self.counts.open = self.counts.most_open = before.open
            self.counts.in_flight = self.counts.most_in_flight = before.in_flight
        return before

    def quiet(self) -> None:
        """Return once nobody waits for an answer."""
        until(lambda: self.counts.in_flight == 0)

    # How it runs

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_accepting()
        self.cut()
        with self._lock:
            threads = [connection.thread for connection in self._connections]
        for thread in threads:
            if thread is not None:
                thread.join()

    def _start_accepting(self) -> threading.Thread:
        thread = threading.Thread(target=self._accept, args=(self._listener,), name="proxy accepts")
        thread.start()
        return thread

    def _stop_accepting(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self.origin)
            connection.thread = threading.Thread(target=self._serve, args=(connection,), name="proxy serves")
            with self._lock:
                self._connections.add(connection)
                self.counts.connections += 1
                self.counts.open += 1
                self.counts.most_open = max(self.counts.most_open, self.counts.open)
            connection.thread.start()

    def _struck(self, stage: str, asked: Asked | None) -> list[Fault]:
        with self._lock:
            return [rule.fault for rule in self._rules if rule.fault.stage == stage and rule.strikes(asked)]

    def _serve(self, connection: Connection) -> None:
        try:
            for fault in self._struck("connect", None):
                fault.act(Turn(self, connection, None))
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(connection.sock, server_side=True)
            rest = b""
            while True:
                idle = connection.idle_s
                if not rest and idle is not None and not _ready(connection.sock, select.POLLIN, idle):
                    return
                asked, rest = self._receive(connection.sock, rest)
                connection.turns += 1
                self._answer(Turn(self, connection, asked))
                if asked.headers.get("connection", "").lower() == "close":
                    return
        except (Ended, EOFError, OSError):
            return
        finally:
            connection.origin.close()
            with self._lock:
                self._connections.discard(connection)
                self.counts.open -= 1
                connection.sock.close()

    def _receive(self, sock: socket.socket, rest: bytes) -> tuple[Asked, bytes]:
        def more() -> bytes:
            data = sock.recv(PIECE_BYTES)
            if not data or len(rest) > MAX_REQUEST_BYTES:
                raise EOFError
            return data

        while b"\r\n\r\n" not in rest:
            rest += more()
        head, _, rest = rest.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}
        if headers.pop("expect", ""):
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", "0"))
        while len(rest) < length:
            rest += more()
        with self._lock:
            counts = self.counts
            asked = Asked(counts.requests, method, target, headers, rest[:length])
            counts.requests += 1
            counts.in_flight += 1
            counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
            counts.asked.append(asked)
        return asked, rest[length:]

    def _answer(self, turn: Turn) -> None:
        try:
            for fault in self._struck("request", turn.asked):
                fault.act(turn)
            if not turn.status:
                turn.fetch()
            for fault in self._struck("answer", turn.asked):
                fault.act(turn)
            turn.connection.wait(turn.delay_s)
            self.wait_thawed(turn.connection)
            turn.deliver()
        finally:
            with self._lock:
                self.counts.in_flight -= 1
                self.counts.body_bytes += turn.sent_bytes
                if turn.status:
                    self.counts.statuses[turn.status] += 1

    def ask_origin(self, turn: Turn, changed: dict[str, str | None]) -> None:
        """Fill in the answer of the origin.  Raises: Ended when it has none."""
        asked, origin = turn.asked, turn.connection.origin
        for again in (True, False):
            try:
                origin.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
                for name, value in {**asked.headers, **changed}.items():
                    if name not in HOP_BY_HOP and value is not None:
                        origin.putheader(name, value)
                origin.endheaders(asked.body or None)
                answer = origin.getresponse()
                turn.body = answer.read()
                break
            except (OSError, http.client.HTTPException):
                # Mostly a kept connection that the origin has closed in the meantime.
                origin.close()
                if not again:
                    raise Ended from None
        turn.status, turn.reason = answer.status, answer.reason
        turn.headers = [pair for pair in answer.headers.items() if pair[0].lower() not in HOP_BY_HOP]
        given = turn.span
        if asked.method == "GET" and turn.status in (200, 206):
            with self._lock:
                self.counts.spans.append((asked.path, given[:2] if given else (0, len(turn.body))))
