"""Clients of the control socket: one for any request, a supervisor, and strict readers of the answers."""

from __future__ import annotations

import array
import http.client
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.peers import Server

WAIT_S = 30.0


class UnixConnection(http.client.HTTPConnection):
    """The standard library's client on a unix socket."""

    def __init__(self, path: Path, timeout: float = WAIT_S) -> None:
        super().__init__("unix", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Answer:
    """A status and what came with it."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """An error's message; the shape of the error is checked too."""
        value = self.json
        assert set(value) == {"code", "message"} and all(isinstance(text, str) for text in value.values()), value
        message: str = value["message"]
        return message


def ask(path: Path, method: str, target: str, body: object = None, timeout: float = WAIT_S) -> Answer:
    """One request on a connection of its own."""
    connection = UnixConnection(path, timeout)
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    try:
        connection.request(method, target, data)  # type: ignore[arg-type]
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def done(answer: Answer) -> None:
    """What Kata's client takes for success, and nothing else."""
    assert (answer.status, answer.body) == (204, b""), answer.body


def mount(path: Path, mountpoint: str, source: Path, method: str = "POST", **more: object) -> Answer:
    """Mount as nydusctl does, which sends the configuration as text."""
    body = {"source": str(source), "fs_type": "rafs", "config": "", **more}
    return ask(path, method, f"/api/v1/mount?mountpoint={quote(mountpoint, safe='')}", body)


class Controlled(Server):
    """A daemon with a control socket."""

    def __init__(self, control: Path, *arguments: object, **more: Any) -> None:
        self.control = control
        super().__init__("--control", control, *arguments, **more)

    def ask(self, method: str, target: str, body: object = None) -> Answer:
        return ask(self.control, method, target, body)

    @property
    def state(self) -> str:
        state: str = self.ask("GET", "/api/v1/daemon").json["state"]
        return state


class Supervisor:
    """Keeps one descriptor and opaque bytes between two processes, one exchange at a time (nydus-snapshotter)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1
        self.state = b""

    def _listen(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(WAIT_S)
        sock.bind(str(self.path))
        sock.listen(1)
        return sock

    def receive(self, control: Path) -> Answer:
        """Have the daemon behind `control` send its state."""
        with self._listen() as listening:
            answers: list[Answer] = []
            asking = threading.Thread(
                target=lambda: answers.append(ask(control, "PUT", "/api/v1/daemon/fuse/sendfd")), daemon=True
            )
            asking.start()
            peer, _ = listening.accept()
            with peer:
                peer.settimeout(WAIT_S)
                parts, fds = [], array.array("i")
                while True:
                    data, ancillary, _, _ = peer.recvmsg(32 << 10, socket.CMSG_SPACE(16 * fds.itemsize))
                    for _, _, content in ancillary:
                        fds.frombytes(content)
                    if not data:
                        break
                    parts.append(data)
            asking.join(WAIT_S)
        assert len(fds) == 1, "a supervisor keeps exactly one descriptor"
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.state = fds[0], b"".join(parts)
        return answers[0]

    def send(self, control: Path) -> Answer:
        """Have the daemon behind `control` take over what was kept."""
        with self._listen() as listening:
            answers: list[Answer] = []
            asking = threading.Thread(
                target=lambda: answers.append(ask(control, "PUT", "/api/v1/daemon/fuse/takeover")), daemon=True
            )
            asking.start()
            peer, _ = listening.accept()
            with peer:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.fd]))]
                sent = peer.sendmsg([self.state], rights)
                peer.sendall(self.state[sent:])
            asking.join(WAIT_S)
        return answers[0]

    def send_refused(self, control: Path) -> Answer:
        """Ask a daemon that does not come to the supervisor."""
        return ask(control, "PUT", "/api/v1/daemon/fuse/takeover")

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
