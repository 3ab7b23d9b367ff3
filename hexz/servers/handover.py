"""Sockets on their way from one process to its successor.

Everything hangs on one descriptor, because supervisors keep exactly one: the *bag*,
an end of a SEQPACKET pair in whose queue lies a message with the listening sockets
and with the *channel*.  The message is only ever peeked at, which duplicates the
descriptors, so that a successor that dies can be followed by another.  The channel
is a second pair: the old process pushes its live connections into it, each between
two requests, and its end is the end of the old process.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from hexz.errors import HandoverError, SystemFailure
from hexz.protocol.handover import (
    MAX_FDS,
    MAX_STATE,
    GivenConnection,
    GivenListener,
    pack_connection,
    pack_listeners,
    parse_connection,
    parse_listeners,
)
from hexz.servers.addresses import peer_uid
from hexz.servers.base import Listener
from hexz.servers.connection import Connection

__all__ = ["SUPERVISOR_S", "Bag", "Channel", "fetch_state", "open_bag", "send_state"]

log = logging.getLogger("hexz.handover")

SUPERVISOR_S = 10.0
"""How long a supervisor may take for its part."""
RETRY_S = 0.02
MAX_MESSAGE = 128 << 10
MAX_PASSED = 16
"""Descriptors looked for in what a supervisor sends."""
_INT = array.array("i").itemsize


class Bag:
    """The listening sockets and the channel, as the old process holds them."""

    def __init__(self, listeners: Sequence[tuple[str, Listener]]) -> None:
        """`listeners` with their protocols.

        Raises: SystemFailure.
        """
        if len(listeners) >= MAX_FDS:
            raise SystemFailure(f"more than {MAX_FDS - 1} listeners cannot be handed over")
        self._numbers = {id(listener): number for number, (_, listener) in enumerate(listeners)}
        self._sending, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        filling, self._bag = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = pack_listeners([GivenListener(protocol, one.own_path, one.inode) for protocol, one in listeners])
        fds = [theirs.fileno(), *(listener.socket.fileno() for _, listener in listeners)]
        try:
            filling.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        except OSError as error:
            raise SystemFailure(f"the listening sockets cannot be passed: {error.strerror}") from error
        finally:
            filling.close()
            theirs.close()

    def fileno(self) -> int:
        """The descriptor that a supervisor keeps."""
        return self._bag.fileno()

    @property
    def taken(self) -> bool:
        """A successor holds the sockets: it ended the channel's other direction."""
        poll = select.poll()
        poll.register(self._sending, select.POLLRDHUP)
        return bool(poll.poll(0))

    def give(self, connection: Connection, state: dict[str, Any], received: bytes, deadline: float) -> bool:
        """Push a live connection into the channel before `deadline` (monotonic); False when nobody could take it."""
        number = self._numbers.get(id(connection.listener))
        if number is None:
            return False
        message = pack_connection(GivenConnection(number, connection.peer, state, received))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.sock.fileno()]))]
        while True:
            try:
                self._sending.sendmsg([message], rights, socket.MSG_DONTWAIT)
                return True
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._sending, select.POLLOUT)
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    return False
            except OSError as error:
                log.warning("%s: cannot be handed over: %s", connection.peer, error)
                return False

    def close(self) -> None:
        """Let go of our ends: the successor sees that no more connections come."""
        self._sending.close()
        self._bag.close()


class Channel:
    """The successor's end: live connections as they come from the old process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def close(self) -> None:
        """Take no connections after all."""
        self._sock.close()

    def adopt_into(self, listeners: Sequence[Listener]) -> None:
        """Serve every connection that comes, in a thread of its own, until the old process has ended."""
        with contextlib.suppress(OSError):  # it has ended, which needs no word
            # No message: what lies unread when the other end closes would have this one reset.
            self._sock.shutdown(socket.SHUT_WR)
        threading.Thread(target=self._run, args=(listeners,), name="adopting", daemon=True).start()

    def _run(self, listeners: Sequence[Listener]) -> None:
        count = 0
        with self._sock as sock:
            while True:
                try:
                    data, fds = _receive(sock, MAX_MESSAGE, 1)
                except OSError as error:
                    log.error("no more connections are taken over: %s", error)
                    break
                if not data:
                    break
                count += self._adopt(listeners, data, fds)
        log.info("%d live connections were taken over", count)

    @staticmethod
    def _adopt(listeners: Sequence[Listener], data: bytes, fds: list[int]) -> int:
        if len(fds) != 1:
            log.error("a connection was passed without its descriptor")
            return 0
        connected = socket.socket(fileno=fds[0])
        try:
            given = parse_connection(data)
            if not 0 <= given.listener < len(listeners):
                raise HandoverError("a connection of no listener")
            listeners[given.listener].adopt(connected, given.peer, given.state, given.received)
        except (HandoverError, OSError) as error:
            log.error("a connection is lost: %s", error)
            connected.close()
            return 0
        return 1


def open_bag(bag: int) -> tuple[Channel, list[tuple[GivenListener, socket.socket]]]:
    """Duplicates of what lies in a bag, which stays as it is for another try.

    Raises: HandoverError.
    """
    try:
        with _as_sockets([os.dup(bag)])[0] as sock:
            sock.setblocking(False)
            data, fds = _receive(sock, MAX_MESSAGE, MAX_FDS, socket.MSG_PEEK)
        sockets = _as_sockets(fds)
    except OSError as error:
        raise HandoverError(f"the sockets cannot be taken out: {error.strerror}") from None
    try:
        listeners = parse_listeners(data)
        if len(sockets) != len(listeners) + 1:
            raise HandoverError("the number of sockets is not that of the listeners")
    except HandoverError:
        for one in sockets:
            one.close()
        raise
    return Channel(sockets[0]), list(zip(listeners, sockets[1:]))


def _as_sockets(fds: list[int]) -> list[socket.socket]:
    """Sockets that own `fds`.  Raises: OSError when one is none, and then all are closed."""
    sockets: list[socket.socket] = []
    try:
        for fd in fds:
            sockets.append(socket.socket(fileno=fd))
    except OSError:
        _close_all(fds[len(sockets) :])
        for one in sockets:
            one.close()
        raise
    return sockets


def _receive(sock: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """One message and its descriptors, which are not inherited by children."""
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(most * _INT), flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % _INT])
    return data, list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _check_peer(sock: socket.socket, path: str) -> None:
    """See that the supervisor is root's or this user's: who else listens there would get every client's connection.

    Raises: SystemFailure.
    """
    uid = peer_uid(sock)
    if uid not in (0, os.geteuid()):
        raise SystemFailure(f"{path}: the supervisor there belongs to user {uid}, neither to root nor to this one")


def _connect(path: str, deadline: float) -> socket.socket:
    """A connection to the supervisor.  Raises: SystemFailure."""
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(max(deadline - time.monotonic(), RETRY_S))
        try:
            sock.connect(path)
            _check_peer(sock, path)
            return sock
        except SystemFailure:
            sock.close()
            raise
        except (BlockingIOError, socket.timeout, TimeoutError) as error:
            # A full queue refuses at once instead of waiting.
            sock.close()
            if time.monotonic() >= deadline:
                raise SystemFailure(f"{path}: the supervisor does not answer") from error
            time.sleep(RETRY_S)
        except OSError as error:
            sock.close()
            raise SystemFailure(f"{path}: the supervisor cannot be reached: {error.strerror or error}") from error


def send_state(path: str, state: bytes, bag: Bag) -> None:
    """Give the supervisor the state and the one descriptor to keep.

    Raises: SystemFailure.
    """
    deadline = time.monotonic() + SUPERVISOR_S
    with _connect(path, deadline) as sock:
        try:
            # Asked for only now: an exit may have closed it since.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bag.fileno()]))]
            sent = sock.sendmsg([state], rights)
            sock.settimeout(max(deadline - time.monotonic(), RETRY_S))
            sock.sendall(state[sent:])
        except OSError as error:
            raise SystemFailure(f"{path}: the supervisor did not take the state: {error}") from error


def fetch_state(path: str) -> tuple[bytes, int]:
    """The state and the descriptor that the supervisor kept, which the caller closes.

    Raises: SystemFailure.
    """
    deadline = time.monotonic() + SUPERVISOR_S
    state = bytearray()
    kept: list[int] = []
    with _connect(path, deadline) as sock, contextlib.ExitStack() as on_failure:
        on_failure.callback(_close_all, kept)
        try:
            while len(state) <= MAX_STATE:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("timed out")
                sock.settimeout(left)
                data, fds = _receive(sock, MAX_MESSAGE, MAX_PASSED)
                kept += fds
                if not data:
                    break
                state += data
        except OSError as error:
            raise SystemFailure(f"{path}: the supervisor did not send the state: {error}") from error
        if len(kept) != 1 or len(state) > MAX_STATE:
            raise SystemFailure(f"{path}: the supervisor has no state to take over")
        on_failure.pop_all()
    return bytes(state), kept[0]
