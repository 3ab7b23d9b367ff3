"""--status and --stop: what can be known and done about a daemon that runs, from outside."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from hexz.daemon.default_files import default_pid_file
from hexz.daemon.logs import candidate_folders
from hexz.daemon.pidfile import facts_of, running_pid, stop_running
from hexz.daemon.status_client import ask_daemon, control_socket_of
from hexz.errors import HexzError
from hexz.options.parser import Settings
from hexz.printable import printable
from hexz.servers.addresses import Address, UnixAddress

__all__ = ["NOT_RUNNING", "ask"]

NOT_RUNNING = 3
"""Exit status of --status when no daemon runs (LSB)."""
STOP_MARGIN_S = 10.0
KNOCK_S = 1.0
"""How long whoever listens at an address may take to take a connection."""


def ask(settings: Settings) -> int:
    """Do what --status or --stop asks for; returns the exit status.

    Raises: HexzError when the daemon is not stopped, or it is not to be known which one is meant.
    """
    options = settings.options
    path = options.pid_file or default_pid_file(_port(settings))
    pid = running_pid(path) if path is not None else None
    if options.status:
        return _status(settings, path, pid)
    if path is not None and pid is not None:
        if not stop_running(path, options.drain_timeout + STOP_MARGIN_S):
            raise HexzError(f"pid {pid} does not end: it may still drain")
        print(f"stopped, pid {pid}")
        return 0
    strangers = _who_answers(settings)
    if strangers:
        remedy = "stop it as the user who started it, with the same XDG_RUNTIME_DIR, or by its service"
        raise HexzError(f"not stopped: {_nothing_found(settings)}, but something answers on {strangers}: {remedy}")
    print("not running")
    return 0


def _port(settings: Settings) -> int | None:
    """The port that was named, by any option; a daemon's files carry the first one."""
    options = settings.options
    named = (options.port, options.http_port, options.nbd_port, options.s3_port)
    return next((port for port in named if port), None)


def _status(settings: Settings, path: str | None, pid: int | None) -> int:
    """Whether the daemon runs, where it listens and logs, and how it does if it has a control socket."""
    control = settings.options.control or (control_socket_of(pid) if pid else None)
    answer: dict[str, Any] = {}
    if control is not None:
        try:
            answer = ask_daemon(control)
        except HexzError as error:
            print(f"hexz-serve: {printable(str(error))}", file=sys.stderr)
    facts = facts_of(path, pid) if path is not None and pid is not None else {}
    pid = answer.get("pid", pid)
    if pid:
        lines = [f"running, pid {pid}", *_places(facts, path)]
    else:
        strangers = _who_answers(settings)
        found = f": {_nothing_found(settings)}; something answers on {strangers}" if strangers else ""
        lines = [f"not running{found}"]
    print("\n".join(printable(str(line)) for line in [*lines, *answer.get("status", [])]))
    return 0 if pid else NOT_RUNNING


def _places(facts: dict[str, Any], path: str | None) -> list[str]:
    lines = [f"listening {url}" for url in facts.get("listening", [])]
    files = facts.get("pid_files") or [path]
    lines += [f"pid file {name}" for name in files if name]
    return lines + [f"logging to {name}" for name in facts.get("logs", [])]


def _nothing_found(settings: Settings) -> str:
    path = settings.options.pid_file
    return f"nobody holds the pid file {path}" if path else f"no pid file in {' or '.join(candidate_folders())}"


def _who_answers(settings: Settings) -> str:
    """Where somebody listens of the addresses that are meant, as text; without a port, those of the defaults.

    Who names a pid file and no address asks for that one daemon only.
    """
    options = settings.options
    named = _port(settings) or options.http_socket or options.nbd_socket
    if options.pid_file and not named:
        return ""
    addresses = [address for of_protocol in settings.listen.values() for address in of_protocol]
    return " and ".join(str(address) for address in addresses if _answers(address))


def _answers(address: Address) -> bool:
    family = socket.AF_UNIX if isinstance(address, UnixAddress) else socket.AF_INET
    with contextlib.suppress(OSError):
        if isinstance(address, UnixAddress):
            with socket.socket(family, socket.SOCK_STREAM) as knocking:
                knocking.settimeout(KNOCK_S)
                knocking.connect(address.path)
                return True
        if address.port:
            with socket.create_connection((address.host, address.port), KNOCK_S):
                return True
    return False
