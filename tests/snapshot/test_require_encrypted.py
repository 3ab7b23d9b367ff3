"""--require-encrypted: a plain file that somebody put where an encrypted one was is not served."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import requests

from hexz.errors import NotEncrypted
from hexz.snapshot import new_context, open_snapshot
from tests.control.clients import ask
from tests.crafted import Craft
from tests.nbd.wire import Client
from tests.peers import ROOT, Server, run, write_secret

PASSWORD = b"secret"
RIGHT = b"what is encrypted at rest".ljust(4096)
FORGED = b"what somebody else wrote".ljust(4096)
TIMEOUT_S = 60.0


def make(path: Path, encrypt: bool = True, layout: str = "B52", parent: str = "", zero: bool = False) -> Path:
    """A snapshot of one block, and one of its parent's if it has one."""
    craft = Craft(layout)
    if encrypt:
        craft.encrypt(PASSWORD, path.name.ljust(16).encode()[:16])
    if parent:
        craft.parents = [parent]
        craft.parent(4096)
    if zero:
        craft.zero(4096)
    else:
        craft.data(RIGHT if encrypt else FORGED)
    craft.page()
    return craft.write(path)


@pytest.mark.parametrize("layout", ["A20", "A52", "B52", "C52"])
def test_what_is_plain_is_not_opened(tmp_path: Path, layout: str) -> None:
    context = new_context(1 << 20, PASSWORD, workers=0)._replace(require_encrypted=True)
    with open_snapshot(str(make(tmp_path / "good.hxz", True, layout)), context) as snapshot:
        assert b"".join(snapshot.streams["disk"].read(0, 4096)) == RIGHT
    plain = str(make(tmp_path / "plain.hxz", False, layout))
    with pytest.raises(NotEncrypted, match=r"plain\.hxz: is not encrypted, and --require-encrypted was given"):
        open_snapshot(plain, context)
    with open_snapshot(plain, context._replace(require_encrypted=False)):
        pass


@pytest.mark.parametrize("encrypted", [True, False])
def test_nor_as_a_parent(tmp_path: Path, encrypted: bool) -> None:
    context = new_context(1 << 20, PASSWORD, workers=0)._replace(require_encrypted=True)
    make(tmp_path / "base.hxz", encrypted)
    child = str(make(tmp_path / "child.hxz", parent="base.hxz"))
    if encrypted:
        with open_snapshot(child, context) as snapshot:
            assert b"".join(snapshot.streams["disk"].read(0, 8192)) == RIGHT * 2
    else:
        with pytest.raises(NotEncrypted, match=r"base\.hxz: is not encrypted"):
            open_snapshot(child, context)


def test_a_header_that_says_encrypted_over_zeros_proves_nothing(tmp_path: Path) -> None:
    """There is no block that the password could be tried on: the manual says so."""
    forged = str(make(tmp_path / "zeros.hxz", zero=True))
    context = new_context(1 << 20, b"another", workers=0)._replace(require_encrypted=True)
    with open_snapshot(forged, context) as snapshot:
        assert b"".join(snapshot.streams["disk"].read(0, 4096)) == bytes(4096)


def test_the_daemon_over_all_protocols_and_mounts(tmp_path: Path) -> None:
    """One named is a failed start; of a folder it is skipped; once served, the encrypted one stays on SIGHUP."""
    password = write_secret(tmp_path / "password", PASSWORD)
    folder, control = tmp_path / "served", tmp_path / "control"
    folder.mkdir()
    good = make(folder / "good.hxz")
    plain = make(folder / "plain.hxz", False)
    options = ("--require-encrypted", "--password-file", password)
    done = run(sys.executable, ROOT / "hexz_serve.py", *options, "--check", plain, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (77, 1)
    assert "plain.hxz: is not encrypted, and --require-encrypted was given" in done.stderr
    ports = ("--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--control", control)
    with Server(*options, *ports, folder) as server:
        s3 = f"http{server.urls['s3'].removeprefix('s3')}"
        assert "plain.hxz: is not encrypted" in server.stderr()
        for base in (f"{server.http}/snapshots/", s3):
            assert requests.get(f"{base}good/disk", timeout=TIMEOUT_S).content == RIGHT
            assert requests.get(f"{base}plain/disk", timeout=TIMEOUT_S).status_code == 404
        assert requests.get(f"{server.http}/plain.hxz", timeout=TIMEOUT_S).status_code == 404
        with Client(("127.0.0.1", server.nbd_port)).negotiate("simple") as client:
            client.go("good")
            assert client.read(0, 4096) == RIGHT
        body = {"source": str(plain), "fs_type": "rafs", "config": "{}"}
        refused = ask(control, "POST", "/api/v1/mount?mountpoint=/plain", body)
        assert refused.status >= 400
        assert "is not encrypted" in json.loads(refused.body)["message"]
        plain.rename(good)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + TIMEOUT_S
        while "reloaded: " not in server.stderr():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "good.hxz: is not encrypted" in server.stderr()
        assert requests.get(f"{server.http}/snapshots/good/disk", timeout=TIMEOUT_S).content == RIGHT
