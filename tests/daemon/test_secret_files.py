"""Files of secrets that other users may read or change are refused, with the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from hexz.errors import ConfigError
from hexz.secretfile import check_secret
from tests.peers import ROOT, Server, run, write_secret
from tests.waiting import until

TOKEN = "a-token-that-is-long"
SECRETS = {
    "--token-file": f"operator {TOKEN}\n",
    "--s3-keys-file": "KEY a-secret-of-some-length\n",
    "--password-file": "secret\n",
    "--seal-key-file": "0123456789abcdef\n",
}
OPEN = (0o640, 0o620, 0o604, 0o602, 0o644, 0o666, 0o444)


def check(*arguments: object, credentials: Path | None = None) -> tuple[int, str]:
    environment = {**os.environ, **({"CREDENTIALS_DIRECTORY": str(credentials)} if credentials else {})}
    command = [sys.executable, str(ROOT / "hexz_serve.py"), "--check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("option", SECRETS)
def test_a_file_of_secrets_is_for_its_owner_alone(tmp_path: Path, snapshot_file: Path, option: str) -> None:
    path = write_secret(tmp_path / "a secret", SECRETS[option])
    for mode in OPEN:
        path.chmod(mode)
        told = f"hexz-serve: {path}: open to other users (mode {mode:04o}): chmod 600 '{path}'\n"
        assert check(option, path, snapshot_file) == (78, told)
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert check(option, path, snapshot_file) == (0, "")


def test_a_key_of_tls_is_for_its_owner_alone(tmp_path: Path, snapshot_file: Path) -> None:
    key, cert = tmp_path / "key", tmp_path / "cert"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        key,
        "-out",
        cert,
    )
    options = ("--http-port", "0", "--tls-cert", cert, "--tls-key", key, snapshot_file)
    key.chmod(0o644)
    done = run(sys.executable, ROOT / "hexz_serve.py", *options, check=False)
    assert done.returncode == 78 and f"chmod 600 {key}" in done.stderr
    key.chmod(0o600)
    cert.chmod(0o644)
    with Server(*options) as server:
        assert server.urls["https"]


def test_what_opens_while_the_daemon_runs_is_not_taken_over(tmp_path: Path, snapshot_file: Path) -> None:
    tokens = write_secret(tmp_path / "tokens", f"operator {TOKEN}\n")
    with Server("--http-port", 0, "--token-file", tokens, snapshot_file) as server:
        tokens.write_text("stranger another-token-of-some-length\n")
        tokens.chmod(0o666)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: f"chmod 600 {tokens}" in server.stderr())
        for token, status in ((TOKEN, 200), ("another-token-of-some-length", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            assert requests.get(f"{server.http}/info", headers=headers, timeout=30).status_code == status


def test_a_credential_may_be_read_by_an_access_list(tmp_path: Path, snapshot_file: Path) -> None:
    """As the service manager leaves it: the mask of the list stands where the group's mode does."""
    tokens = write_secret(tmp_path / "tokens", f"operator {TOKEN}\n")
    tokens.chmod(0o440)
    assert check(snapshot_file, credentials=tmp_path) == (0, "")
    tokens.chmod(0o444)
    assert check(snapshot_file, credentials=tmp_path)[0] == 78


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_the_group_may_read_what_another_user_lends(tmp_path: Path) -> None:
    path = write_secret(tmp_path / "secret", "x")
    os.chown(path, 65534, 0)
    for mode, refused in ((0o640, False), (0o440, False), (0o660, True), (0o644, True)):
        path.chmod(mode)
        if refused:
            with pytest.raises(ConfigError, match="chmod 600"):
                check_secret(str(path), path.stat())
        else:
            check_secret(str(path), path.stat())


def test_a_secret_may_come_through_a_pipe(snapshot_file: Path) -> None:
    script = f"{sys.executable} {ROOT}/hexz_serve.py --check --token-file <(echo operator {TOKEN}) {snapshot_file}"
    assert run("bash", "-c", script).stderr == ""


def test_a_registration_with_a_token_is_for_its_owner_alone(tmp_path: Path, snapshot_file: Path) -> None:
    images = tmp_path / "images"
    images.mkdir(mode=0o755)
    path = images / "mine"
    with Server("--http-port", 0, "--images-dir", images, snapshot_file) as server:

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return requests.get(f"{server.http}/images/mine", headers=headers, timeout=30).status_code

        keys = {"backend": "hexz", "snapshot": "snap"}
        write_secret(path, json.dumps({**keys, "token": TOKEN}))
        path.chmod(0o644)
        assert status(TOKEN) == 500
        assert f"{path}: open to other users (mode 0644): chmod 600 {path}\n" in server.stderr()
        path.chmod(0o600)
        assert (status(TOKEN), status("another")) == (200, 401)
        write_secret(images / "new", json.dumps({**keys, "token": "fifteen-letters"})).rename(path)
        assert status("fifteen-letters") == 500
        assert f"{path}: token has fewer than 16 characters" in server.stderr()
        write_secret(images / "new", json.dumps(keys)).chmod(0o644)
        shutil.move(images / "new", path)
        assert status("") == 200
