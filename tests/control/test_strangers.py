"""A supervisor that is somebody else, or says what it should not: nothing is given to it, nothing taken from it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.errors import SystemFailure
from hexz.servers import handover
from hexz.servers.addresses import unlink_socket
from tests.control.clients import Controlled, Supervisor, done, mount
from tests.control.test_upgrade import Chain

LISTEN = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
os.setuid(65534)
listening.listen(1)
print(flush=True)
peer, _ = listening.accept()
data, rights, _, _ = peer.recvmsg(1 << 16, socket.CMSG_SPACE(64))
print(len(data), len(rights), flush=True)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    keeping = Supervisor(tmp_path / "supervisor.sock")
    yield keeping
    keeping.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_supervisor_of_another_user_gets_nothing(tmp_path: Path, snapshot_file: Path) -> None:
    for exchange in ("sendfd", "takeover"):
        path = tmp_path / f"{exchange}.sock"
        more = ("--upgrade",) if exchange == "takeover" else ("--http-port", 0, snapshot_file)
        with subprocess.Popen([sys.executable, "-c", LISTEN, str(path)], stdout=subprocess.PIPE, text=True) as false:
            assert false.stdout is not None
            false.stdout.readline()
            with Controlled(tmp_path / f"{exchange}.api", "--supervisor", path, *more) as daemon:
                answer = daemon.ask("PUT", f"/api/v1/daemon/fuse/{exchange}")
                assert answer.status == 500
                assert "belongs to user 65534, neither to root nor to this one" in answer.message
                assert false.stdout.readline() == "0 0\n"  # neither bytes nor a descriptor
                assert daemon.state == ("INIT" if exchange == "takeover" else "RUNNING")


def test_whoever_supervises_is_looked_at_before_anything_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "supervisor.sock"
    monkeypatch.setattr(handover, "peer_uid", lambda sock: os.geteuid() + 1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        with pytest.raises(SystemFailure, match="belongs to user"):
            handover.fetch_state(str(path))


def test_what_is_taken_over_obeys_the_roots(
    tmp_path: Path, supervisor: Supervisor, snapshot_file: Path, images: list[tuple[Path, bytes]]
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    shutil.copy(images[0][0], inside / "in.hxz")
    (inside / "link.hxz").symlink_to(images[1][0])
    chain = Chain(tmp_path, supervisor, "--http-port", 0, snapshot_file)
    done(mount(chain.now.control, "/in", inside / "in.hxz"))
    done(supervisor.receive(chain.now.control))
    good = supervisor.state
    arguments = ("--supervisor", supervisor.path, "--upgrade", "--control-root", inside)

    # Snapshots of the other one's command line may be where this one's command line says.
    with Controlled(tmp_path / "strict.sock", *arguments) as strict:
        refused = supervisor.send(strict.control)
        assert refused.status == 500 and str(snapshot_file) in refused.message
        assert "--control-root" in refused.message and "command line" in refused.message
    with Controlled(tmp_path / "new.sock", *arguments, snapshot_file) as new:
        for outside in (images[1][0], inside / "link.hxz"):
            state = json.loads(good)
            for mounted in (True, False):
                state["mounts"]["snapshots"].append({"name": "x", "path": str(outside), "mounted": mounted})
                supervisor.state = json.dumps(state).encode()
                refused = supervisor.send(new.control)
                assert refused.status == 500 and "--control-root" in refused.message
                assert new.ask("GET", "/api/v1/daemon").json["backend_collection"] == {}
                state["mounts"]["snapshots"].pop()
        supervisor.state = good
        done(supervisor.send(new.control))
        assert new.state == "READY"
    chain.now.stop()


def test_only_a_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("no socket")
    unlink_socket(str(path), path.stat().st_ino)
    assert path.exists()
    own = tmp_path / "own"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(own))
        unlink_socket(str(own), own.stat().st_ino + 1)
        assert own.exists()
        unlink_socket(str(own), own.stat().st_ino)
        assert not own.exists()
