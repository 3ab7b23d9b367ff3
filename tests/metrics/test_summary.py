"""The figures for people: ``--status``, SIGUSR1, and the page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from hexz.metrics import Metrics
from hexz.metrics.figures import CacheFigures
from hexz.metrics.summary import MAX_SNAPSHOTS, summary_lines
from tests.peers import ROOT, Server

PATIENCE_S = 30.0


def status(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "hexz_serve.py"), "--status", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_summary() -> None:
    metrics = Metrics()
    metrics.cache = lambda: CacheFigures(3, 3 << 20, 4 << 20, 1234, 0, 0, 5)
    meter = metrics.publish("vm").meter("nbd", "read", "disk")
    for waited in (0, 0, 0, 1 << 20):
        meter.add("ok", 1 << 20, 0.01, waited)
    metrics.publish("vm2").meter("http", "read", "disk").add("failed", 0, 0.01)
    for number in range(MAX_SNAPSHOTS):
        metrics.publish(f"idle{number}")
    metrics.flights.begin("nbd", "read", "unix", "vm")
    metrics.events.add("it broke")
    lines = summary_lines(metrics.collect())
    assert lines[0] == "vm: 4 reads (nbd 4), 4.0 MiB sent, 75.0 % at once from the cache"
    assert lines[1] == "vm2: not read yet, 1 failed"
    assert lines[MAX_SNAPSHOTS] == "and 2 snapshots that were read less"
    assert lines[-4] == "cache: 3.0 MiB of 4.0 MiB in 3 blocks, 1,234 decompressed, 5 made room for others"
    assert re.fullmatch(r"under way: 1 request, the oldest for \d+\.\d s", lines[-2])
    assert re.fullmatch(r"errors: 1, the last one [-0-9]{10} [:0-9]{8}: it broke", lines[-1])


def test_status_signal_and_page_tell_the_figures(snapshot_file: Path, tmp_path: Path) -> None:
    control, pid_file = tmp_path / "control", tmp_path / "pid"
    arguments = ("--http-port", 0, "--control", "control", "--pid-file", pid_file)
    with Server(snapshot_file, *arguments, cwd=tmp_path) as server:
        for start in range(0, 40000, 4096):
            wanted = {"Range": f"bytes={start}-{start + 4095}"}
            assert len(requests.get(f"{server.http}/disk", headers=wanted, timeout=PATIENCE_S).content) == 4096
        said = r"snap: 10 reads \(http 10\), 40\.0 KiB sent, \d+\.\d % at once from the cache"
        # The socket is named, or found by what the process was started with.
        for where in (("--control", control), ("--pid-file", pid_file)):
            done = status(*where)
            assert done.returncode == 0, done.stderr
            assert f"running, pid {server.process.pid}\n" in done.stdout and "\nserving snap at " in done.stdout
            assert re.search(f"^{said}$", done.stdout, re.MULTILINE), done.stdout
            assert "\nfiles: " in done.stdout
        page = requests.get(server.http, headers={"Accept": "text/html"}, timeout=PATIENCE_S).text
        assert re.search(said.partition(" ")[2], page)
        os.kill(server.process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(f"status: {said}", server.stderr()):
            assert time.monotonic() < deadline, server.stderr()
            time.sleep(0.01)
    done = status("--control", control)
    assert (done.returncode, done.stdout) == (3, "not running\n")
    assert "does not answer" in done.stderr
