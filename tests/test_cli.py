"""What a wrong command line, a wrong file or a wrong host gets: one line on stderr, and the status that says which."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hexz.options.parser import COMMON
from hexz.options.values import Options
from tests import vectors
from tests.peers import ROOT, need, write_secret

CORPUS = ROOT / "tests" / "corpus"
ENCRYPTED = "0.5.0-lz4-encrypted.hxz"


def encrypted() -> str:
    return next(name for name, vector in vectors.load().items() if vector["password"] and not vector["parents"])


def thin() -> str:
    return next(
        name for name, v in vectors.load().items() if v["parents"] and not v["password"] and v["layout"] == "B52"
    )


def copied(folder: Path, name: str) -> Path:
    return Path(shutil.copy(vectors.path(name), folder / name))


def file_of(content: bytes) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        path = folder / "bad.hxz"
        path.write_bytes(content)
        return [path]

    return make


def unreadable(folder: Path) -> list[object]:
    path = folder / "closed.hxz"
    path.write_bytes(b"x")
    path.chmod(0)
    return [path]


def own_parent(folder: Path) -> list[object]:
    """Two snapshots, each the other's parent."""
    from hexz.tools.pack import pack

    (folder / "raw").write_bytes(b"a" * 10_000)
    pack(str(folder / "raw"), str(folder / "a.hxz"))
    pack(str(folder / "raw"), str(folder / "b.hxz"), parent=str(folder / "a.hxz"))
    pack(str(folder / "raw"), str(folder / "c.hxz"), parent=str(folder / "b.hxz"))
    os.replace(folder / "c.hxz", folder / "a.hxz")
    return [folder / "b.hxz"]


def wrong_password(folder: Path) -> list[object]:
    write_secret(folder / "password", "wrong\n")
    return ["--password-file", folder / "password", copied(folder, encrypted())]


def port_taken(folder: Path) -> list[object]:
    taken = socket.create_server(("127.0.0.1", 0))
    TAKEN.append(taken)
    return ["--port", taken.getsockname()[1], CORPUS / "0.7.0-lz4-onebyte.hxz"]


def no_certificate(folder: Path) -> list[object]:
    write_secret(folder / "bad.pem", "no certificate")
    return ["--tls-cert", folder / "bad.pem", "--tls-key", folder / "bad.pem", GOOD]


def encrypted_key(folder: Path) -> list[object]:
    generate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=localhost", "-passout", "pass:secret"]
    files = ["-keyout", str(folder / "encrypted.pem"), "-out", str(folder / "certificate.pem")]
    need(generate[0])
    subprocess.run([*generate, *files], check=True, capture_output=True)
    return ["--tls-cert", folder / "certificate.pem", "--tls-key", folder / "encrypted.pem", GOOD]


LONGEST_HELP = 50
"""Lines of 80 characters: what a terminal shows without much scrolling."""
TAKEN: list[socket.socket] = []
GOOD = CORPUS / "0.7.0-lz4-onebyte.hxz"
HEADER = (CORPUS / "0.7.0-lz4-onebyte.hxz").read_bytes()

CASES: dict[str, tuple[Callable[[Path], list[object]], int, str]] = {
    "no snapshot": (lambda folder: [], 2, "no snapshot given"),
    "unknown option": (lambda folder: ["--frobnicate", GOOD], 2, "--frobnicate (see hexz-serve --help all)"),
    "misspelt option": (lambda folder: ["--ndb", GOOD], 2, "--ndb: did you mean --nbd?"),
    "misspelt option with a value": (lambda folder: ["--chache-size=1G", GOOD], 2, "did you mean --cache-size?"),
    "bad port": (lambda folder: ["--port", "70000", GOOD], 2, "70000"),
    "bad size": (lambda folder: ["--cache-size", "many", GOOD], 2, "'many' is not a size"),
    "port for two protocols": (lambda folder: ["--port", 1, "--nbd", "--http", GOOD], 2, "--nbd-port"),
    "open to a network": (lambda folder: ["--bind", "0.0.0.0", GOOD], 2, "--allow-anonymous"),
    "same name twice": (
        lambda folder: [GOOD, f"0.7.0-lz4-onebyte={CORPUS / '0.4.5-zstd-onebyte.hxz'}"],
        2,
        "NAME=FILE",
    ),
    "missing": (lambda folder: [folder / "none.hxz"], 66, "none.hxz: no such file"),
    "directory without snapshots": (lambda folder: [folder], 66, "no .hxz file"),
    "a pipe": (lambda folder: (os.mkfifo(folder / "p.hxz"), [folder / "p.hxz"])[1], 66, "not a regular file"),
    "empty": (file_of(b""), 65, "not a hexz snapshot: the file is empty"),
    "small and foreign": (file_of(b"PK"), 65, "not a hexz snapshot"),
    "foreign": (file_of(b"PK\3\4" * 2000), 65, "not a hexz snapshot"),
    "unfinished": (file_of(bytes(9000)), 65, "not finished"),
    "truncated in the header": (file_of(HEADER[:100]), 65, "truncated: only 100 bytes"),
    "truncated in the blocks": (file_of(HEADER[:4100]), 65, "truncated: the index is said to be at "),
    "truncated in the index": (file_of(HEADER[:-40]), 65, "truncated"),
    "truncated by a byte": (file_of(HEADER[:-1]), 65, "truncated"),
    "unreadable": (unreadable, 77, "permission denied"),
    "no password": (lambda folder: [copied(folder, encrypted())], 77, "--password-file"),
    "wrong password": (wrong_password, 77, "wrong password"),
    "missing password file": (lambda folder: ["--password-file", folder / "none", GOOD], 78, "none: cannot read"),
    "missing parent": (lambda folder: [copied(folder, thin())], 66, "--parent-dir"),
    "cyclic parents": (own_parent, 65, "its own ancestor"),
    "port taken": (port_taken, 69, "Address already in use: choose another port (--port, or --http-port"),
    "no such address": (
        lambda folder: ["--bind", "192.0.2.1", "--allow-anonymous", "--port", 0, GOOD],
        69,
        "cannot listen",
    ),
    "link-local address without its interface": (
        lambda folder: ["--bind", "fe80::1", "--allow-anonymous", "--port", 0, GOOD],
        69,
        "--bind fe80::1%INTERFACE",
    ),
    "missing certificate": (lambda folder: ["--tls-cert", "/none", "--tls-key", "/none", GOOD], 78, "/none"),
    "certificate without key": (lambda folder: ["--tls-cert", "/none", GOOD], 2, "--tls-key"),
    "no certificate": (no_certificate, 78, "bad.pem: not a certificate with its key in "),
    "missing key": (lambda folder: ["--tls-cert", GOOD, "--tls-key", "/none", GOOD], 78, "/none: cannot read"),
    "key with a passphrase": (encrypted_key, 78, "encrypted.pem: the key is encrypted: store it without a passphrase"),
    "missing tokens": (lambda folder: ["--token-file", "/none", GOOD], 78, "/none"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_a_status(case: str, tmp_path: Path) -> None:
    arguments, status, says = CASES[case]
    command = [sys.executable, str(ROOT / "hexz_serve.py"), *map(str, arguments(tmp_path))]
    if case == "unreadable" and os.geteuid() == 0:
        # Root reads everything: become nobody, once the code is loaded.
        for folder in (tmp_path, *tmp_path.parents):
            if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
                folder.chmod(0o755)
        program = "import os, sys, hexz.cli, hexz.assembly.serving; hexz.cli.parse_arguments(sys.argv[1:]); "
        program += "os.setgid(65534); os.setuid(65534); sys.exit(hexz.cli.main())"
        command[1:2] = ["-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("hexz-serve: ") and says in lines[0], done.stderr
    assert "_ssl.c" not in done.stderr


def test_without_cryptography_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ImportError('not installed')\n")
    write_secret(tmp_path / "password", "x")
    command = [sys.executable, str(ROOT / "hexz_serve.py"), "--password-file", str(tmp_path / "password")]
    command.append(str(copied(tmp_path, encrypted())))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert "apt install python3-cryptography" in done.stderr and "pip install cryptography" in done.stderr


def test_check_prints_what_would_be_served() -> None:
    command = [
        sys.executable,
        str(ROOT / "hexz_serve.py"),
        "--check",
        f"one={GOOD}",
        str(CORPUS / "0.4.5-zstd-onebyte.hxz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == ""
    *snapshots, listener = done.stdout.splitlines()
    assert [line.split(":")[0] for line in snapshots] == ["one (default)", "0.4.5-zstd-onebyte"]
    assert listener == "http://127.0.0.1:8080/ reads: every user of this machine; writes: nobody"


def test_help_begins_with_one_line_of_usage_and_examples() -> None:
    lines = help_text("--help").splitlines()
    assert lines[:2] == ["usage: hexz-serve [OPTIONS] SNAPSHOT [SNAPSHOT ...]", ""]
    assert any(line.startswith("  hexz-serve --http --nbd snap.hxz ") for line in lines[:10])
    text = " ".join(help_text("--help", "all").split())
    assert "most connections for each listener (default 4096)" in text
    assert "python " not in text


def test_help_is_short_and_says_how_to_see_every_option() -> None:
    short = help_text("-h")
    assert len(short.splitlines()) <= LONGEST_HELP
    assert all(f"  {option} " in short for option in COMMON if option != "--help")
    assert "--drain-timeout" not in short and "controlling:" not in short
    assert "hexz-serve --help all, and man hexz-serve" in short
    assert "  --drain-timeout " in help_text("--help=all") and "controlling:" in help_text("--help", "all")
    assert help_text("--help", "snap.hxz") == short
    known = set(Options._fields) | {"version"}
    assert {option.strip("-").replace("-", "_") for option in COMMON} <= known


def help_text(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "hexz_serve.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={"COLUMNS": "80"})
    return done.stdout


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    name = "evil\x1b[2J\x9b1m\nhexz-serve: all is well.hxz"
    (tmp_path / name).write_bytes(b"no snapshot")
    command = [sys.executable, str(ROOT / "hexz_serve.py"), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr and "\x9b" not in done.stderr
    assert "evil\\x1b[2J\\x9b1m\\nhexz-serve: all is well" in done.stderr


def test_the_reason_of_tls_is_the_librarys_own_words() -> None:
    from hexz.servers.tls import tls_reason

    for error, reason in (
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"), "wrong version number"),
        (ssl.SSLError(524297, "[SSL] PEM lib (_ssl.c:3877)"), "pem lib"),
        (TimeoutError("_ssl.c:983: The handshake operation timed out"), "the handshake operation timed out"),
        (TimeoutError("timed out"), "timed out"),
        (
            ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:1006)"),
            "eof occurred in violation of protocol",
        ),
    ):
        assert tls_reason(error) == reason
