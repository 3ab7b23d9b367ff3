"""Listening sockets that the service manager keeps while this service restarts, so that no connection is refused.

What the manager keeps comes back with the name under which it was given (sd_pid_notify_with_fds(3)): protocol,
number of the address, and for a unix socket the inode of its path, which tells whether the path still leads to it.
"""

from __future__ import annotations

import os
import re
import socket
import stat

from hexz.daemon.systemd import Notifier
from hexz.servers.addresses import Address, UnixAddress

__all__ = ["FdStore"]

_NAME = re.compile(r"[a-z0-9]+-[0-9]+(-[0-9]+)?")


class FdStore:
    """What came back from the manager, and what it is to keep from now on."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._sockets: dict[str, socket.socket] = {}

    def add(self, name: str, sock: socket.socket) -> bool:
        """`sock` was passed under `name`; False when that is no name of ours."""
        if not _NAME.fullmatch(name):
            return False
        self._sockets[name] = sock
        return True

    def take(self, protocol: str, number: int, address: Address) -> socket.socket | None:
        """The kept socket that listens at `address`, if there is one."""
        name = _name(protocol, number, address)
        sock = self._sockets.get(name)
        if sock is None or not _listens_at(sock, address):
            return None
        return self._sockets.pop(name)

    def drop_rest(self) -> None:
        """Close what nobody took, here and in the manager, so that its addresses are free."""
        if not self._sockets:
            return
        for name, sock in self._sockets.items():
            sock.close()
            self._notifier.forget(name)
        self._sockets.clear()
        self._notifier.settle()

    def keep(self, protocol: str, number: int, address: Address, sock: socket.socket) -> None:
        """Have the manager keep `sock`, which listens at `address`."""
        self._notifier.keep(_name(protocol, number, address), sock)


def _name(protocol: str, number: int, address: Address) -> str:
    name = f"{protocol}-{number}"
    if not isinstance(address, UnixAddress):
        return name
    try:
        status = os.lstat(address.path)
    except OSError:
        return f"{name}-0"
    return f"{name}-{status.st_ino if stat.S_ISSOCK(status.st_mode) else 0}"


def _listens_at(sock: socket.socket, address: Address) -> bool:
    where = sock.getsockname()
    if isinstance(address, UnixAddress):
        # It was bound aside, under its name and the number of a process, and then moved to its name.
        return isinstance(where, str) and re.fullmatch(rf"{re.escape(address.path)}(\.\d+)?", where) is not None
    return isinstance(where, tuple) and where[0] == address.host and address.port in (0, where[1])
