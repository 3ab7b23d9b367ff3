"""Where a daemon listens: on sockets that were passed or kept, or on addresses; and how many connections fit."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from collections.abc import Iterator

from hexz.daemon.fd_store import FdStore
from hexz.daemon.lifecycle import MakeListener
from hexz.daemon.systemd import Notifier
from hexz.errors import ConfigError
from hexz.options.parser import DEFAULT_PORTS, Settings
from hexz.servers.addresses import UnixAddress, open_socket
from hexz.servers.base import Listener
from hexz.servers.spare import SPARE_PLACES

__all__ = ["CONTROL_PLACES", "fit_connections", "listen", "raise_descriptors", "sort_passed"]

log = logging.getLogger("hexz")

RESERVED_DESCRIPTORS = 64
"""Descriptors that connections leave to snapshots to be opened, logs, and what reads need."""
CONTROL_PLACES = 32
"""Connections that the control socket may have."""


def sort_passed(
    passed: list[tuple[str, socket.socket]], settings: Settings, kept: FdStore
) -> list[tuple[str, socket.socket]]:
    """Sockets of socket units, by protocol; those of our own that the manager kept over a restart go to `kept`.

    Raises: ConfigError.
    """
    activated: list[tuple[str, socket.socket]] = []
    for name, sock in passed:
        if name in DEFAULT_PORTS:
            activated.append((name, sock))
        elif name in ("", "unknown") and len(settings.listen) == 1:
            activated.append((next(iter(settings.listen)), sock))
        elif not kept.add(name, sock):
            known = " or ".join(DEFAULT_PORTS)
            raise ConfigError(f"a socket called {name!r} was passed: FileDescriptorName= must be {known}")
    return activated


def listen(
    settings: Settings,
    notifier: Notifier,
    activated: list[tuple[str, socket.socket]],
    kept: FdStore,
    listener_on: MakeListener,
) -> Iterator[tuple[str, Listener]]:
    """The listeners, with their protocols: on the `activated` sockets, or else on the addresses of `settings`.

    Raises: ListenError, ConfigError.
    """
    if activated:
        for protocol, sock in activated:
            listener = listener_on(protocol, sock, None, 0)
            listener.shared = True
            yield protocol, listener
        return
    places = [
        (protocol, number, address, kept.take(protocol, number, address))
        for protocol, addresses in settings.listen.items()
        for number, address in enumerate(addresses)
    ]
    kept.drop_rest()
    for protocol, number, address, taken in places:
        own_path = address.path if isinstance(address, UnixAddress) else None
        listener = listener_on(protocol, taken or open_socket(address), own_path, 0)
        listener.shared = notifier.managed
        kept.keep(protocol, number, address, listener.socket)
        yield protocol, listener


def raise_descriptors() -> None:
    """Use as many descriptors as the system lets this process have, rather than as few as it begins with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # more than the kernel's own limit: the old one stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fit_connections(wanted: int, listeners: int) -> int:
    """How many connections a listener may have, so that descriptors are left for everything else."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    used = len(os.listdir("/proc/self/fd"))
    reserved = min(RESERVED_DESCRIPTORS + CONTROL_PLACES + SPARE_PLACES, limit // 2)
    most = max((limit - used - reserved) // max(listeners, 1), 1)
    if most < wanted:
        log.warning(
            "--max-connections %d: %d for each listener, because this process may have %d descriptors",
            wanted,
            most,
            limit,
        )
    return min(wanted, most)
