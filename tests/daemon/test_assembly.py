"""What is put together: only what somebody listens on, and what several protocols share once."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.peers import STOP_S, Server, need, run
from tests.rights.test_exposure import start_on
from tests.waiting import until

IHAVEOPT = 0x49484156454F5054
NBD_FLAG_C_FIXED, NBD_OPT_STARTTLS = 1, 5
GREETING, REPLY = 18, 20
"""Sizes of what an NBD server says, in bytes."""


def make_certificate(cert: Path, key: Path) -> None:
    run(
        need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", cert,
    )  # fmt: skip


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    return cert, key


def held(process: subprocess.Popen[bytes] | subprocess.Popen[str], path: Path) -> int:
    """How many descriptors the process has of the file."""
    folder = Path(f"/proc/{process.pid}/fd")
    return [os.readlink(one) for one in folder.iterdir() if one.is_symlink()].count(str(path))


def test_a_service_that_nobody_listens_on_is_not_built(tmp_path: Path, snapshot_file: Path) -> None:
    log = tmp_path / "access.log"
    for protocol, opened in (("nbd", 0), ("http", 1)):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            with start_on(sock, protocol, "--access-log", log, snapshot_file) as process:
                assert process.stdout is not None
                assert process.stdout.readline().startswith(f"listening {protocol}://")
                assert held(process, log) == opened
                process.terminate()
                process.communicate(timeout=STOP_S)
                assert process.returncode == 0
                assert log.exists() is bool(opened)


def test_protocols_share_one_access_log_and_one_certificate(
    tmp_path: Path, snapshot_file: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    log = tmp_path / "access.log"
    ports = ("--http-port", 0, "--s3-port", 0, "--nbd-port", 0)
    with Server(*ports, "--tls-cert", cert, "--tls-key", key, "--access-log", log, snapshot_file) as server:
        assert set(server.urls) == {"https", "s3s", "nbds"}
        for protocol in ("https", "s3s"):
            url = server.urls[protocol].replace("s3s:", "https:")
            run(need("curl", "curl"), "-sS", "--cacert", cert, url.replace("127.0.0.1", "localhost"), "-o", os.devnull)
        until(lambda: len(log.read_text().splitlines()) == 2)  # a line is written when its answer is gone
        assert held(server.process, log) == 1
        log.rename(tmp_path / "old.log")
        cert.write_text("no certificate")
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "reloaded: " in server.stderr())
        assert server.stderr().count("certificate not reloaded: ") == 1
        assert log.exists() and held(server.process, log) == 1


def test_a_certificate_that_is_renewed_is_every_protocols(
    tmp_path: Path, snapshot_file: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    ports = ("--http-port", 0, "--s3-port", 0, "--nbd-port", 0, "--nbd-tls", "required")
    with Server(*ports, "--tls-cert", cert, "--tls-key", key, snapshot_file) as server:
        for renewals in (0, 1):
            until(partial(reloaded, server, renewals))
            shown = [shown_by(url) for url in server.urls.values()]
            assert shown == [(ssl.PEM_cert_to_DER_cert(cert.read_text()), None)] * 3
            make_certificate(cert, key)
            os.kill(server.process.pid, signal.SIGHUP)


def reloaded(server: Server, times: int) -> bool:
    return server.stderr().count("reloaded: ") == times


def shown_by(url: str) -> tuple[bytes | None, str | None]:
    """The listener's certificate, and what ALPN agrees on with a client that offers what is spoken elsewhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"] if url.startswith("nbd") else ["h2"])
    with socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])), STOP_S) as sock:
        if url.startswith("nbd"):
            sock.sendall(struct.pack(">IQII", NBD_FLAG_C_FIXED, IHAVEOPT, NBD_OPT_STARTTLS, 0))
            assert b"".join(sock.recv(1) for _ in range(GREETING + REPLY)).endswith(struct.pack(">II", 1, 0))
        with context.wrap_socket(sock) as secure:
            return secure.getpeercert(True), secure.selected_alpn_protocol()
