"""What systemd expects of a service: sd_notify(3), sockets that were passed, the watchdog, the store of descriptors."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import stat
import struct
import time

from hexz.errors import ConfigError

__all__ = ["FIRST_PASSED", "Notifier", "take_passed_sockets"]

SEND_S = 5
"""How long a message may wait for room in the manager's queue."""
BARRIER_MS = 5000
FIRST_PASSED = 3
MAX_PASSED = 64


class Notifier:
    """Messages to the service manager; without one, or when it cannot be reached, nothing happens."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "\0")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # A manager that is busy is waited for: a lost READY=1 would be a failed start.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
        limit, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = limit.isdigit() and (not pid or pid == str(os.getpid()))
        self.watchdog_s = int(limit) / 3e6 if mine else 0.0
        """Seconds between two signs of life that the manager wants, 0 for none: a third of its limit."""
        self._alive = 0.0

    @property
    def managed(self) -> bool:
        """There is a service manager, which keeps what it is given."""
        return self._socket is not None

    def _send(self, *lines: str, fd: int | None = None, flags: int = 0) -> None:
        if self._socket is None:
            return
        rights = []
        if fd is not None:
            rights.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd])))
        with contextlib.suppress(OSError):  # never a reason to fail (sd_notify(3))
            self._socket.sendmsg(["\n".join(lines).encode()], rights, flags, self._address)

    def ready(self, status: str) -> None:
        """Every listener answers."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """SIGHUP is being worked on; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """The drain has begun and may take so long."""
        self._send("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int((seconds + 5) * 1e6)}")

    def alive(self) -> None:
        """A sign of life, if one is due."""
        now = time.monotonic()
        if self.watchdog_s and now - self._alive >= self.watchdog_s:
            self._alive = now
            self._send(
                "WATCHDOG=1", flags=socket.MSG_DONTWAIT
            )  # the accept loop must not wait; the next one counts too

    def keep(self, name: str, sock: socket.socket) -> None:
        """Have the manager keep a listening socket, so that a restart refuses no connection."""
        self._send("FDSTORE=1", f"FDNAME={name}", fd=sock.fileno())

    def forget(self, name: str) -> None:
        """Have the manager close what it keeps under `name`."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def settle(self) -> None:
        """Wait until the manager has acted on everything sent so far, at most 5 s (sd_notify_barrier(3))."""
        if self._socket is None:
            return
        reading, writing = os.pipe()
        try:
            self._send("BARRIER=1", fd=writing)
            os.close(writing)
            poll = select.poll()
            poll.register(reading, select.POLLHUP)
            poll.poll(BARRIER_MS)
        finally:
            os.close(reading)


def _line(text: str) -> str:
    return text.replace("\n", " ")


def take_passed_sockets() -> list[tuple[str, socket.socket]]:
    """The listening sockets that came from the service manager, with their names (sd_listen_fds(3)).

    Raises: ConfigError when something else was passed.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    if int(count) > MAX_PASSED:
        raise ConfigError(f"{count} sockets were passed: at most {MAX_PASSED} are possible")
    found = []
    for index in range(int(count)):
        fd = FIRST_PASSED + index
        try:
            listens = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            listens = False
        if not listens:
            raise ConfigError(f"descriptor {fd} was passed and is no socket")
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigError(f"descriptor {fd} was passed and is no listening stream socket")
        found.append((names[index] if index < len(names) else "", sock))
    return found
