"""What every protocol's server stands on: `Listener`, a `socketserver` server over one listening socket.

A connection takes the hooks of `socketserver`, in this order: `AcceptLoop` sees that somebody waits and calls
`handle_request`; `get_request` accepts; `verify_request` looks for a place; `process_request` starts a thread, in which
`finish_request` runs the protocol's handler (`setup`, `handle`, `finish`); `handle_error` gets what the handler raises,
and `shutdown_request` closes.  `server_close` closes the listening socket.

Where this departs from the stock classes:

- The socket is made before its server: by `open_socket`, by systemd, or by the process that was here before.  It may
  be a unix socket as well.  So `TCPServer`'s constructor with ``server_bind`` and ``server_activate`` is passed over.
- One loop accepts for all listeners (``fileno`` is for that), so ``serve_forever`` and ``shutdown`` are not used, and
  `handle_request` never polls: it takes all that wait.  Unlike the stock one it lets errors for want of descriptors
  through: the loop has to know of them.
- A `request` is a `Connection`: a socket, and what the limits and the end of the daemon need to know of it.
- `shutdown_request` only closes.  The stock ``shutdown`` would end a connection that was handed to another process.
- When there are no places or threads left, a few spare threads serve one request each (`hexz.servers.spare`).
- Connections can come from another process (`adopt`) and go to one (`Connection.give`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import socketserver
import sys
import threading
import time
from typing import Any, Protocol, TypeVar

from hexz.rights.exposure import OWN, Grant
from hexz.servers.addresses import BACKLOG, Address, UnixAddress, open_socket, unlink_socket, url_of
from hexz.servers.connection import Connection, Give, Summons
from hexz.servers.spare import Spares

__all__ = ["DEFAULT_MAX_CONNECTIONS", "Listener", "Site"]

log = logging.getLogger("hexz.servers")

DEFAULT_MAX_CONNECTIONS = 4096
SHARE = 4
"""One client address may have a fourth of a listener's places; of IPv6 a /64 counts as one.

Not so loopback addresses and unix sockets: a proxy or a tunnel on this host is everybody.
"""
MAX_LEAVING = 64
"""Connections that were told to go for newcomers and have not ended yet, beyond the limit."""
ACCEPTS_AT_ONCE = 64
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Site(Protocol):
    """What all listeners of one protocol have in common, however many there are."""

    @property
    def scheme(self) -> str:
        """How a URL of the protocol begins."""

    @property
    def answers_spares(self) -> bool:
        """A connection for which there is no place is served nevertheless, for one request: see `Connection.spare`."""


Server = TypeVar("Server", bound="Listener")


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A listening socket, what is served there, and its live connections.

    Subclasses name their handler, and say what `refuse` and `drain` mean in their protocol.
    """

    daemon_threads = True  # the drain waits for connections, not for threads
    block_on_close = False
    keeps_idle = False
    """Nobody has to go for a newcomer, however long nothing came from him."""
    handler: type[socketserver.BaseRequestHandler]

    def __init__(
        self,
        sock: socket.socket,
        site: Site,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        own_path: str | None = None,
        shared: bool = False,
        inode: int = 0,
        grant: Grant = OWN,
    ) -> None:
        """`grant` is what strangers may do here.

        `own_path` is the unix socket to remove at the end; sockets passed by a supervisor have none.

        Only as long as it has `inode`, by default the one that it has now: the name may lead to another socket.
        `shared`: somebody else holds the socket too, and connections that wait at the end are for the successor.
        """
        socketserver.BaseServer.__init__(self, sock.getsockname(), self.handler)
        sock.setblocking(False)
        self.socket = sock
        self.site = site
        self.grant = grant
        self.max_connections = max_connections
        self.url = url_of(site.scheme, sock, own_path)
        self.shared = shared
        self.draining = False  # set once, by stop_accepting
        self.draining_since = 0.0  # seconds of the monotonic clock; before `draining`
        self.accepted = 0  # written by the accepting thread only
        self.refused = 0  # the same
        self.connections: set[Connection] = set()  # guarded by _lock
        self.without_place: set[Connection] = set()  # that get one answer; the same
        self.spares: Spares | None = None  # set when an accept loop takes the listener
        self.summons: Summons | None = None  # the same
        self.give: Give | None = None  # set before the summons is called
        self.put_off: Connection | None = None  # there was no thread for it; for the accepting thread only
        self._lock = threading.Lock()
        self.own_path = own_path
        self.inode = inode or (os.lstat(own_path).st_ino if own_path else 0)

    @classmethod
    def open(cls: type[Server], address: Address, site: Site, max_connections: int = DEFAULT_MAX_CONNECTIONS) -> Server:
        """Listen at `address`.

        Raises: ListenError.
        """
        own_path = address.path if isinstance(address, UnixAddress) else None
        return cls(open_socket(address), site, max_connections, own_path)

    # What a protocol adds

    def refuse(self, connection: Connection) -> None:
        """Tell a connection over the limit so, without waiting; it is closed afterwards.  Here: not a word."""

    def drain(self, connection: Connection) -> None:
        """Called from another thread when the daemon begins to stop: see that the handler ends soon.

        The summons rings then, which ends `Connection.await_input`: nothing more is needed where the handler looks
        at `Connection.draining` between requests and at `Connection.last_call` while it waits for one.
        """

    # The way of a connection

    def handle_request(self, most: int = ACCEPTS_AT_ONCE) -> None:
        """Take the connections that wait, at most `most`.  Raises: OSError when resources are exhausted."""
        for _ in range(most):
            waited, self.put_off = self.put_off, None
            if waited is not None:
                self.process_request(waited, waited.peer)
            try:
                request, client_address = self.get_request()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    raise
                log.debug("%s: a connection ended before it was accepted: %s", self.url, error)
                continue
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                self.shutdown_request(request)

    def handle_spare_request(self) -> None:
        """Take one connection with the last of the descriptors: it is answered soon, or closed.  Raises: OSError."""
        try:
            request, client_address = self.get_request()
        except (BlockingIOError, InterruptedError):
            return
        if self._turn_away(request):
            self.process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def get_request(self) -> tuple[Connection, Any]:  # type: ignore[override]
        """Accept a connection.  Raises: OSError."""
        sock, address = self.socket.accept()
        sock.setblocking(True)
        peer = "unix"
        if isinstance(address, tuple):
            peer = f"{address[0]}:{address[1]}"
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return Connection(sock, self, peer), address

    def verify_request(self, request: Connection, client_address: Any) -> bool:  # type: ignore[override]
        """Whether it is served: there is a place for it, or a spare thread that may have an answer."""
        if self._admit(request):
            self.accepted += 1
            return True
        log.warning(
            "%s: %s refused: %d connections are the limit, a quarter of them for one address",
            self.url, request.peer, self.max_connections,
        )  # fmt: skip
        return self._turn_away(request)

    def process_request(self, request: Connection, client_address: Any) -> None:  # type: ignore[override]
        """Have it served by a thread of its own.  Raises: OSError when the system has none left."""
        if request.spare:
            if not self._serve_as_spare(request):
                self._refuse_now(request)
                self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except (RuntimeError, MemoryError):  # the system is out of threads
            fresh = request.adopted is None
            if fresh and self._serve_as_spare(request):
                return
            if fresh and not self.draining:
                with self._lock:
                    self.connections.add(request)
                self.put_off = request  # and those behind it wait in the kernel's queue: none is reset
            else:
                self.shutdown_request(request)
            raise OSError(errno.ENOMEM, "no thread for the connection") from None

    def finish_request(self, request: Connection, client_address: Any) -> None:  # type: ignore[override]
        """Run the protocol's handler, in the connection's thread."""
        if not request.spare:
            threading.current_thread().name = f"{self.site.scheme} {request.peer}"
        super().finish_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: Connection, client_address: Any) -> None:  # type: ignore[override]
        """Log what a handler raised: a peer that has gone is nothing special, all else is a defect."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            log.debug("%s: %s", request.peer, error)
        elif isinstance(error, MemoryError):
            log.warning("%s: no memory to go on with %s: hanging up", self.url, request.peer)
        else:
            log.error("%s: unexpected trouble with %s", self.url, request.peer, exc_info=error)

    def shutdown_request(self, request: Connection) -> None:  # type: ignore[override]
        """Close a connection that nobody serves any more."""
        with self._lock:
            self.connections.discard(request)
            self.without_place.discard(request)
        with contextlib.suppress(OSError):  # closing cannot be helped further
            request.sock.close()

    # Places

    def _admit(self, connection: Connection) -> bool:
        """Find a place for a newcomer: where there is none, whoever has been idle for longest has to go."""
        with self._lock:
            staying = [one for one in self.connections if not one.leaving] if self._crowded(connection) else []
            rivals = [one for one in staying if one.client == connection.client] if connection.client else []
            crowd = rivals if len(rivals) >= max(self.max_connections // SHARE, 1) else staying
            if crowd is rivals or len(staying) >= self.max_connections:
                if self.keeps_idle:
                    return False
                longest, gone = max(((one.idle_for(), one) for one in crowd), key=lambda pair: pair[0])
                if longest < 0 or len(self.connections) >= self.max_connections + MAX_LEAVING:
                    return False
                gone.end_after_answer()
            else:
                gone = None
            self.connections.add(connection)
        if gone is not None:
            log.info("%s: %s goes, idle for longest: somebody else needs its place", self.url, gone.peer)
            gone.hang_up_idle(at_once=True)
        return True

    def _crowded(self, connection: Connection) -> bool:
        """Called with the lock: there may be no place.  Nobody is counted as long as there are plenty."""
        least = max(self.max_connections // SHARE, 1) if connection.client else self.max_connections
        return len(self.connections) >= least

    def _turn_away(self, connection: Connection) -> bool:
        """There is no place: refuse it, or have it served by a spare thread, which is True."""
        self.refused += 1
        connection.spare = self.spares is not None and self.site.answers_spares
        if not connection.spare:
            self._refuse_now(connection)
        return connection.spare

    def _refuse_now(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):  # it is to be closed anyway
            connection.sock.setblocking(False)
            self.refuse(connection)

    def _serve_as_spare(self, connection: Connection) -> bool:
        """Have one of the spare threads serve it; False when it cannot be."""
        if self.spares is None or not self.site.answers_spares:
            return False
        connection.spare = True
        with self._lock:
            self.connections.discard(connection)
            self.without_place.add(connection)
        if self.spares.take(connection):
            return True
        with self._lock:
            self.without_place.discard(connection)
        connection.spare = False
        return False

    # Other processes, and the end

    def adopt(self, sock: socket.socket, peer: str, state: dict[str, Any], received: bytes) -> None:
        """Serve a connection that came from another process, which said `state` of it and had `received` some.

        Raises: OSError when resources are exhausted.
        """
        sock.setblocking(True)
        connection = Connection(sock, self, peer)
        connection.adopted, connection.received = state, received
        with self._lock:
            self.connections.add(connection)
        self.process_request(connection, peer)

    def live(self) -> list[Connection]:
        """The connections now."""
        with self._lock:
            return [*self.connections, *self.without_place]

    def settle(self) -> None:
        """Give the connection that waits for a thread its last chance of one, before nobody accepts any more."""
        waited, self.put_off = self.put_off, None
        if waited is not None:
            with contextlib.suppress(OSError):
                self.process_request(waited, waited.peer)
        if self.put_off is not None:
            self.shutdown_request(self.put_off)
            self.put_off = None

    def stop_accepting(self) -> None:
        """Close the listening socket and tell every connection to come to an end."""
        if self.draining:
            return
        self.draining_since = time.monotonic()
        self.draining = True
        if self.own_path is not None and not self.shared:
            unlink_socket(self.own_path, self.inode)
        if not self.shared and self.socket.fileno() >= 0:
            with contextlib.suppress(OSError):  # the rest is refused, as all that come later
                self.handle_request(BACKLOG)  # closing would reset those that wait
        self.settle()
        self.server_close()
        for connection in self.live():
            self.drain(connection)

    def cut(self) -> None:
        """End every connection now."""
        for connection in self.live():
            with contextlib.suppress(OSError):  # it ended by itself
                connection.sock.shutdown(socket.SHUT_RDWR)
