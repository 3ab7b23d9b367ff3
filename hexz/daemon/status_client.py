"""Ask a daemon that runs how it does, over its control socket."""

from __future__ import annotations

import http.client
import os
import socket
from typing import Any

from hexz.errors import HexzError, JsonError
from hexz.jsontext import load_json
from hexz.options.parser import parse_arguments

__all__ = ["ask_daemon", "control_socket_of"]

PATIENCE_S = 5.0
MAX_ANSWER = 64 << 20
"""Longest answer read, bytes: every snapshot is described in it."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self._path)


def ask_daemon(path: str) -> dict[str, Any]:
    """What the daemon behind the control socket at `path` says of itself.

    Raises: HexzError when it does not answer.
    """
    connection = _Connection(path)
    try:
        connection.request("GET", "/api/v2/daemon")
        answer = load_json(connection.getresponse().read(MAX_ANSWER))
        return dict(answer["hexz"])
    except (OSError, http.client.HTTPException, JsonError, KeyError, TypeError) as error:
        raise HexzError(f"{path}: the daemon does not answer: {error}") from error
    finally:
        connection.close()


def control_socket_of(pid: int) -> str | None:
    """The control socket that process `pid` was told to have; None without one, or when that is not to be known."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
        folder = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None
    # Before the program's own arguments there are Python's: its options, and the script or "-m" and the module.
    for first in range(1, min(len(words), 8)):
        try:
            path = parse_arguments(words[first:]).options.control
        except HexzError:
            continue
        if path:
            return os.path.join(folder, path)
    return None
