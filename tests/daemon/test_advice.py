"""Errors in the system's units name what an administrator has there: credentials, and folders that are hidden."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hexz.daemon.advice import STORE, advised
from hexz.rights.secrets import CREDENTIALS
from tests import vectors
from tests.peers import ROOT

CORPUS = ROOT / "tests" / "corpus"
PLACE = "/etc/credstore/hexz-serve.snap"
CASES = {
    "/srv/a.hxz: is encrypted: give its password with --password-file": f"put it in {PLACE}.password)",
    "--bind ::1 would open it: give --token-file, or add --allow-anonymous=http": f"put it in {PLACE}.tokens)",
    "--bind ::1 would open it: give --s3-keys-file": f"put it in {PLACE}.s3-keys)",
    "/srv/a.sum: is a keyed seal: give its key with --seal-key-file": f"put it in {PLACE}.seal-key)",
    "put a bearer token into a file and give --remote-token-file": f"put it in {PLACE}.remote-tokens)",
    "--require-seal with --seal-key-file wants a keyed one": "",
    "/home/u/a.hxz: permission denied": "ProtectHome= of the unit hides /home: ",
    "/root/tokens: cannot read the tokens: Permission denied": "ProtectHome= of the unit hides /root: ",
    "/var/tmp/a.hxz: no such file": "PrivateTmp= of the unit hides /var/tmp: ",
    "/srv/a.hxz: permission denied": "chmod o+r",
    "/srv/a.hxz: no such file": "",
    "/home/u/a.hxz: truncated": "",
    "127.0.0.1:80: cannot listen: Permission denied: ports below 1024 are root's": "",
}


@pytest.mark.parametrize("message", CASES)
def test_what_to_do_in_a_unit(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE, raising=False)
    assert advised(message) == message
    monkeypatch.setenv(STORE, PLACE)
    assert advised(message).startswith(message)
    assert CASES[message] in advised(message)
    assert CASES[message] or advised(message) == message


def test_every_credential_has_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE, PLACE)
    options = ("token", "s3-keys", "password", "seal-key", "s3-credentials", "remote-token")
    named = {advised(f"give --{option}-file").rpartition(".")[2].rstrip(")") for option in options}
    assert named == set(CREDENTIALS)


def test_the_daemon_says_it() -> None:
    name = next(name for name, vector in vectors.load().items() if vector["password"] and not vector["parents"])
    command = [sys.executable, str(ROOT / "hexz_serve.py"), str(CORPUS / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={STORE: PLACE})
    assert done.returncode == 77
    assert done.stderr.endswith(f"with --password-file (for this unit: put it in {PLACE}.password)\n")
