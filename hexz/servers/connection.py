"""An accepted connection, as its own thread and those of the accept loop see it, and the call to all of them to end."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["SILENT_S", "CameFrom", "Connection", "Give", "Summons", "client_of"]

FIRST_WORD_S = 5.0
"""How long after its arrival a connection that has asked for nothing is spared by `AcceptLoop.drain`."""
SILENT_S = 1.0
"""How long nothing comes from a connection before it counts as idle, where that is seen from outside of its thread."""


class Summons:
    """The call to every connection to stop between two requests: a successor takes them over, or the daemon ends.

    A thread that waits for a client polls the descriptor beside its socket; it stays readable for good.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.rung = False  # somebody calls; set once
        self.called = False  # by a successor; set once

    def fileno(self) -> int:
        """What to poll."""
        return self._read

    def call(self) -> None:
        """From now on connections are for the successor."""
        self.called = True
        self.ring()

    def ring(self) -> None:
        """Have everybody who waits look round."""
        if not self.rung:
            self.rung = True
            os.write(self._write, b"\0")

    def close(self) -> None:
        """Free the descriptors; no connection may be left."""
        self.rung = True
        os.close(self._read)
        os.close(self._write)


Give = Callable[["Connection", "dict[str, Any]", bytes], bool]
"""Gives a connection to the successor, with its handler's state and what was received; False when it cannot."""


class CameFrom(Protocol):
    """The listener that a connection came to, as the connection knows it."""

    url: str
    draining: bool
    draining_since: float
    summons: Summons | None
    give: Give | None

    def drain(self, connection: Connection) -> None:
        """See that the handler of a connection ends soon."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in this thread."""

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that nobody serves any more."""


class Connection:
    """An accepted socket, its peer's name for logs, and whether the daemon is stopping.

    It is the `request` of `socketserver`: what hooks and handlers pass along instead of the bare socket, because
    other threads look at it too.  Its handler's thread alone sends and receives.
    """

    def __init__(self, sock: socket.socket, listener: CameFrom, peer: str) -> None:
        self.sock = sock
        self.listener = listener
        self.peer = peer
        self.since = time.monotonic()
        self.spoken = False  # set by the handler with the peer's first request
        self.adopted: dict[str, Any] | None = None  # what another process that gave it up said of it, if one did
        self.received = b""  # by that process, of the next request
        self.spare = False  # there was no place for it: it gets one answer, soon
        self.leaving = False  # this one is to end, whatever the others do; set once
        self._leaving_since = 0.0
        self.idle_since: float | None = None  # while nothing is due and it waits for the peer, monotonic seconds
        self.silence: Callable[[], float] | None = None  # while a crowd serves it: seconds since something came
        self.client = client_of(peer)
        self.hurried = False  # what is being sent was taken away: the peer may not pause for long

    @property
    def draining(self) -> bool:
        """The daemon is stopping, or what is read here was taken away: finish what runs, take nothing new."""
        return self.leaving or self.listener.draining

    def last_call(self, patience_s: float) -> float:
        """Of a connection that drains: for how many seconds more a request may come that was on its way already.

        That is `patience_s` after the drain began, and longer where the peer has only just come.
        """
        since = self._leaving_since if self.leaving else self.listener.draining_since
        until = since + patience_s
        if not self.spoken:
            until = max(until, self.since + FIRST_WORD_S)
        return until - time.monotonic()

    def end(self) -> None:
        """See that this one connection drains: what it reads was taken away.  From any thread."""
        self.hurry()
        self.end_after_answer()
        self.hang_up_idle()

    def hurry(self) -> None:
        """See that what is being sent ends soon if the peer does not read: it was taken away.  From any thread."""
        self.hurried = True

    def end_after_answer(self) -> None:
        """See that this one connection ends after its next request, if one comes soon.  From its own thread."""
        self._leaving_since = time.monotonic()
        self.leaving = True

    @property
    def summoned(self) -> bool:
        """A successor waits: stop between two requests and `give` the connection."""
        summons = self.listener.summons
        return summons is not None and summons.called and not self.leaving

    def await_input(self, seconds: float | None) -> bool:
        """Wait for data, the end of the stream or the summons; False when none of them came in time.

        While the connection drains, which the summons has told, for data or the end alone.
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if self.listener.summons is not None and not self.draining:
            poll.register(self.listener.summons, select.POLLIN)
        self.idle_since = time.monotonic()
        # No time-out where the caller wants none: hanging up and the summons end it too.
        ready = bool(poll.poll(None if seconds is None else max(seconds, 0) * 1000))
        self.idle_since = None
        return ready

    def idle_for(self) -> float:
        """For how many seconds nothing has been due and nothing has come; less than 0 while that is not so.

        From any thread.
        """
        silence, since = self.silence, self.idle_since
        if silence is not None:
            return silence() - SILENT_S
        return -1.0 if since is None else time.monotonic() - since

    def give(self, state: dict[str, Any], received: bytes) -> bool:
        """Give the connection to the successor, between two requests; afterwards the caller only returns.

        `state` is what the successor's handler needs, `received` what has come of the next request.
        """
        give = self.listener.give
        return give is not None and give(self, state, received)

    def hang_up_idle(self, at_once: bool = False) -> None:
        """Let a receive that waits see the end of the stream; what is being sent goes on.

        Not yet where the peer has only just come: its first request is on the way, and it would
        take the end for a refused connection.  `AcceptLoop.drain` comes back to it.
        """
        if not at_once and not self.spoken and time.monotonic() - self.since < FIRST_WORD_S:
            return
        with contextlib.suppress(OSError):  # the peer was faster
            # Not the method of an SSLSocket: that would have the rest of the replies sent in the clear.
            socket.socket.shutdown(self.sock, socket.SHUT_RD)


def client_of(peer: str) -> str | None:
    """What counts as one client in the share of places: an IPv4 address, a /64 of IPv6; None for this host."""
    try:
        address = ipaddress.ip_address(peer.rpartition(":")[0].partition("%")[0])
    except ValueError:  # a unix socket
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return None if address.is_loopback else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        address = address.ipv4_mapped
    return None if address.is_loopback else str(address)
