"""Listeners and connections: what every protocol's server stands on.

Each connection gets a thread of its own, which runs its service's `serve` and owns
the socket.  `hexz.servers.front` has the one loop that accepts.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from hexz.exposure import OWN, Grant
from hexz.servers.addresses import BACKLOG, Address, UnixAddress, open_socket, unlink_socket, url_of
from hexz.servers.spare import Spares

__all__ = ["DEFAULT_MAX_CONNECTIONS", "SILENT_S", "Connection", "Give", "Listener", "Service", "Summons"]

log = logging.getLogger("hexz.servers")

DEFAULT_MAX_CONNECTIONS = 4096
SHARE = 4
"""One client address may have a fourth of a listener's places; of IPv6 a /64 counts as one.

Not so loopback addresses and unix sockets: a proxy or a tunnel on this host is everybody.
"""
MAX_LEAVING = 64
"""Connections that were told to go for newcomers and have not ended yet, beyond the limit."""
ACCEPTS_AT_ONCE = 64
FIRST_WORD_S = 5.0
"""How long after its arrival a connection that has asked for nothing is spared by `Front.drain`."""
SILENT_S = 1.0
"""How long nothing comes from a connection before it counts as idle, where that is seen from outside of its thread."""
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Service(Protocol):
    """One protocol's way with a connection."""

    scheme: str
    answers_spares: bool
    """A connection for which there is no place is served nevertheless, for one request: see `Connection.spare`."""
    keeps_idle: bool
    """Nobody has to go for a newcomer, however long nothing came from him."""

    def serve(self, connection: Connection) -> None:
        """Serve until the peer or the drain ends it.  Runs in the connection's thread, which closes the socket."""

    def refuse(self, connection: Connection) -> None:
        """Tell a connection over the limit so, without waiting; it is closed afterwards."""

    def drain(self, connection: Connection) -> None:
        """Called from another thread when the daemon begins to stop: see that `serve` ends soon.

        The summons rings then, which ends `Connection.await_input`: nothing more is needed where `serve` looks
        at `connection.draining` between requests and at `connection.last_call` while it waits for one.
        """

    def resume(self, connection: Connection, state: dict[str, Any], received: bytes) -> None:
        """Go on with a connection that another process gave up between two requests, instead of `serve`.

        `state` is what that process's service said, `received` what it had received of the next request.
        """


class Summons:
    """The call to every connection to stop between two requests: a successor takes them over, or the daemon ends.

    A thread that waits for a client polls the descriptor beside its socket; it stays readable for good.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._rung = False  # set once
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
        if not self._rung:
            self._rung = True
            os.write(self._write, b"\0")

    def close(self) -> None:
        """Free the descriptors; no connection may be left."""
        self._rung = True
        os.close(self._read)
        os.close(self._write)


Give = Callable[["Connection", "dict[str, Any]", bytes], bool]
"""Gives a connection to the successor, with its service's state and what was received; False when it cannot."""


class Connection:
    """An accepted socket, its peer's name for logs, and whether the daemon is stopping."""

    def __init__(self, sock: socket.socket, listener: Listener, peer: str) -> None:
        self.sock = sock
        self.listener = listener
        self.peer = peer
        self.since = time.monotonic()
        self.spoken = False  # set by the service with the peer's first request
        self.adopted = False  # it came from another process, with which it may have spoken
        self.spare = False  # there was no place for it: it gets one answer, soon
        self._ending = False  # set once
        self._ending_since = 0.0
        self.idle_since: float | None = None  # while nothing is due and it waits for the peer, monotonic seconds
        self.silence: Callable[[], float] | None = None  # while a crowd serves it: seconds since something came
        self.client = client_of(peer)

    @property
    def draining(self) -> bool:
        """The daemon is stopping, or what is read here was taken away: finish what runs, take nothing new."""
        return self._ending or self.listener.draining

    @property
    def leaving(self) -> bool:
        """This one connection is to end, whatever the others do."""
        return self._ending

    def last_call(self, patience_s: float) -> float:
        """Of a connection that drains: for how many seconds more a request may come that was on its way already.

        That is `patience_s` after the drain began, and longer where the peer has only just come.
        """
        since = self._ending_since if self._ending else self.listener.draining_since
        until = since + patience_s
        if not self.spoken:
            until = max(until, self.since + FIRST_WORD_S)
        return until - time.monotonic()

    def end(self) -> None:
        """See that this one connection drains.  From any thread."""
        self.end_after_answer()
        self.hang_up_idle()

    def end_after_answer(self) -> None:
        """See that this one connection ends after its next request, if one comes soon.  From its own thread."""
        self._ending_since = time.monotonic()
        self._ending = True

    @property
    def summoned(self) -> bool:
        """A successor waits: stop between two requests and `give` the connection."""
        summons = self.listener.summons
        return summons is not None and summons.called and not self._ending

    def await_input(self, seconds: float | None) -> bool:
        """Wait for data, the end of the stream or the summons; False when none of them came in time.

        While the connection drains, which the summons has told, for data or the end alone.
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if self.listener.summons is not None and not self.draining:
            poll.register(self.listener.summons, select.POLLIN)
        self.idle_since = time.monotonic()
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
        """Give the connection to the successor; afterwards the caller only returns."""
        give = self.listener.give
        return give is not None and give(self, state, received)

    def hang_up_idle(self, at_once: bool = False) -> None:
        """Let a receive that waits see the end of the stream; what is being sent goes on.

        Not yet where the peer has only just come: its first request is on the way, and it would
        take the end for a refused connection.  `Front.drain` comes back to it.
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


class Listener:
    """A listening socket, the service behind it, and its live connections."""

    def __init__(
        self,
        sock: socket.socket,
        service: Service,
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
        sock.setblocking(False)
        self.sock = sock
        self.service = service
        self.grant = grant
        self.max_connections = max_connections
        self.url = url_of(service.scheme, sock, own_path)
        self.shared = shared
        self.draining = False  # set once, by stop_accepting
        self.draining_since = 0.0  # seconds of the monotonic clock; before `draining`
        self.accepted = 0  # written by the accepting thread only
        self.refused = 0  # the same
        self.connections: set[Connection] = set()  # guarded by _lock
        self.without_place: set[Connection] = set()  # that get one answer; the same
        self.spares: Spares | None = None  # set when a front takes the listener
        self.summons: Summons | None = None  # set when a front takes the listener
        self.give: Give | None = None  # set before the summons is called
        self.waiting: Connection | None = (
            None  # accepted, and there was no thread for it; for the accepting thread only
        )
        self._lock = threading.Lock()
        self.own_path = own_path
        self.inode = inode or (os.lstat(own_path).st_ino if own_path else 0)

    @classmethod
    def open(cls, address: Address, service: Service, max_connections: int = DEFAULT_MAX_CONNECTIONS) -> Listener:
        """Listen at `address`.

        Raises: ListenError.
        """
        own_path = address.path if isinstance(address, UnixAddress) else None
        return cls(open_socket(address), service, max_connections, own_path)

    def accept(self, most: int = ACCEPTS_AT_ONCE) -> None:
        """Take the connections that wait, each into a thread.  Raises: OSError when resources are exhausted."""
        for _ in range(most):
            waiting, self.waiting = self.waiting, None
            if waiting is not None:
                self._start(waiting, self.service.serve)
            try:
                sock, where = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    raise
                log.debug("%s: a connection ended before it was accepted: %s", self.url, error)
                continue
            self._take(sock, where)

    def accept_spare(self) -> None:
        """Take one connection with the last of the descriptors: it is answered soon, or closed.  Raises: OSError."""
        try:
            sock, where = self.sock.accept()
        except (BlockingIOError, InterruptedError):
            return
        self._take(sock, where, no_place=True)

    def _take(self, sock: socket.socket, where: object, no_place: bool = False) -> None:
        sock.setblocking(True)
        peer = "unix"
        if isinstance(where, tuple):
            peer = f"{where[0]}:{where[1]}"
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection = Connection(sock, self, peer)
        if no_place or not self._admit(connection):
            self.refused += 1
            if not no_place:
                log.warning(
                    "%s: %s refused: %d connections are the limit, a quarter of them for one address",
                    self.url, peer, self.max_connections,
                )  # fmt: skip
            if self._serve_as_spare(connection):
                return
            with sock, contextlib.suppress(OSError):  # it was to be closed anyway
                sock.setblocking(False)
                self.service.refuse(connection)
            return
        self.accepted += 1
        self._start(connection, self.service.serve)

    def _admit(self, connection: Connection) -> bool:
        """Find a place for a newcomer: where there is none, whoever has been idle for longest has to go."""
        with self._lock:
            staying = [one for one in self.connections if not one.leaving] if self._crowded(connection) else []
            rivals = [one for one in staying if one.client == connection.client] if connection.client else []
            crowd = rivals if len(rivals) >= max(self.max_connections // SHARE, 1) else staying
            if crowd is rivals or len(staying) >= self.max_connections:
                if self.service.keeps_idle:
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

    def _serve_as_spare(self, connection: Connection) -> bool:
        """Have one of the spare threads serve it; False when it cannot be."""
        if self.spares is None or not self.service.answers_spares:
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

    def serve_spare(self, connection: Connection) -> None:
        """Serve a connection without a place; in a spare thread."""
        self._run(connection, self.service.serve)

    def _crowded(self, connection: Connection) -> bool:
        """Called with the lock: there may be no place.  Nobody is counted as long as there are plenty."""
        least = max(self.max_connections // SHARE, 1) if connection.client else self.max_connections
        return len(self.connections) >= least

    def adopt(self, sock: socket.socket, peer: str, state: dict[str, Any], received: bytes) -> None:
        """Serve a connection that came from another process.  Raises: OSError when resources are exhausted."""
        sock.setblocking(True)
        connection = Connection(sock, self, peer)
        connection.adopted = True
        with self._lock:
            self.connections.add(connection)
        self._start(connection, lambda adopted: self.service.resume(adopted, state, received))

    def _start(self, connection: Connection, serve: Callable[[Connection], None]) -> None:
        name = f"{self.service.scheme} {connection.peer}"
        try:
            threading.Thread(target=self._run, args=(connection, serve), name=name, daemon=True).start()
        except RuntimeError:  # the system is out of threads
            fresh = serve == self.service.serve
            if fresh and self._serve_as_spare(connection):
                return
            if fresh and not self.draining:
                with self._lock:
                    self.connections.add(connection)
                self.waiting = connection  # and those behind it wait in the kernel's queue: none is reset
            else:
                self.forget(connection)
            raise OSError(errno.ENOMEM, "no thread for the connection") from None

    def _run(self, connection: Connection, serve: Callable[[Connection], None]) -> None:
        try:
            serve(connection)
        except OSError as error:
            log.debug("%s: %s", connection.peer, error)
        except Exception:
            log.exception("%s: unexpected trouble with %s", self.url, connection.peer)
        finally:
            self.forget(connection)

    def forget(self, connection: Connection) -> None:
        """Close a connection that nobody serves any more."""
        with self._lock:
            self.connections.discard(connection)
            self.without_place.discard(connection)
        with contextlib.suppress(OSError):  # closing cannot be helped further
            connection.sock.close()

    def live(self) -> list[Connection]:
        """The connections now."""
        with self._lock:
            return [*self.connections, *self.without_place]

    def settle(self) -> None:
        """Give the connection that waits for a thread its last chance of one, before nobody accepts any more."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            with contextlib.suppress(OSError):
                self._start(waiting, self.service.serve)
        if self.waiting is not None:
            self.forget(self.waiting)
            self.waiting = None

    def stop_accepting(self) -> None:
        """Close the listening socket and tell every connection to come to an end."""
        if self.draining:
            return
        self.draining_since = time.monotonic()
        self.draining = True
        if self.own_path is not None and not self.shared:
            unlink_socket(self.own_path, self.inode)
        if not self.shared and self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):  # the rest is refused, as all that come later
                self.accept(BACKLOG)  # closing would reset those that wait
        self.settle()
        self.sock.close()
        for connection in self.live():
            self.service.drain(connection)

    def cut(self) -> None:
        """End every connection now."""
        for connection in self.live():
            with contextlib.suppress(OSError):  # it ended by itself
                connection.sock.shutdown(socket.SHUT_RDWR)
