"""The README's first command, and the daemon on the interpreters that hosts have."""

from __future__ import annotations

import glob
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.peers import ROOT, SYSTEM_PYTHON, Server, missing, run


def test_sample_run_serves_and_stops_on_ctrl_c() -> None:
    command = [sys.executable, "tests/sample.py", "--http-port", "0", "--nbd-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if "Ctrl-C" in line:
                break
        found = re.search(r"listening (http://\S+)", text)
        assert found is not None, text
        image = (ROOT / "build" / "sample" / "sample.raw").read_bytes()
        assert requests.get(f"{found[1]}disk", timeout=30).content == image
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0


def interpreters() -> list[str]:
    """The oldest and the newest interpreter from 3.9 on, besides the one that runs this."""
    found: dict[tuple[int, int], str] = {}
    for path in [*glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3")), *glob.glob("/usr/bin/python3.*")]:
        if re.search(r"python3(\.\d+)?$", path):
            done = subprocess.run(
                [path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, check=False
            )
            if not done.returncode:
                major, minor = map(int, done.stdout.split())
                found.setdefault((major, minor), path)
    usable = sorted(version for version in found if version >= (3, 9))
    return [found[version] for version in dict.fromkeys([usable[0], usable[-1]])] if usable else []


@pytest.mark.parametrize("python", interpreters())
def test_oldest_and_newest_interpreter(python: str, snapshot_file: Path, disk_image: Path) -> None:
    home = ROOT / ".cache" / "interpreters" / Path(python).parts[-3].replace("/", "_")
    if not (home / "bin" / "python").exists():
        run(python, "-m", "venv", home, timeout=120)
        run(home / "bin" / "python", "-m", "pip", "install", "-q", "lz4", "zstandard", timeout=300)
    with Server("--http-port", 0, "--nbd-port", 0, snapshot_file, python=str(home / "bin" / "python")) as server:
        assert requests.get(f"{server.http}/disk", timeout=30).content == disk_image.read_bytes()
        run("nbdinfo", server.nbd)


def test_the_distributions_own_packages(snapshot_file: Path, disk_image: Path) -> None:
    probe = "import lz4.block, zstandard"
    if subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        missing("python3-lz4 python3-zstandard")
    with Server("--http-port", 0, snapshot_file, python=SYSTEM_PYTHON) as server:
        assert requests.get(f"{server.http}/disk", timeout=30).content == disk_image.read_bytes()
    run(SYSTEM_PYTHON, "-m", "hexz", "verify", snapshot_file, cwd=ROOT)
