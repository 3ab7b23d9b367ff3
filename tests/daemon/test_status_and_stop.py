"""What a user learns of a daemon that runs: where it is, where it logs, and what answers that is not known."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.test_detach import Host, gone
from tests.waiting import until


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop_all()


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def test_the_start_says_where_everything_is(host: Host, snapshot_file: Path) -> None:
    done = host.command("--daemon", "--http-port", 0, "--nbd-port", 0, snapshot_file)
    lines = done.stdout.splitlines()
    port = port_of(lines[0].rstrip("/"))
    assert [line.partition(" ")[0] for line in lines[:2]] == ["listening", "listening"]
    assert f"logging to {host.runtime}/hexz-serve.log and {host.runtime}/hexz-serve.err" in lines
    assert f"pid file {host.runtime}/hexz-serve.pid and {host.runtime}/hexz-serve-{port}.pid" in lines


def test_the_log_begins_with_what_is_served_and_where(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    pid, url = host.start(f"one={snapshot_file}", f"two={snapshot_file}", "--nbd-socket", tmp_path / "nbd")
    log = (host.runtime / "hexz-serve.log").read_text()  # there when the command has returned
    first = log.splitlines()[0]
    for part in (
        "hexz-serve 0.", f"pid {pid}: 2 snapshots (one, two) at ", f"{url}/", f"{tmp_path}/nbd",
        f"pid file {host.runtime}/hexz-serve.pid and ", f"logging to {host.runtime}/hexz-serve.err and ",
    ):  # fmt: skip
        assert part in first, first
    host.command("--stop", "--pid-file", host.runtime / "hexz-serve.pid")
    pid, _ = host.start(f"one={snapshot_file}")
    assert f"pid {pid}: 1 snapshot (one) at " in (host.runtime / "hexz-serve.log").read_text()


def test_status_says_where_it_listens_and_logs(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    pid, url = host.start(snapshot_file, "--pid-file", tmp_path / "own.pid", "--log-file", tmp_path / "log")
    done = host.command("--status", "--pid-file", tmp_path / "own.pid")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"running, pid {pid}",
        f"listening {url}/",
        f"pid file {tmp_path}/own.pid",
        f"logging to {tmp_path}/log",
    ]
    told = tmp_path / "own.pid.json"
    assert stat.S_IMODE(told.stat().st_mode) == 0o600
    assert json.loads(told.read_text())["listening"] == [f"{url}/"]
    assert host.command("--stop", "--pid-file", tmp_path / "own.pid").returncode == 0
    assert not told.exists()


def test_what_another_daemon_left_beside_a_pid_file_is_not_told(host: Host, snapshot_file: Path) -> None:
    pid, _ = host.start(snapshot_file)
    told = host.runtime / "hexz-serve.pid.json"
    for text in (told.read_text().replace(str(pid), "1"), "[" * 5000, "[]", "", "\x00"):
        told.write_text(text)
        done = host.command("--status")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"running, pid {pid}\npid file {host.runtime}/hexz-serve.pid\n"


def test_a_link_planted_beside_the_pid_file_is_not_followed(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (host.runtime / "hexz-serve.pid.json").symlink_to(victim)
    pid, _ = host.start(snapshot_file)
    assert host.command("--status").stdout.startswith(f"running, pid {pid}\n")
    assert victim.read_text() == "precious\n"


def test_without_its_pid_file_a_daemon_that_answers_is_not_called_absent(
    host: Host, snapshot_file: Path, tmp_path: Path
) -> None:
    pid, url = host.start(snapshot_file)
    port = port_of(url)
    elsewhere = Host(tmp_path / "elsewhere")
    elsewhere.environment["HOME"] = str(tmp_path)
    for option in ("--port", "--http-port"):
        asked = elsewhere.command("--status", option, port)
        assert asked.returncode == 3
        assert asked.stdout.startswith(f"not running: no pid file in {elsewhere.runtime} or ")
        assert asked.stdout.endswith(f"; something answers on 127.0.0.1:{port}\n")
        stopped = elsewhere.command("--stop", option, port)
        assert (stopped.returncode, stopped.stdout) == (71, "")
        assert stopped.stderr.startswith(f"hexz-serve: not stopped: no pid file in {elsewhere.runtime} or ")
        assert f"something answers on 127.0.0.1:{port}: " in stopped.stderr and stopped.stderr.count("\n") == 1
    assert not gone(pid)
    own = elsewhere.command("--stop", "--pid-file", tmp_path / "none.pid", "--http-port", port)
    assert own.returncode == 71 and f"nobody holds the pid file {tmp_path}/none.pid" in own.stderr
    assert host.command("--stop").returncode == 0
    for question in ("--status", "--stop"):
        assert elsewhere.command(question, "--port", port).stdout == "not running\n"


def test_a_daemon_behind_a_unix_socket_is_noticed_too(host: Host, snapshot_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "http"
    host.start(snapshot_file, "--http-socket", path)
    elsewhere = Host(tmp_path / "elsewhere")
    stopped = elsewhere.command("--stop", "--http-socket", path)
    assert stopped.returncode == 71 and f"something answers on {path}" in stopped.stderr


def test_the_same_start_twice_names_the_daemon_that_runs(host: Host, snapshot_file: Path) -> None:
    at = "127.0.0.73"  # an address of its own: no other test can take the port between two daemons
    pid, url = host.start(snapshot_file, "--bind", at)
    port = port_of(url)
    for more in (["--daemon"], []):
        done = host.command(*more, "--bind", at, "--port", port, snapshot_file)
        assert (done.returncode, done.stdout) == (69, "")
        assert f"a daemon is running there already, pid {pid}: end it with hexz-serve --stop --pid-file " in done.stderr
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    with socket.create_server((at, int(port))):  # somebody else, after it
        done = host.command("--daemon", "--bind", at, "--port", port, snapshot_file)
    assert done.returncode == 69 and "running there already" not in done.stderr
    assert f"ss -ltnp 'sport = :{port}'" in done.stderr and "--http-port" in done.stderr
