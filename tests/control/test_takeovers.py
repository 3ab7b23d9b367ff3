"""Replacements that do not go by the book: failed halves, early ends, states that make no sense."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.errors import SystemFailure
from hexz.servers import handover
from tests.control.clients import WAIT_S, Controlled, Supervisor, ask, done
from tests.control.test_upgrade import Chain
from tests.http.test_access import certificate
from tests.peers import need, run, write_secret
from tests.waiting import until


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    keeping = Supervisor(tmp_path / "supervisor.sock")
    yield keeping
    keeping.close()


@pytest.fixture
def http_socket(tmp_path: Path) -> Path:
    return tmp_path / "http.sock"


def answers(http_socket: Path) -> bool:
    """Whether a daemon serves at a unix socket."""
    curl = (need("curl", "curl"), "-sf", "--max-time", "30", "--unix-socket", http_socket, "http://x/info")
    return run(*curl, check=False).returncode == 0


def descriptors(daemon: Controlled) -> list[str]:
    """What the daemon has open but for the spare ones, which come a moment after the start."""
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(entry))
    return [name for name in found if name != os.devnull]


def test_states_that_make_no_sense_change_nothing(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, http_socket: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-socket", http_socket, snapshot_file)
    done(supervisor.receive(chain.now.control))
    good = supervisor.state
    new = chain.successor()
    assert supervisor.send_refused(new.control).status == 500  # nobody listens; everything is loaded now
    before = descriptors(new)
    state = json.loads(good)
    (entry,) = state["mounts"]["snapshots"]
    for odd in (
        {**state["mounts"], "snapshots": [entry, {**entry, "path": "/x\0"}]},
        {**state["mounts"], "snapshots": [entry, {**entry, "name": "other", "path": 5}]},
        {**state["mounts"], "snapshots": [entry, {**entry, "name": "../x"}]},
        {**state["mounts"], "snapshots": [entry, entry]},
        {**state["mounts"], "default": "nobody"},
        {**state["mounts"], "default": ["snap"]},
        {**state["mounts"], "root": {}},
    ):
        supervisor.state = json.dumps({**state, "mounts": odd}).encode()
        refused = supervisor.send(new.control)
        assert refused.status == 500 and "(Upgrade(DaemonAbnormal))" in refused.message, (odd, refused.body)
        info = new.ask("GET", "/api/v1/daemon").json
        assert (info["state"], info["backend_collection"]) == ("INIT", {}), odd
    kept, supervisor.fd = supervisor.fd, os.open(snapshot_file, os.O_RDONLY)
    supervisor.state = good
    refused = supervisor.send(new.control)
    assert refused.status == 500 and "(Upgrade(DaemonAbnormal))" in refused.message
    os.close(supervisor.fd)
    supervisor.fd = kept
    until(lambda: len(descriptors(new)) <= len(before) + 1)  # one is the connection that asks
    done(supervisor.send(new.control))
    new.stop()
    chain.now.stop()


def test_settings_that_do_not_fit_leave_the_successor_as_it_was(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path
) -> None:
    tokens = tmp_path / "tokens"
    chain = Chain(tmp_path, supervisor, "--http-port", 0, snapshot_file)
    done(supervisor.receive(chain.now.control))
    arguments = ("--supervisor", supervisor.path, "--upgrade", "--token-file", tokens)
    # The snapshots of its arguments are for reloads: what is served comes from the other process.
    with Controlled(tmp_path / "new.sock", *arguments, snapshot_file) as new:
        new.process.send_signal(signal.SIGHUP)
        refused = supervisor.send(new.control)
        assert refused.status == 500 and str(tokens) in refused.message
        assert new.ask("GET", "/api/v1/daemon").json["backend_collection"] == {}
        write_secret(tokens, "somebody 0123456789abcdef\n")
        tokens.chmod(0o600)
        done(supervisor.send(new.control))
        assert new.state == "READY"
    chain.now.stop()


def test_a_successor_opens_nothing_to_a_network_that_its_own_options_do_not(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--bind", "0.0.0.0", "--http-port", 0, "--allow-anonymous", snapshot_file)
    done(supervisor.receive(chain.now.control))
    arguments = ("--supervisor", supervisor.path, "--upgrade", snapshot_file)
    with Controlled(tmp_path / "new.sock", *arguments) as new:
        refused = supervisor.send(new.control)
        assert refused.status >= 400 and "--allow-anonymous=http" in refused.message
        assert new.state == "INIT"
    with Controlled(tmp_path / "new.sock", *arguments, "--allow-anonymous=http") as new:
        done(supervisor.send(new.control))
        assert new.state == "READY"
    chain.now.stop()


def test_a_successor_that_ends_before_its_start_leaves_the_other_alone(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, http_socket: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-socket", http_socket, snapshot_file)
    done(supervisor.receive(chain.now.control))
    for by_request in (True, False):
        new = chain.successor()
        done(supervisor.send(new.control))
        if by_request:
            done(new.ask("PUT", "/api/v1/daemon/exit"))
            new.process.wait(WAIT_S)
        assert new.stop() == 0
        assert answers(http_socket)
    chain.now.stop()


def test_a_stop_of_the_old_process_leaves_its_successor_the_sockets_names(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, http_socket: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-socket", http_socket, snapshot_file)
    done(supervisor.receive(chain.now.control))
    new = chain.successor()
    done(supervisor.send(new.control))
    chain.now.stop(signal.SIGTERM)
    done(new.ask("PUT", "/api/v1/daemon/start"))
    assert answers(http_socket)
    new.stop()
    assert not http_socket.exists()


def test_a_socket_that_took_the_name_meanwhile_is_left_alone(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, http_socket: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-socket", http_socket, snapshot_file)
    done(supervisor.receive(chain.now.control))
    http_socket.unlink()
    gone = chain.successor()
    done(supervisor.send(gone.control))
    gone.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as foreign:
        foreign.bind(str(http_socket))
        new = chain.successor()
        done(supervisor.send(new.control))
        done(ask(chain.now.control, "PUT", "/api/v1/daemon/exit"))
        done(new.ask("PUT", "/api/v1/daemon/start"))
        new.stop()
        assert http_socket.exists()
    chain.now.stop()


def test_a_state_that_was_never_taken_changes_nothing_about_the_end(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, http_socket: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-socket", http_socket, "--http-port", 0, snapshot_file)
    assert chain.now.ask("PUT", "/api/v1/daemon/fuse/sendfd").status == 500  # the supervisor is not there
    done(ask(chain.now.control, "PUT", "/api/v1/daemon/exit"))
    assert chain.now.process.wait(WAIT_S) == 0
    assert not http_socket.exists()


def slow_reader(url: str) -> socket.socket:
    """A client that asks for a whole disk and reads none of it but the beginning."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # so that the rest stays with the server
    slow.settimeout(WAIT_S)
    slow.connect(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])))
    slow.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
    slow.recv(1000)
    return slow


def test_signals_end_the_patience_of_a_replacement_too(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path
) -> None:
    chain = Chain(tmp_path, supervisor, "--http-port", 0, "--drain-timeout", 3600, snapshot_file)
    done(supervisor.receive(chain.now.control))
    new = chain.successor()
    done(supervisor.send(new.control))
    with slow_reader(chain.urls["http"]):
        done(ask(chain.now.control, "PUT", "/api/v1/daemon/exit"))
        assert chain.now.process.poll() is None  # the response still runs

        def ended() -> bool:
            chain.now.process.send_signal(signal.SIGTERM)  # two that come at once are one
            return chain.now.process.poll() is not None

        until(ended)
    chain.now.stop()
    new.stop()


def ask_in_vain(daemon: Controlled, what: str) -> None:
    """Ask for something that a silent supervisor keeps from ending before the daemon does."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        daemon.ask("PUT", f"/api/v1/daemon/fuse/{what}")


def test_exits_end_whatever_runs_and_in_every_state(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, http_socket: Path
) -> None:
    exit_now = ("PUT", "/api/v1/daemon/exit?drain_timeout=0.2")
    waiting = tmp_path / "api.sock"
    with Controlled(waiting, "--supervisor", supervisor.path, "--upgrade") as init:
        done(init.ask(*exit_now))
        assert init.process.wait(WAIT_S) == 0 and not waiting.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(supervisor.path))
        silent.listen(4)
        silent.settimeout(WAIT_S)
        with Controlled(waiting, "--supervisor", supervisor.path, "--upgrade") as taking:
            threading.Thread(target=ask_in_vain, args=(taking, "takeover"), daemon=True).start()
            silent.accept()
            done(taking.ask(*exit_now))
            assert taking.process.wait(WAIT_S) == 0
        arguments = ("--supervisor", supervisor.path, "--http-socket", http_socket, "--http-port", 0, snapshot_file)
        with Controlled(waiting, *arguments) as sending:
            threading.Thread(target=ask_in_vain, args=(sending, "sendfd"), daemon=True).start()
            silent.accept()
            with slow_reader(sending.http):
                statuses: list[int] = []
                both = [
                    threading.Thread(target=lambda: statuses.append(sending.ask(*exit_now).status)) for _ in range(2)
                ]
                for one in both:
                    one.start()
                for one in both:
                    one.join()
            assert statuses == [204, 204]
            assert sending.process.wait(WAIT_S) == 0


def test_a_dribbling_supervisor_has_its_time_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SUPERVISOR_S", 0.5)
    path = tmp_path / "supervisor.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen(1)
        listening.settimeout(WAIT_S)

        def dribble() -> None:
            peer, _ = listening.accept()
            with peer, contextlib.suppress(OSError):  # until it has had enough
                while True:
                    peer.sendall(b" ")
                    time.sleep(0.0001)

        sending = threading.Thread(target=dribble)
        sending.start()
        with pytest.raises(SystemFailure, match="did not send the state"):
            handover.fetch_state(str(path))
        sending.join(WAIT_S)
        assert not sending.is_alive()


def read_until(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"ended after {len(data)} of {size} bytes"
        data += part
    return data


def test_connections_go_along_in_whatever_phase_they_are(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, disk_image: Path
) -> None:
    """Before the first byte, in the middle of a head, with requests behind each other, in the middle of a handshake."""
    data = disk_image.read_bytes()
    chain = Chain(tmp_path, supervisor, "--http-port", 0, "--nbd-port", 0, snapshot_file)
    ports = {name: int(chain.urls[name].rstrip("/").rpartition(":")[2]) for name in ("http", "nbd")}

    def connect(name: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", ports[name]), WAIT_S)
        sockets.callback(sock.close)
        return sock

    def ranged(start: int) -> bytes:
        return f"GET /disk HTTP/1.1\r\nHost: localhost\r\nRange: bytes={start}-{start + 99}\r\n\r\n".encode()

    def answer(sock: socket.socket, start: int) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read_until(sock, 1)
        assert head.startswith(b"HTTP/1.1 206 ")
        assert read_until(sock, 100) == data[start : start + 100]

    with contextlib.ExitStack() as sockets:
        fresh, half, kept, shaking, agreed = map(connect, ("http", "http", "http", "nbd", "nbd"))
        half.sendall(ranged(5)[:30])
        kept.sendall(ranged(6) + ranged(7) + ranged(8)[:25])
        answer(kept, 6)
        answer(kept, 7)
        request = struct.Struct(">IHHQQI")
        for sock in (shaking, agreed):
            read_until(sock, 18)
            sock.sendall(struct.pack(">I", 3))
        agreed.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 4) + b"snap")
        assert struct.unpack(">Q", read_until(agreed, 10)[:8])[0] == len(data)
        agreed.sendall(request.pack(0x25609513, 0, 0, 1, 4096, 100)[:11])
        done(supervisor.receive(chain.now.control))
        old, new = chain.now, chain.successor()
        done(supervisor.send(new.control))
        done(ask(old.control, "PUT", "/api/v1/daemon/exit"))
        done(new.ask("PUT", "/api/v1/daemon/start"))
        fresh.sendall(ranged(9))
        answer(fresh, 9)
        half.sendall(ranged(5)[30:])
        answer(half, 5)
        kept.sendall(ranged(8)[25:] + ranged(10))
        answer(kept, 8)
        answer(kept, 10)
        shaking.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 4) + b"snap")
        assert struct.unpack(">Q", read_until(shaking, 10)[:8])[0] == len(data)
        agreed.sendall(request.pack(0x25609513, 0, 0, 1, 4096, 100)[11:])
        shaking.sendall(request.pack(0x25609513, 0, 0, 1, 4096, 100))
        for sock in (agreed, shaking):
            assert read_until(sock, 16) == struct.pack(">IIQ", 0x67446698, 0, 1)
            assert read_until(sock, 100) == data[4096:4196]
        assert old.process.wait(WAIT_S) == 0  # every connection is the successor's
        shaking.sendall(request.pack(0x25609513, 0, 0, 2, 0, 100))
        assert read_until(shaking, 116)[16:] == data[:100]
        old.stop()
    assert new.stop() == 0


def test_who_has_only_just_come_by_tls_gets_an_answer(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path
) -> None:
    cert, key = certificate(tmp_path, "localhost")
    chain = Chain(tmp_path, supervisor, "--http-port", 0, "--tls-cert", cert, "--tls-key", key, snapshot_file)
    address = ("127.0.0.1", int(chain.urls["https"].rstrip("/").rpartition(":")[2]))
    context = ssl.create_default_context(cafile=str(cert))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones send something after the handshake
    done(supervisor.receive(chain.now.control))
    with socket.create_connection(address, WAIT_S) as plain:
        until(lambda: chain.now.ask("GET", "/api/v1/daemon").json["hexz"]["connections"] == 1)
        done(ask(chain.now.control, "PUT", "/api/v1/daemon/exit"))
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as late:
            late.sendall(b"GET /info HTTP/1.1\r\n")
            assert not select.select([late], [], [], 1.5)[0]  # longer than any receive waits
            late.sendall(b"Host: localhost\r\n\r\n")
            answer = b"".join(iter(lambda: late.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ") and b"Connection: close" in answer
    assert chain.now.process.wait(WAIT_S) == 0
    chain.now.stop()
