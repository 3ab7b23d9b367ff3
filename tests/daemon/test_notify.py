"""What the service manager is told, from a manager's side of the socket."""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.clients import ask, done
from tests.peers import ROOT

DEADLINE_S = 30.0


PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


class Manager:
    """A notification socket, and the one service that knows of it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(DEADLINE_S)
        self.descriptors: list[int] = []
        self.names: list[str] = []
        self.service: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        """A service; when descriptors came before, the first is passed to it under the name it came with."""
        command = [sys.executable, str(ROOT / "hexz_serve.py"), *map(str, arguments)]
        if self.descriptors:
            command = [sys.executable, "-c", PASS, str(self.descriptors[0]), self.names[0], *command]
        self.service = subprocess.Popen(
            command,
            pass_fds=self.descriptors,
            env={**os.environ, "NOTIFY_SOCKET": self.path, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self.service

    def hear(self) -> dict[str, str]:
        """The next message; descriptors that came with it are kept open."""
        room = socket.CMSG_SPACE(4)
        text, extra, _, _ = self.socket.recvmsg(4096, room)
        for _, _, data in extra:
            self.descriptors.extend(array.array("i", data[:4]))
        said = dict(line.split("=", 1) for line in text.decode().splitlines())
        if "FDSTORE" in said:
            self.names.append(said["FDNAME"])
        return said

    def wait_for(self, key: str) -> list[dict[str, str]]:
        """What was said up to and including the message with `key`."""
        heard = [self.hear()]
        while key not in heard[-1]:
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        if self.service is not None and self.service.poll() is None:
            self.service.kill()
            self.service.wait()
        self.socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_a_failed_start_has_been_heard_before_it_ends(manager: Manager) -> None:
    service = manager.start("none.hxz")
    assert manager.hear() == {"STATUS": f"{Path('none.hxz').resolve()}: no such file"}
    assert manager.hear() == {"BARRIER": "1"}
    assert service.poll() is None  # it waits for the manager to close what came with the barrier
    os.close(manager.descriptors.pop())
    assert service.wait(DEADLINE_S) == 66


def test_a_manager_that_knows_no_barrier_is_not_waited_for_for_ever(manager: Manager) -> None:
    assert manager.start("none.hxz").wait(DEADLINE_S) == 66


def test_a_reload_that_fails_ends_all_the_same(manager: Manager, tmp_path: Path, snapshot_file: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    service = manager.start("--http-port", 0, "--access-log", folder / "access", snapshot_file)
    manager.wait_for("READY")
    shutil.rmtree(folder)
    service.send_signal(signal.SIGHUP)
    heard = manager.wait_for("RELOADING")[-1]
    assert int(heard["MONOTONIC_USEC"]) > 0
    manager.wait_for("READY")
    service.send_signal(signal.SIGTERM)
    assert manager.wait_for("STOPPING")
    assert service.wait(DEADLINE_S) == 0


def test_the_manager_hears_how_long_an_exit_may_take(manager: Manager, tmp_path: Path, snapshot_file: Path) -> None:
    control = tmp_path / "api.sock"
    service = manager.start("--http-port", 0, "--control", control, "--drain-timeout", 1, snapshot_file)
    manager.wait_for("READY")
    done(ask(control, "PUT", "/api/v1/daemon/exit?drain_timeout=600"))
    assert int(manager.wait_for("STOPPING")[-1]["EXTEND_TIMEOUT_USEC"]) >= 600_000_000
    assert service.wait(DEADLINE_S) == 0


def test_a_busy_manager_still_hears_that_it_is_ready(manager: Manager, snapshot_file: Path) -> None:
    crowd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    crowd.setblocking(False)
    filled = 0
    with crowd, contextlib.suppress(BlockingIOError):
        while True:
            crowd.sendto(b"OTHER=1", manager.path)
            filled += 1
    manager.start("--http-port", 0, snapshot_file)
    for _ in range(filled):
        assert manager.hear() == {"OTHER": "1"}
    manager.wait_for("READY")


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_the_manager_keeps_is_used_again(
    manager: Manager, snapshot_file: Path, tmp_path: Path, kind: str, end: signal.Signals
) -> None:
    path = tmp_path / "http"
    where = ("--http-port", 0) if kind == "tcp" else ("--http-socket", path)
    service = manager.start(*where, snapshot_file)
    manager.wait_for("READY")
    service.send_signal(end)
    service.wait(DEADLINE_S)
    with socket.socket(fileno=os.dup(manager.descriptors[0])) as kept:
        address = kept.getsockname() if kind == "tcp" else str(path)
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as early:
        early.settimeout(DEADLINE_S)
        early.connect(address)  # while nobody runs
        manager.start(*where, snapshot_file)
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert early.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_what_is_kept_for_another_address_is_let_go(manager: Manager, snapshot_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "http"
    service = manager.start("--http-socket", path, snapshot_file)
    manager.wait_for("READY")
    service.kill()
    service.wait(DEADLINE_S)
    path.unlink()  # the name leads nowhere any more: what was kept is of no use
    manager.start("--http-socket", path, snapshot_file)
    assert manager.wait_for("FDSTOREREMOVE")[-1]["FDNAME"] == manager.names[0]
    manager.wait_for("BARRIER")
    while manager.descriptors:
        os.close(manager.descriptors.pop())
    manager.wait_for("READY")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_signs_of_life_go_on_while_it_drains(manager: Manager, snapshot_file: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "http")
    # Three signs for each limit of 1.5 s; WATCHDOG_PID is left out: the service's is not known before its start.
    service = manager.start("--http-socket", path, snapshot_file, WATCHDOG_USEC="1500000")
    manager.wait_for("READY")
    with socket.socket(socket.AF_UNIX) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        slow.connect(path)
        slow.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
        slow.recv(1024)
        manager.wait_for("WATCHDOG")
        service.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING")
        manager.wait_for("WATCHDOG")
        service.send_signal(signal.SIGTERM)
        service.wait(DEADLINE_S)
