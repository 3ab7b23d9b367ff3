"""Trouble from outside while the daemon runs: it goes on, or says clearly what it cannot do."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from hexz.tools.pack import pack
from tests import samples
from tests.peers import ROOT, Server, run
from tests.waiting import until

DEADLINE_S = 60.0


def packed(folder: Path, name: str, image: bytes, parent: Path | None = None) -> Path:
    raw = folder / f"{name}.raw"
    raw.write_bytes(image)
    out = folder / f"{name}.hxz"
    pack(str(raw), str(out), parent=str(parent) if parent else None)
    return out


def test_descriptors_run_out_and_come_back(snapshot_file: Path) -> None:
    with Server("--http-port", 0, snapshot_file) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (24, 4096))
        port = int(server.http.rpartition(":")[2])
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        until(lambda: "cannot accept" in server.stderr())
        for connection in crowd:
            connection.close()
        assert requests.get(f"{server.http}/healthz", timeout=DEADLINE_S).status_code == 200


def test_a_truncated_file_is_an_error_and_the_rest_goes_on(tmp_path: Path, snapshot_file: Path) -> None:
    image = samples.image(2 << 20, seed=8)
    path = packed(tmp_path, "short", image)
    with Server("--http-port", 0, "--nbd-port", 0, path, snapshot_file) as server:
        assert requests.get(f"{server.http}/disk", headers={"Range": "bytes=0-99"}, timeout=30).content == image[:100]
        with path.open("r+b") as file:
            file.truncate(5000)
        reply = requests.get(f"{server.http}/disk", headers={"Range": "bytes=2000000-2000099"}, timeout=30)
        assert reply.status_code == 500
        done = run("nbdcopy", f"{server.nbd}short", "null:", check=False)
        assert done.returncode and "Input/output error" in done.stderr
        assert requests.get(f"{server.http}/snapshots/snap/disk", timeout=30).status_code == 200
        assert "truncated" in server.stderr()


def test_a_replaced_or_deleted_file_is_served_as_it_was(tmp_path: Path) -> None:
    image = samples.image(1 << 20, seed=9)
    path = packed(tmp_path, "first", image)
    other = packed(tmp_path, "second", samples.image(1 << 20, seed=10))
    with Server("--http-port", 0, path) as server:
        os.replace(other, path)
        assert requests.get(f"{server.http}/disk", timeout=30).content == image
        path.unlink()
        assert requests.get(f"{server.http}/disk", timeout=30).content == image
        os.kill(server.process.pid, signal.SIGHUP)  # the name is gone: the old one stays, and the log says so
        until(lambda: "no such file" in server.stderr())
        assert requests.get(f"{server.http}/disk", timeout=30).content == image


def test_a_removed_parent_stays_open_until_a_reload_misses_it(tmp_path: Path) -> None:
    image = samples.image(1 << 20, seed=11)
    base = packed(tmp_path, "base", image)
    changed = bytes(4096) + image[4096:]
    child = packed(tmp_path, "child", changed, base)
    with Server("--http-port", 0, child) as server:
        base.unlink()
        assert requests.get(f"{server.http}/disk", timeout=30).content == changed
    done = subprocess.run(
        [sys.executable, str(ROOT / "hexz_serve.py"), "--check", str(child)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 66 and "its parent 'base.hxz' was not found" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system that is full")
def test_a_full_disk_under_the_logs_stops_nothing(tmp_path: Path, snapshot_file: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f"""
        mount -t tmpfs -o size=16k tmpfs {small}
        {sys.executable} {ROOT}/hexz_serve.py --daemon --http-port 0 --access-log {small}/access.log \
            --log-file {small}/log --pid-file {tmp_path}/pid {snapshot_file} > {tmp_path}/ready
        url=$(sed -n 's/^listening //p' {tmp_path}/ready)
        head -c 100000 /dev/zero > {small}/filler 2>/dev/null || true
        for i in $(seq 200); do curl -sf -o /dev/null -r 0-9 "$url"disk || exit 1; done
        kill -USR1 $(cat {tmp_path}/pid)
        rm {small}/filler
        curl -sf -o /dev/null "$url"disk
        {sys.executable} {ROOT}/hexz_serve.py --stop --pid-file {tmp_path}/pid
        grep -c Traceback {small}/log && exit 1
        grep '"status": 200' {small}/access.log
    """
    run("unshare", "--mount", "--propagation", "private", "bash", "-ec", script)


def test_the_log_folder_is_removed(tmp_path: Path, snapshot_file: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    command = [sys.executable, str(ROOT / "hexz_serve.py")]
    start = [*command, "--daemon", "--http-port", "0", "--log-file", f"{folder}/log", "--pid-file", f"{tmp_path}/pid"]
    url = run(*start, snapshot_file).stdout.split()[1]
    pid = int((tmp_path / "pid").read_text())
    held = os.open(folder / "log", os.O_RDONLY)
    shutil.rmtree(folder)
    os.kill(pid, signal.SIGHUP)
    until(lambda: b"logs not reloaded" in os.pread(held, 100_000, 0))
    os.close(held)
    assert requests.get(f"{url}disk", timeout=30).status_code == 200
    run(*command, "--stop", "--pid-file", tmp_path / "pid")


@pytest.mark.parametrize("named", ["directory", "file", "NAME=FILE", "both"])
def test_a_directory_that_is_missing_takes_nothing_away(tmp_path: Path, named: str) -> None:
    """As when its disk is not mounted while the arguments are read again."""
    image = samples.image(1 << 20, seed=12)
    folder = tmp_path / "folder"
    folder.mkdir()
    file = packed(folder, "inside", image)
    arguments = {"directory": [folder], "file": [file], "NAME=FILE": [f"other={file}"], "both": [file, folder]}[named]
    control = tmp_path / "control"
    with Server("--http-port", 0, "--control", control, *arguments) as server:
        folder.rename(tmp_path / "aside")
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "reloaded: 1 snapshots" in server.stderr())
        assert "this directory is missing: its 1 snapshots stay as they are" in server.stderr()
        assert requests.get(f"{server.http}/disk", timeout=30).content == image
        assert requests.get(f"{server.http}/readyz", timeout=30).json()["stale"] == 1
        status = run(sys.executable, str(ROOT / "hexz_serve.py"), "--status", "--control", control).stdout
        assert f"stale: {folder}: this directory is missing: its 1 snapshots stay as they were" in status
        (tmp_path / "aside").rename(folder)
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "stale" not in requests.get(f"{server.http}/readyz", timeout=30).json())


def test_few_descriptors_are_raised_and_connections_fitted_to_them(snapshot_file: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = "ulimit -S -n 100 && ulimit -H -n 200"
    script = f"{limits} && exec {sys.executable} {ROOT}/hexz_serve.py --http-port 0 {snapshot_file}"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None and daemon.stderr is not None
        port = int(daemon.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (200, 200)
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(190)]
        time.sleep(0.5)
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) <= 200 - 32
        for connection in crowd:
            connection.close()
        daemon.terminate()
        assert "because this process may have 200 descriptors" in daemon.stderr.read()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
