"""A process replaced by another under load: nothing is refused, nothing fails, no byte is wrong."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.control.clients import WAIT_S, Controlled, Supervisor, UnixConnection, ask, done, mount
from tests.peers import need, need_libnbd, run
from tests.waiting import until

REPLACEMENTS = 10
SPAN = 65536
SINGLE = ("fresh", "kept")
HOLD = """
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
for line in sys.stdin:
    offset = int(line)
    h.block_status(4096, offset, lambda *_: 0)
    print(h.pread(4096, offset).hex(), flush=True)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    keeping = Supervisor(tmp_path / "supervisor.sock")
    yield keeping
    keeping.close()


class Chain:
    """A daemon, and the processes that follow it."""

    def __init__(
        self,
        folder: Path,
        supervisor: Supervisor,
        *arguments: object,
        own: tuple[object, ...] = (),
        drain_timeout: int = 20,
    ) -> None:
        """`own` are arguments that every process of the chain gets, besides those of the first."""
        self.folder = folder
        self.supervisor = supervisor
        self.number = 0
        self.own = ("--supervisor", supervisor.path, "--drain-timeout", drain_timeout, *own)
        self.now = Controlled(folder / "api0.sock", *self.own, *arguments)
        self.urls = self.now.urls
        self.draining: list[Controlled] = []

    def successor(self) -> Controlled:
        self.number += 1
        return Controlled(self.folder / f"api{self.number}.sock", *self.own, "--upgrade")

    def replace(self, wait: bool = True) -> None:
        """The order of nydus-snapshotter; `wait` for the end of the process that is replaced."""
        done(self.supervisor.receive(self.now.control))
        new, old = self.successor(), self.now
        assert new.state == "INIT"
        done(self.supervisor.send(new.control))
        assert new.state == "READY"
        done(ask(old.control, "PUT", "/api/v1/daemon/exit"))
        done(ask(new.control, "PUT", "/api/v1/daemon/start"))
        assert new.state == "RUNNING"
        self.now = new
        if wait:
            assert old.process.wait(WAIT_S) == 0
            old.stop()
        else:
            self.draining.append(old)

    def stop(self) -> None:
        """End every process that there still is."""
        for process in (*self.draining, self.now):
            process.stop()


def test_ten_replacements_under_load(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, disk_image: Path
) -> None:
    data = disk_image.read_bytes()
    chain = Chain(tmp_path, supervisor, "--http-port", 0, "--nbd-port", 0, snapshot_file)
    base, nbd = chain.urls["http"].rstrip("/"), chain.urls["nbd"]
    over = threading.Event()
    wrong: list[str] = []
    rounds: dict[str, int] = {}

    def repeat(name: str, action: Callable[[int], bytes | None]) -> None:
        number = 0
        while not over.is_set():
            number += 1
            offset = number * 777_777 % (len(data) - SPAN)
            try:
                got = action(offset)
            except Exception as error:
                wrong.append(f"{name}: {error!r}")
                return
            if got is not None and got != data[offset : offset + SPAN]:
                wrong.append(f"{name}: wrong bytes at {offset}")
                return
            rounds[name] = number

    def fresh_connection(offset: int) -> bytes:
        request = urllib.request.Request(f"{base}/disk", headers={"Range": f"bytes={offset}-{offset + SPAN - 1}"})
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            body: bytes = response.read()
            return body

    kept = http.client.HTTPConnection(urlsplit(base).netloc, timeout=WAIT_S)

    def kept_connection(offset: int) -> bytes:
        kept.request("GET", "/disk", headers={"Range": f"bytes={offset}-{offset + SPAN - 1}"})
        return kept.getresponse().read()

    def copy(offset: int) -> None:
        run(need("nbdcopy", "libnbd-bin"), "--connections=2", f"{nbd}snap", tmp_path / "copy")
        if (tmp_path / "copy").read_bytes() != data:
            wrong.append("nbdcopy: wrong bytes")

    idle = hold(f"{nbd}snap")
    assert read(idle, 4096) == data[4096:8192]
    loads = [
        threading.Thread(target=repeat, args=item)
        for item in (("fresh", fresh_connection), ("kept", kept_connection), ("nbdcopy", copy))
    ]
    for load in loads:
        load.start()
    try:
        for number in range(REPLACEMENTS):
            before = dict(rounds)
            chain.replace()
            # The successor really serves before it is followed in turn.
            until(lambda seen=before: wrong or all(rounds.get(key, 0) > seen.get(key, 0) for key in ("fresh", "kept")))
            assert read(idle, 8192 * number) == data[8192 * number : 8192 * number + 4096]
    finally:
        over.set()
        for load in loads:
            load.join()
    assert not wrong
    assert all(rounds.get(name, 0) for name in ("fresh", "kept", "nbdcopy"))
    idle.communicate(timeout=WAIT_S)
    assert chain.now.stop() == 0


def hold(url: str) -> subprocess.Popen[str]:
    """An NBD client that reads where it is told."""
    return subprocess.Popen([need_libnbd(), "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read(client: subprocess.Popen[str], offset: int) -> bytes:
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(f"{offset}\n")
    client.stdin.flush()
    return bytes.fromhex(client.stdout.readline())


def test_mounts_and_unix_sockets_go_along(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, images: list[tuple[Path, bytes]]
) -> None:
    path, content = images[1]
    http_socket = tmp_path / "http.sock"
    chain = Chain(tmp_path, supervisor, "--http-socket", http_socket, snapshot_file)
    done(mount(chain.now.control, "/deep/er", path))
    curl = (need("curl", "curl"), "-sf", "--unix-socket", http_socket)
    for _ in range(2):
        chain.replace()
        assert set(chain.now.ask("GET", "/api/v1/daemon").json["backend_collection"]) == {"/snap", "/deep/er"}
        run(*curl, "-o", tmp_path / "got", "http://x/snapshots/deep%2Fer/disk")
        assert (tmp_path / "got").read_bytes() == content
    # What came with the arguments of the first process is read again by the last, and what was mounted stays.
    chain.now.process.send_signal(signal.SIGHUP)
    until(lambda: "reloaded: 2 snapshots" in chain.now.stderr())
    assert http_socket.exists()
    chain.now.stop()
    assert not http_socket.exists()


def test_after_kill_9_a_successor_takes_over_what_was_kept(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-port", 0, snapshot_file)
    done(supervisor.receive(chain.now.control))
    watching = UnixConnection(chain.now.control)
    watching.request("GET", "/api/v1/daemon")
    watching.getresponse().read()
    chain.now.stop(signal.SIGKILL)
    assert watching.sock.recv(1) == b""  # how a supervisor notices
    # Nobody listens, and yet nobody is refused: the supervisor holds the queue.
    answers: list[bytes] = []
    asking = threading.Thread(
        target=lambda: answers.append(urllib.request.urlopen(f"{chain.urls['http']}info", timeout=WAIT_S).read())
    )
    asking.start()
    dies = chain.successor()
    done(supervisor.send(dies.control))
    dies.stop(signal.SIGKILL)  # before it could start: another one may try
    new = chain.successor()
    done(supervisor.send(new.control))
    assert not answers
    done(new.ask("PUT", "/api/v1/daemon/start"))
    asking.join(WAIT_S)
    assert len(answers) == 1
    assert new.ask("PUT", "/api/v1/daemon/start").status == 400
    new.stop()


def test_a_takeover_that_fails_can_be_tried_again(tmp_path: Path, supervisor: Supervisor, snapshot_file: Path) -> None:
    chain = Chain(tmp_path, supervisor, "--http-port", 0, snapshot_file)
    done(supervisor.receive(chain.now.control))
    new = chain.successor()
    body = {"source": str(snapshot_file), "config": ""}
    assert new.ask("POST", "/api/v1/mount?mountpoint=/a", body).status == 503
    assert new.ask("GET", "/readyz").status == 503
    supervisor.path.unlink(missing_ok=True)
    assert new.ask("PUT", "/api/v1/daemon/fuse/takeover").status == 500
    good, supervisor.state = supervisor.state, b'{"version": 99}'
    refused = supervisor.send(new.control)
    assert refused.status == 500 and "version" in refused.message
    supervisor.state = good.replace(b"snap.hxz", b"gone.hxz")
    refused = supervisor.send(new.control)
    assert refused.status == 500 and "gone.hxz: no such file" in refused.message
    assert new.state == "INIT"
    supervisor.state = good
    done(supervisor.send(new.control))
    assert new.state == "READY"
    assert supervisor.send_refused(new.control).status == 400
    new.stop()
    chain.now.stop()


def test_a_hanging_supervisor_and_a_dribbling_client_hold_up_nobody(tmp_path: Path, snapshot_file: Path) -> None:
    hanging = tmp_path / "supervisor.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(hanging))
        listening.listen(0)
        arguments = ("--supervisor", hanging, "--http-port", 0, snapshot_file)
        with Controlled(tmp_path / "api.sock", *arguments) as daemon:
            fill = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
            for sock in fill:
                sock.setblocking(False)
                sock.connect_ex(str(hanging))
            answers: list[int] = []
            sending = threading.Thread(
                target=lambda: answers.append(daemon.ask("PUT", "/api/v1/daemon/fuse/sendfd").status)
            )
            sending.start()
            dribble = UnixConnection(daemon.control)
            dribble.connect()
            for _ in range(20):
                dribble.sock.sendall(b"G")
                assert daemon.ask("GET", "/api/v1/daemon").json["state"] == "RUNNING"
                time.sleep(0.1)  # so that the state is being sent by the time of the last
            # Whoever comes while the state is being sent is told to come again, and does not wait.
            assert not answers and daemon.ask("PUT", "/api/v1/daemon/fuse/sendfd").status == 503
            sending.join(WAIT_S)
            assert answers == [500]
            for sock in (*fill, dribble.sock):
                sock.close()
