"""The time of day jumps by years while the daemon works: nothing that waits or counts may notice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import requests

from tests.peers import Server, need_libnbd

DEADLINE_S = 30.0
YEAR = 365 * 86400
JUMPS = (10 * YEAR, -12 * YEAR)

ATTACHED = """
import nbd, sys
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
for line in sys.stdin:
    print(handle.pread(512, 0).hex(), flush=True)
"""


# The machine's own clock cannot be set for one process, and libfaketime bends sleeps that go by the monotonic clock.
JUMPING = """
import os, time
_time, _time_ns, _clock = time.time, time.time_ns, os.environ["JUMPING_CLOCK"]

def _jump():
    with open(_clock) as file:
        return int(file.read() or 0)

time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + _jump() * 10**9
"""


class Clock:
    """The time of day as a daemon sees it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock"
        self.set(0)
        self.modules = folder / "modules"
        self.modules.mkdir()
        (self.modules / "sitecustomize.py").write_text(JUMPING)

    def set(self, ahead: int) -> None:
        """Let it be so many seconds ahead."""
        aside = self.path.with_suffix(".new")
        aside.write_text(str(ahead))
        aside.rename(self.path)

    def server(self, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Server:
        """A daemon with this clock."""
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(self.modules))
            patch.setenv("JUMPING_CLOCK", str(self.path))
            return Server(*arguments)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def seconds_ahead(url: str) -> float:
    """How far the daemon's Date is ahead of the clock."""
    date = requests.get(f"{url}/healthz", timeout=DEADLINE_S).headers["Date"]
    return parsedate_to_datetime(date).timestamp() - time.time()


@pytest.mark.parametrize("jump", JUMPS)
def test_clients_notice_nothing(
    clock: Clock, snapshot_file: Path, disk_image: Path, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = disk_image.read_bytes()
    python = need_libnbd()
    ports = ("--http-port", 0, "--nbd-port", 0)
    with clock.server(monkeypatch, *ports, "--drain-timeout", 60, snapshot_file) as server:
        port = int(server.http.rpartition(":")[2])
        attached = subprocess.Popen(
            [python, "-c", ATTACHED, f"{server.nbd}snap"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        slow = socket.create_connection(("127.0.0.1", port))
        with requests.Session() as session, attached, slow:
            assert attached.stdin is not None and attached.stdout is not None
            idle = session.get(f"{server.http}/disk", headers={"Range": "bytes=0-511"}, timeout=DEADLINE_S)
            assert idle.content == image[:512]
            slow.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
            begin = slow.recv(1024)

            clock.set(jump)
            assert abs(seconds_ahead(server.http) - jump) < 1000  # the jump is real: the Date header shows it
            late = session.get(f"{server.http}/disk", headers={"Range": "bytes=512-1023"}, timeout=DEADLINE_S)
            assert late.content == image[512:1024]
            print("", file=attached.stdin, flush=True)
            assert bytes.fromhex(attached.stdout.readline()) == image[:512]
            attached.stdin.close()
            assert attached.wait(DEADLINE_S) == 0

            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(OSError):
                while True:  # until the drain has begun
                    socket.create_connection(("127.0.0.1", port)).close()
            clock.set(-jump)  # the time limit of the drain is not the time of day
            while part := slow.recv(1 << 20):
                begin += part
            body = begin.partition(b"\r\n\r\n")[2]
            assert body == image
        assert server.process.wait(DEADLINE_S) == 0


def test_limits_are_not_lost_in_time(
    clock: Clock, snapshot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = tmp_path / "access"
    limited = ("--http-port", 0, "--rate-limit", "3", "--access-log", access)
    with clock.server(monkeypatch, *limited, snapshot_file) as server:

        def asked() -> int:
            return requests.get(f"{server.http}/disk", headers={"Range": "bytes=0-0"}, timeout=DEADLINE_S).status_code

        for jump in (0, *JUMPS):
            clock.set(jump)
            deadline = time.monotonic() + DEADLINE_S
            while asked() != 429:  # neither does a jump forward lift the limit
                assert time.monotonic() < deadline
            while asked() != 206:  # nor does one back lock everybody out
                assert time.monotonic() < deadline
                time.sleep(0.1)
        os.kill(server.process.pid, signal.SIGHUP)
        deadline = time.monotonic() + DEADLINE_S
        while "reloaded: 1 snapshots" not in server.stderr():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert '"status": 429' in access.read_text()
