"""Open listening sockets: TCP, and unix sockets that are never seen before they serve."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from typing import NamedTuple, Union
from urllib.parse import quote

from hexz.errors import ListenError
from hexz.rights.exposure import Place, Reach, tcp_place

__all__ = [
    "BACKLOG",
    "Address",
    "TcpAddress",
    "UnixAddress",
    "open_socket",
    "peer_uid",
    "place_of",
    "unlink_socket",
    "url_at",
    "url_of",
]

BACKLOG = 1024
"""Connections that the kernel keeps waiting; it cuts this down to net.core.somaxconn."""
MAX_UNIX_PATH = 107
"""Longest path of a unix socket on Linux, bytes."""
PROBE_S = 1.0
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
FIRST_FREE_PORT = 1024
"""The least port that anybody may listen on, where net.ipv4.ip_unprivileged_port_start was left alone."""


class TcpAddress(NamedTuple):
    """Host and port; port 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(NamedTuple):
    """A unix socket's path and the permissions it gets."""

    path: str
    mode: int = 0o600

    def __str__(self) -> str:
        return self.path


Address = Union[TcpAddress, UnixAddress]


def open_socket(address: Address) -> socket.socket:
    """A listening socket at `address`.

    Raises: ListenError.
    """
    try:
        return _open_unix(address) if isinstance(address, UnixAddress) else _open_tcp(address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ListenError(str(address), error.strerror or str(error), _remedy(error, address), taken) from error


def _remedy(error: OSError, address: Address) -> str:
    """What to do about a listener that could not be opened; empty where the error says it."""
    if not isinstance(address, TcpAddress):
        return ""
    other = "choose another port (--port, or --http-port, --nbd-port, --s3-port)"
    if error.errno == errno.EADDRINUSE:
        return f"{other}, or see who has it: ss -ltnp 'sport = :{address.port}'"
    if error.errno == errno.EACCES and address.port < FIRST_FREE_PORT:
        return f"ports below {FIRST_FREE_PORT} are root's: {other}, or give the service CAP_NET_BIND_SERVICE"
    if error.errno == errno.EINVAL and address.host.lower().startswith("fe80:") and "%" not in address.host:
        return f"a link-local address needs its interface: --bind {address.host}%INTERFACE, as in {address.host}%eth0"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host has no such address: see ip address"
    return ""


def _open_tcp(address: TcpAddress) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _open_unix(address: UnixAddress) -> socket.socket:
    """Bind aside, set the mode, listen, and only then move to the name."""
    path = address.path
    temporary = f"{path}.{os.getpid()}"
    if len(os.fsencode(temporary)) > MAX_UNIX_PATH:
        raise ListenError(path, f"the path is too long: with a suffix it must fit {MAX_UNIX_PATH} bytes")
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        sock.bind(temporary)
        os.chmod(temporary, address.mode)
        sock.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        sock.close()
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.unlink(temporary)
        raise
    return sock


def _clear_stale(path: str) -> None:
    """Refuse when somebody answers at `path` or it is no socket; a dead socket is simply replaced."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(path, "something that is no socket has this name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise ListenError(path, f"a server that does not answer holds it ({error})") from None
    raise ListenError(path, "another server answers there")


def unlink_socket(path: str, inode: int) -> None:
    """Remove the unix socket at `path` if it still is the one with `inode`: a successor may own the name.

    Nothing but a socket is removed: path and inode may have come from another process.
    """
    with contextlib.suppress(OSError):  # gone already, or its folder is
        status = os.lstat(path)
        if status.st_ino == inode and stat.S_ISSOCK(status.st_mode):
            os.unlink(path)


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket: who connected, or whoever listens there (unix(7), SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def place_of(sock: socket.socket, own_path: str | None = None) -> Place:
    """Who can reach a listening socket, wherever it came from; `own_path` as in `url_of`."""
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = own_path or where
        return Place(Reach.SOCKET, f"the socket {os.fsdecode(path)!r}", crowded=_is_crowded(path))
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return tcp_place(where[0], f"a socket at {TcpAddress(where[0], where[1])}")
    return Place(Reach.NETWORK, f"a socket at {where}")


def _is_crowded(path: str | bytes) -> bool:
    """Whether every user of the machine may connect to a unix socket (unix(7)): an abstract one has no mode at all."""
    if isinstance(path, bytes) or not path:
        return True
    try:
        return bool(os.stat(path).st_mode & stat.S_IWOTH)
    except OSError:
        return False


def url_of(scheme: str, sock: socket.socket, own_path: str | None = None) -> str:
    """How a client writes the address of a listening socket: ``http://127.0.0.1:8080/``, ``nbd+unix:///?socket=P``.

    `own_path` is the name of a unix socket that was bound under another one.
    """
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        where = own_path or where
        return url_at(scheme, UnixAddress(os.fsdecode(where)))
    return url_at(scheme, TcpAddress(where[0], where[1]))


def url_at(scheme: str, address: Address) -> str:
    """The same for an address."""
    if isinstance(address, TcpAddress):
        return f"{scheme}://{address}/"
    if scheme.startswith("nbd"):
        return f"{scheme}+unix:///?socket={quote(address.path)}"
    return f"{scheme}+unix://{quote(address.path, safe='')}"
