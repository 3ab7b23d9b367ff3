"""Conversations on real sockets: what is sent, and how one knows that the answer has come whole."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Union

PATIENCE_S = 15.0
"""How long an answer may take; one that does not come is recorded as missing."""
END, PART = "end", "part"
"""How a step ends besides with an answer: no more is sent and all is read; or nothing is read yet."""

Place = Union[str, tuple[str, int]]
Bytes = Union[bytes, Callable[[], bytes]]


class Step(NamedTuple):
    """Bytes to send (made when they are due, if a signature has the time in it), and what to wait for then."""

    send: Bytes
    wait: str = "http"


class Case(NamedTuple):
    """One connection to `server` (see `daemons`), step by step."""

    name: str
    server: str
    steps: Sequence[Step]
    figures: bool = False
    """The answer has figures that differ from run to run."""


class Exchange(NamedTuple):
    """What was sent, and all that came back."""

    name: str
    sent: bytes
    answer: bytes


class Wire:
    """A client's end that keeps what comes."""

    def __init__(self, place: Place, secure: bool = False) -> None:
        self.sock: socket.socket = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(place)
        if secure:
            self.start_tls()
        self.end = b"<closed>"  # what an answer that is not whole ended with

    def start_tls(self) -> None:
        """The client's side of TLS; whose certificate it is does not matter here."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock)

    def send(self, data: bytes) -> None:
        """Send; a server that has hung up already has said why before."""
        try:
            self.sock.sendall(data)
        except ConnectionError:
            return

    def take(self, size: int) -> bytes:
        """`size` bytes, or fewer when the server hangs up."""
        data = b""
        while len(data) < size:
            part = self._receive(size - len(data))
            data += part
            if not part:
                break
        return data

    def _receive(self, most: int) -> bytes:
        try:
            return self.sock.recv(most)
        except socket.timeout:
            self.end = b"<silence>"
            return b""
        except (ConnectionError, ssl.SSLError):
            return b""

    def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        parts: list[bytes] = []
        while True:
            try:
                part = self.sock.recv(1 << 16)
            except socket.timeout:
                return b"".join(parts) + b"<silence>"
            except (ConnectionError, ssl.SSLError):
                part = b""
            if not part:
                return b"".join(parts) + b"<closed>"
            parts.append(part)

    def http(self, method: str) -> bytes:
        """One response with what precedes it (100 Continue)."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = self._receive(1)
            if not part:
                return head + self.end
            head += part
        if head.startswith((b"HTTP/1.1 100", b"HTTP/1.0 100")):
            return head + self.http(method)
        found = re.search(rb"(?im)^content-length: *(\d+)\r$", head)
        bodiless = method == "HEAD" or head[9:12] in (b"204", b"304")
        length = 0 if bodiless or found is None else int(found[1])
        return head + self.take(length)

    def options(self) -> bytes:
        """The replies to one NBD option, to the last one."""
        replies = b""
        while True:
            head = self.take(20)
            if len(head) < 20:
                return replies + head + self.end
            kind, length = struct.unpack(">12xII", head)
            replies += head + self.take(length)
            if kind == 1 or kind & 0x8000_0000:
                return replies

    def reply(self, read: int) -> bytes:
        """One NBD reply of any form, whole; `read` bytes follow a simple one without an error."""
        reply = b""
        while True:
            magic = self.take(4)
            if len(magic) < 4:
                return reply + magic + self.end
            if magic == b"\x67\x44\x66\x98":
                head = magic + self.take(12)
                return reply + head + (b"" if head[4:8] != bytes(4) else self.take(read))
            extended = magic == b"\x6e\x8a\x27\x8c"
            head = magic + self.take(28 if extended else 16)
            length = struct.unpack(">Q" if extended else ">I", head[-8 if extended else -4 :])[0]
            reply += head + self.take(length)
            if head[5] & 1:
                return reply


def converse(case: Case, place: Place, secure: bool) -> list[Exchange]:
    """Have the conversation; one exchange for each step."""
    wire = Wire(place, secure)
    exchanges = []
    with wire.sock:
        for number, step in enumerate(case.steps):
            data = step.send if isinstance(step.send, bytes) else step.send()
            wire.send(data)
            exchanges.append(Exchange(f"{case.name} [{number + 1}]", data, _answer(wire, step.wait, data)))
        wire.sock.close()
    return exchanges


def _answer(wire: Wire, wait: str, data: bytes) -> bytes:
    kind, _, number = wait.partition(" ")
    if kind == PART:
        return b""
    if kind == "http":
        return wire.http(data.split(b" ", 1)[0].decode("latin-1"))
    if kind == "take":
        return wire.take(int(number))
    if kind == "options":
        return wire.options()
    if kind == "tls":
        answer = wire.options()
        wire.start_tls()
        return answer
    if kind == "reply":
        return wire.reply(int(number or 0))
    if kind == "replies":
        read, count = number.split("x")
        # Replies may come in any order (proto.md): whichever is ready first.
        return b"".join(sorted((wire.reply(int(read)) for _ in range(int(count))), key=lambda reply: reply[8:16]))
    if isinstance(wire.sock, ssl.SSLSocket):  # which cannot close one half
        return wire.rest() if data else b""
    if kind == END:
        try:
            wire.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return wire.rest()
    return wire.rest()
