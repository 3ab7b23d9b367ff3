"""The detached daemon, seen from outside."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.peers import ROOT, write_secret
from tests.waiting import until

DEADLINE_S = 60.0


class Host:
    """A user's surroundings: a runtime folder of its own, and the daemons started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700, parents=True)
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime), "TMPDIR": str(folder)}

    def command(self, *arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "hexz_serve.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment,
            **kwargs,  # type: ignore[call-overload]
        )

    def start(self, *arguments: object, **kwargs: object) -> tuple[int, str]:
        """Pid and HTTP address of a new daemon."""
        done = self.command("--daemon", "--http-port", 0, *arguments, **kwargs)
        assert done.returncode == 0, done.stderr
        found = re.search(r"listening (http://\S+)/", done.stdout)
        log = re.search(r"logging to (\S+)\.log|logging to (\S+)", done.stdout)
        assert found is not None and log is not None, done.stdout
        pids = [int(path.read_text()) for path in self.folder.rglob("*.pid") if path.read_text().strip()]
        live = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        return self.owner(int(found[1].rpartition(":")[2]), live), found[1]

    @staticmethod
    def owner(port: int, pids: list[int]) -> int:
        """Which of `pids` listens on `port`."""
        inode = next(
            line.split()[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        )
        for pid in pids:
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    if os.readlink(fd) == f"socket:[{inode}]":
                        return pid
        raise AssertionError(f"nobody of {pids} listens on {port}")

    def stop_all(self) -> None:
        for path in self.folder.rglob("*.pid"):
            self.command("--stop", "--pid-file", path)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop_all()


def gone(pid: int) -> bool:
    """Whether the last thread of `pid` has ended: not before that are its sockets and files closed."""
    try:
        zombie = Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        return zombie and os.listdir(f"/proc/{pid}/task") == [str(pid)]
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_is_a_proper_daemon(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    leaked, _ = os.pipe()
    os.set_inheritable(leaked, True)
    local = tmp_path / "snap.hxz"
    shutil.copy(snapshot_file, local)
    pid, url = host.start("snap.hxz", cwd=tmp_path, close_fds=False)
    assert requests.get(f"{url}/healthz", timeout=DEADLINE_S).status_code == 200  # ready when the command returned
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent, group, session, terminal = int(fields[1]), int(fields[2]), int(fields[3]), int(fields[4])
    assert parent != os.getpid() and session == group and session not in (pid, os.getsid(0)) and terminal == 0
    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path)  # relative paths go on meaning the same
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"Umask:\s+0077", status)
    opened = {int(fd.name): os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert opened[0] == "/dev/null"
    assert opened[1] == str(host.runtime / "hexz-serve.log") and opened[2] == str(host.runtime / "hexz-serve.err")
    assert os.readlink(f"/proc/self/fd/{leaked}") not in opened.values()
    os.close(leaked)
    for name in ("hexz-serve.log", "hexz-serve.err"):
        assert stat.S_IMODE((host.runtime / name).stat().st_mode) == 0o600
    assert host.command("--status").stdout.startswith(f"running, pid {pid}\n")
    assert host.command("--stop").returncode == 0
    assert gone(pid) and not (host.runtime / "hexz-serve.pid").exists()
    assert host.command("--status").returncode == 3
    assert "stopping" in (host.runtime / "hexz-serve.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["none.hxz"], 66, "no such file"),
        (["bad.hxz"], 65, "not a hexz snapshot"),
        (["--log-file", "none/log", "GOOD"], 78, "cannot log there"),
        (["--pid-file", "none/pid", "GOOD"], 78, "cannot write the pid file"),
    ],
)
def test_a_failed_start_is_the_commands_own(
    host: Host, snapshot_file: Path, tmp_path: Path, arguments: list[str], status: int, says: str
) -> None:
    (tmp_path / "bad.hxz").write_bytes(b"x" * 9000)
    given = [str(snapshot_file) if argument == "GOOD" else argument for argument in arguments]
    done = host.command("--daemon", "--http-port", 0, *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("hexz-serve: ") and says in done.stderr
    assert not list(tmp_path.rglob("*.pid"))


def test_a_taken_port_is_told_before_the_command_returns(host: Host, snapshot_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = host.command("--daemon", "--port", taken.getsockname()[1], snapshot_file)
    assert done.returncode == 69 and "in use" in done.stderr


def test_a_second_daemon_takes_other_names(host: Host, snapshot_file: Path) -> None:
    first, first_url = host.start(snapshot_file)
    done = host.command("--daemon", "--http-port", 0, snapshot_file)
    port = re.search(r"listening http://127.0.0.1:(\d+)/", done.stdout)
    assert port is not None and f"hexz-serve-{port[1]}.log" in done.stdout and f"pid {first}" in done.stdout
    assert (host.runtime / f"hexz-serve-{port[1]}.pid").exists()
    assert host.command("--stop", "--port", port[1]).returncode == 0
    assert requests.get(f"{first_url}/healthz", timeout=DEADLINE_S).status_code == 200


def test_the_same_pid_file_twice_is_refused(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    pid, _ = host.start("--pid-file", tmp_path / "own.pid", snapshot_file)
    done = host.command("--daemon", "--http-port", 0, "--pid-file", tmp_path / "own.pid", snapshot_file)
    assert done.returncode == 69 and f"running already, pid {pid}" in done.stderr


def test_killed_and_started_again(host: Host, snapshot_file: Path) -> None:
    pid, _ = host.start(snapshot_file)
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    assert (host.runtime / "hexz-serve.pid").exists()  # stale, but nobody holds it
    assert host.command("--status").returncode == 3
    again, url = host.start(snapshot_file)
    assert again != pid and requests.get(f"{url}/healthz", timeout=DEADLINE_S).status_code == 200
    assert (host.runtime / "hexz-serve.pid").read_text().strip() == str(again)


def test_hostile_links_are_not_followed(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (host.runtime / "hexz-serve.log").symlink_to(victim)
    os.link(victim, host.runtime / "hexz-serve.err")
    done = host.command("--daemon", "--http-port", 0, snapshot_file)
    assert done.returncode == 0 and "symbolic link" in done.stdout
    host.stop_all()
    assert victim.read_text() == "precious\n" and victim.stat().st_mode & 0o777 != 0o600
    named = host.command("--daemon", "--http-port", 0, "--log-file", host.runtime / "hexz-serve.log", snapshot_file)
    assert named.returncode == 78 and "symbolic link" in named.stderr


def test_the_temporary_folder_is_next_in_line(host: Host, snapshot_file: Path) -> None:
    host.environment["XDG_RUNTIME_DIR"] = "/nonexistent"
    done = host.command("--daemon", "--http-port", 0, snapshot_file)
    assert done.returncode == 0 and f"logging to {host.folder}/hexz-serve.log" in done.stdout


def test_closed_standard_descriptors_become_nobody_elses(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "http"
    start = f"{sys.executable} {ROOT}/hexz_serve.py --http-socket {path} --pid-file {tmp_path}/own.pid"
    own = tmp_path / "own.pid"
    for detached in ("--daemon", ""):
        shell = f"{start} {detached} {snapshot_file} <&- >&- 2>&-"
        with subprocess.Popen(["sh", "-c", shell], env=host.environment) as started:
            until(lambda: path.is_socket() and own.exists() and own.read_text().strip())
            pid = int(own.read_text())
            opened = [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]
            assert not [name for name in opened if name.startswith("socket:")], opened
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert host.command("--stop", "--pid-file", own).returncode == 0
            assert started.wait(DEADLINE_S) == 0


def test_a_fork_that_fails_later_is_told_too(snapshot_file: Path) -> None:
    script = """
import errno, os, sys
from hexz import cli
fork, forks = os.fork, []
def limited():
    forks.append(1)
    if len(forks) > 1:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()
os.fork = limited
sys.exit(cli.main(["--daemon", "--http-port", "0", sys.argv[1]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, snapshot_file], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (71, "")
    assert done.stderr == "hexz-serve: cannot fork: Resource temporarily unavailable\n"


def test_status_and_stop_by_port_find_the_first_daemon_too(host: Host, snapshot_file: Path) -> None:
    pid, url = host.start(snapshot_file)
    port = url.rpartition(":")[2]
    assert host.command("--status", "--port", port).stdout.startswith(f"running, pid {pid}\n")
    assert host.command("--status", "--port", 1).returncode == 3
    assert host.command("--stop", "--port", port).stdout == f"stopped, pid {pid}\n"
    assert not list(host.runtime.glob("*.pid"))


def test_stop_does_not_guess_which_of_several(host: Host, snapshot_file: Path) -> None:
    first, _ = host.start(snapshot_file)
    host.start(snapshot_file)
    host.start(snapshot_file)
    assert host.command("--stop").stdout == f"stopped, pid {first}\n"  # the plain name
    done = host.command("--stop")
    assert done.returncode == 2 and "say which with --port or --pid-file" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_strangers_files_in_a_shared_folder_change_nothing(host: Host, snapshot_file: Path) -> None:
    planted = host.runtime / "hexz-serve.pid"
    planted.write_text(f"{os.getpid()}\n")
    os.chown(planted, 12345, 12345)
    with planted.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert host.command("--status").returncode == 3
        assert host.command("--stop").stdout == "not running\n"
        done = host.command("--daemon", "--http-port", 0, snapshot_file)
        assert done.returncode == 0 and "no plain file of this user" in done.stdout
        found = host.command("--status").stdout
        assert found.startswith("running, pid ") and not found.startswith(f"running, pid {os.getpid()}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_daemon_is_not_stopped(host: Host, snapshot_file: Path) -> None:
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o755)
        pid, _ = host.start("--pid-file", f"{shared}/pid", snapshot_file)
        os.chmod(f"{shared}/pid", 0o644)
        code = (
            "import os, sys\n"
            "from hexz.daemon.pidfile import stop_running\n"
            "from hexz.errors import SystemFailure\n"
            "os.setuid(12345)\n"
            "try:\n    stop_running(sys.argv[1], 1)\n"
            "except SystemFailure as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, f"{shared}/pid"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.stdout == f"pid {pid} is another user's: not stopped\n", done.stderr
        assert host.command("--stop", "--pid-file", f"{shared}/pid").stdout == f"stopped, pid {pid}\n"


def test_a_log_line_stays_one_line(tmp_path: Path) -> None:
    script = """
import logging, sys
from hexz.daemon.logs import set_up_logging
set_up_logging("info", split=False)
logging.getLogger("x").info("a\\nb\\x1b[2J\\x9bc\\td")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.partition("x: ")[2] == "a\\nb\\x1b[2J\\x9bc\td\n"


def test_hang_up_opens_the_logs_again_and_rereads_everything(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(snapshot_file, served / "one.hxz")
    tokens = tmp_path / "tokens"
    write_secret(tokens, "first 0123456789abcdef0123\n")
    access = tmp_path / "access.log"
    pid, url = host.start("--token-file", tokens, "--access-log", access, served)
    old = {"Authorization": "Bearer 0123456789abcdef0123"}
    new = {"Authorization": "Bearer 3210fedcba9876543210"}
    assert requests.get(f"{url}/disk", headers=old, timeout=DEADLINE_S).status_code == 200
    log = host.runtime / "hexz-serve.log"
    log.rename(tmp_path / "rotated.log")
    access.rename(tmp_path / "rotated.access")
    write_secret(tokens, "second 3210fedcba9876543210\n")
    shutil.copy(snapshot_file, served / "two.hxz")
    os.kill(pid, signal.SIGHUP)
    until(lambda: log.exists() and "reloaded: 2 snapshots" in log.read_text())
    assert requests.get(f"{url}/disk", headers=old, timeout=DEADLINE_S).status_code == 401
    assert requests.get(f"{url}/snapshots/two/disk", headers=new, timeout=DEADLINE_S).status_code == 200
    until(lambda: access.exists() and len(access.read_text().splitlines()) == 2)
    assert [json.loads(line)["token"] for line in access.read_text().splitlines()] == [None, "second"]
    (served / "one.hxz").unlink()
    os.kill(pid, signal.SIGHUP)
    until(lambda: requests.get(f"{url}/snapshots/one/disk", headers=new, timeout=DEADLINE_S).status_code == 404)
    os.kill(pid, signal.SIGUSR1)
    until(lambda: "status: serving two" in log.read_text())


def test_stop_waits_for_a_daemon_that_drains(host: Host, snapshot_file: Path, disk_image: Path) -> None:
    pid, url = host.start("--drain-timeout", 30, snapshot_file)
    reply = requests.get(f"{url}/disk", stream=True, timeout=30)
    first = reply.raw.read(100_000)
    stopping = subprocess.Popen(
        [sys.executable, str(ROOT / "hexz_serve.py"), "--stop"], env=host.environment, stdout=subprocess.DEVNULL
    )
    log = host.runtime / "hexz-serve.log"
    until(lambda: "stopping: 1 connections" in log.read_text())
    assert stopping.poll() is None and not gone(pid)
    assert first + reply.raw.read() == disk_image.read_bytes()
    reply.close()
    assert stopping.wait(30) == 0 and gone(pid)


def test_a_second_signal_ends_the_patience(host: Host, snapshot_file: Path) -> None:
    pid, url = host.start("--drain-timeout", 60, snapshot_file)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        stuck.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stuck.recv(1)
        log = host.runtime / "hexz-serve.log"
        os.kill(pid, signal.SIGTERM)
        until(lambda: "stopping" in log.read_text())
        os.kill(pid, signal.SIGTERM)
        until(lambda: gone(pid))
