"""The README's first command, and the daemon on the interpreters that hosts have."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.control.clients import ask
from tests.crafted import Craft
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


def with_packages(python: str) -> str:
    """An interpreter of that version which has what the daemon needs."""
    home = ROOT / ".cache" / "interpreters" / Path(python).parts[-3].replace("/", "_")
    home.parent.mkdir(parents=True, exist_ok=True)
    ready = home / "ready"
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests that run beside this one need it too
        if not ready.exists():
            run(python, "-m", "venv", "--clear", home, timeout=120)
            run(home / "bin" / "python", "-m", "pip", "install", "-q", "lz4", "zstandard", timeout=300)
            ready.touch()
    return str(home / "bin" / "python")


@pytest.mark.parametrize("python", interpreters())
def test_oldest_and_newest_interpreter(python: str, snapshot_file: Path, disk_image: Path) -> None:
    with Server("--http-port", 0, "--nbd-port", 0, snapshot_file, python=with_packages(python)) as server:
        assert requests.get(f"{server.http}/disk", timeout=30).content == disk_image.read_bytes()
        run("nbdinfo", server.nbd)


@pytest.mark.parametrize("python", interpreters())
def test_json_nested_as_deeply_as_can_be_sent(python: str, tmp_path: Path) -> None:
    """It is refused, or no manifest; the daemon lives on with whatever stack and limits its interpreter has."""
    craft = Craft()
    craft.data(b"x" * 4096)
    craft.page()
    craft.metadata = b"[" * 6000
    path = craft.write(tmp_path / "deep.hxz")
    (tmp_path / "images").mkdir()
    registration = tmp_path / "images" / "work"
    registration.write_text(
        json.dumps({"backend": "overlay", "snapshot": "deep", "file": str(tmp_path / "overlays" / "work")})
    )
    registration.chmod(0o600)
    (tmp_path / "overlays").mkdir()
    control = tmp_path / "control"
    arguments = ["--http-port", 0, "--images-dir", tmp_path / "images", "--images-allow", tmp_path / "overlays"]
    with Server(*arguments, "--control", control, path, python=with_packages(python)) as server:
        for route in ("", "/info", "/snapshots", "/snapshots/deep/files/", "/disk"):
            answer = requests.get(f"{server.http}/{route.lstrip('/')}", timeout=30)
            assert answer.status_code == (404 if "files" in route else 200), route
        for depth in (65, 900, 4000, 60000):
            answer = requests.patch(
                f"{server.http}/images/work", b"[" * depth, headers={"Content-Type": "application/json"}, timeout=30
            )
            assert answer.status_code == 400, depth
            assert ask(control, "PUT", "/api/v1/daemon", b"[" * depth).status == 400, depth


@pytest.mark.parametrize("python", interpreters())
def test_recursion_ends_before_the_stack_of_a_connection_does(python: str) -> None:
    program = """if True:
        import json, threading
        from hexz.servers.accept_loop import STACK_BYTES
        def parse():
            try:
                json.loads("[" * 1_000_000)
            except RecursionError:
                print("told")
        threading.stack_size(STACK_BYTES)
        thread = threading.Thread(target=parse)
        thread.start()
        thread.join()
    """
    assert run(with_packages(python), "-c", program, cwd=ROOT).stdout == "told\n"


def test_the_distributions_own_packages(snapshot_file: Path, disk_image: Path) -> None:
    probe = "import lz4.block, zstandard"
    if subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        missing("python3-lz4 python3-zstandard")
    with Server("--http-port", 0, snapshot_file, python=SYSTEM_PYTHON) as server:
        assert requests.get(f"{server.http}/disk", timeout=30).content == disk_image.read_bytes()
    run(SYSTEM_PYTHON, "-m", "hexz", "verify", snapshot_file, cwd=ROOT)
