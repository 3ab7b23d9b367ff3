"""The socket to an NBD server: whole buffers in and out, and what goes wrong as our errors."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import NoReturn, Union

from hexz.images.errors import BackendDown, BackendError

__all__ = ["NbdAddress", "Wire", "place"]

CONNECT_S = 10.0
REPLY_S = 60.0
"""How long a server may take for one thing: the handshake, to take a request and answer it, or a piece of what is
read, half a MiB at most.  However it divides them, its bytes have to be there by then."""
LOOK_S = 5.0
"""How long the kernel lets one call wait before the clock is looked at."""
SKIP = 64 << 10
HEAD = 28
"""Bytes received at once where a head is due: those of a chunk of data, and of no chunk's data."""

NbdAddress = Union[str, "tuple[str, int]"]
"""The path of a unix socket, or host and port."""


def place(address: NbdAddress) -> str:
    """The address in words."""
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


class Wire:
    """A connected socket; one thread at a time.  `where` names the server for people."""

    def __init__(self, address: NbdAddress) -> None:
        """Connect.

        Raises: BackendDown when nobody answers.
        """
        self._early = b""
        """Bytes that came before they were asked for, fewer than twice `HEAD`."""
        self._head = memoryview(bytearray(HEAD))
        self.where = place(address)
        try:
            self._sock = _connect(address)
        except OSError as error:
            raise BackendDown(self.where, f"cannot connect to the NBD server: {error.strerror or error}") from error
        self.begin()

    def begin(self) -> None:
        """The server has `REPLY_S` seconds from now on for what is sent and received next."""
        self._deadline = time.monotonic() + REPLY_S

    def check_time(self) -> None:
        """For where a server could go on for ever.  Raises: BackendDown when its time is over."""
        if time.monotonic() >= self._deadline:
            raise BackendDown(self.where, f"the NBD server took longer than {REPLY_S:g} s")

    def send(self, *parts: bytes | memoryview) -> None:
        """Send all parts.  Raises: BackendDown."""
        views = [memoryview(part) for part in parts]
        while views:
            try:
                sent = self._sock.sendmsg(views)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise BackendDown(self.where, f"the NBD server is gone: {error.strerror or error}") from error
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if views:
                views[0] = views[0][sent:]
                self.check_time()

    def fill(self, into: memoryview) -> None:
        """Receive as many bytes as `into` has.  Raises: BackendDown."""
        if self._early:
            have = min(len(self._early), len(into))
            into[:have] = self._early[:have]
            self._early = self._early[have:]
            into = into[have:]
        into = into[self._some(into, socket.MSG_WAITALL) :] if into else into
        while into:
            self.check_time()
            into = into[self._some(into, socket.MSG_WAITALL) :]

    def receive(self, length: int) -> bytes:
        """`length` bytes, which the caller has bounded.  Raises: BackendDown."""
        while len(self._early) < length <= HEAD:
            self._early += self._head[: self._some(self._head, 0)]
            if len(self._early) < length:
                self.check_time()
        data = bytearray(length)
        self.fill(memoryview(data))
        return bytes(data)

    def _some(self, into: memoryview, flags: int) -> int:
        """Receive at least a byte, of those that are due by the deadline; how many it was."""
        while True:
            try:
                got = self._sock.recv_into(into, 0, flags)
            except BlockingIOError:
                self.check_time()
                continue
            except OSError as error:
                raise BackendDown(self.where, f"the NBD server does not answer: {error.strerror or error}") from error
            if not got:
                raise BackendDown(self.where, "the NBD server hung up")
            return got

    def skip(self, length: int) -> None:
        """Read bytes that nobody wants.  Raises: BackendDown."""
        while length:
            length -= len(self.receive(min(length, SKIP)))

    def broken(self, what: str) -> NoReturn:
        """The server does not keep to the protocol.  Raises: BackendError."""
        raise BackendError(self.where, f"the NBD server {what}")

    def silent(self) -> bool:
        """Nothing waits to be read: between requests, the server has neither hung up nor lost its way."""
        if self._early:
            return False
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _connect(address: NbdAddress) -> socket.socket:
    if not isinstance(address, str):
        sock = socket.create_connection(address, CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_S)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
    # No time-out of Python's, but the kernel's, since Python's cost a poll for each call.
    sock.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(LOOK_S), int(LOOK_S % 1 * 1e6)))
    return sock
