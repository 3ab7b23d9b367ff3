"""A client that has stopped reading does not keep a snapshot open that was taken away, under TLS neither."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.protocol.nbd import constants as c
from hexz.servers.sending import HURRIED_S
from hexz.tools.pack import pack
from tests.control.clients import Controlled, done, mount
from tests.nbd.wire import Client, OptionReply
from tests.peers import need, run

DISK = 64 << 20
DRAIN_S = 10 * HURRIED_S
"""How long an unmount waits at most: far less than `STALL_S`, which holds for those whose snapshot stays."""


@pytest.fixture(params=["plain", "tls"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, snapshot_file: Path) -> Iterator[Controlled]:
    """With a mount called ``/big``."""
    with (tmp_path / "raw").open("wb") as raw:
        raw.truncate(DISK)
    pack(str(tmp_path / "raw"), str(tmp_path / "big.hxz"))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    run(
        need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", cert,
    )  # fmt: skip
    key.chmod(0o600)
    secure = ("--tls-cert", cert, "--tls-key", key) if request.param == "tls" else ()
    where = ("--http-port", 0, "--nbd-port", 0, "--s3-port", 0)
    with Controlled(tmp_path / "api.sock", *where, *secure, snapshot_file) as server:
        done(mount(server.control, "/big", tmp_path / "big.hxz"))
        yield server


def connect(url: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # so that the rest stays with the server
    sock.settimeout(60)
    sock.connect(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])))
    return sock


def under_tls(sock: socket.socket) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock)


def ask_over_http(url: str, path: str) -> socket.socket:
    sock = connect(url)
    if url.startswith(("https:", "s3s:")):
        sock = under_tls(sock)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    return sock


def ask_over_nbd(url: str, secure: bool) -> socket.socket:
    client = Client(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])))
    if secure:
        assert client.option(c.OPT_STARTTLS) == [OptionReply(c.REP_ACK, b"")]
        client.sock = under_tls(client.sock)
    client.go("big")
    asked = (struct.pack(">IHHQQI", c.REQUEST_MAGIC, 0, c.CMD_READ, n, n << 20, 1 << 20) for n in range(DISK >> 20))
    client.send(b"".join(asked))
    assert client.take(4) == struct.pack(">I", c.SIMPLE_REPLY_MAGIC)
    return client.sock


def is_open(daemon: Controlled, name: str) -> bool:
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    return any(os.readlink(one).endswith(f"/{name}") for one in folder.iterdir() if one.is_symlink())


@pytest.mark.parametrize("protocol", ["http", "s3", "nbd"])
def test_who_does_not_read_lets_go_of_what_was_taken_away(daemon: Controlled, protocol: str) -> None:
    url = next(url for scheme, url in daemon.urls.items() if scheme.rstrip("s") == protocol.rstrip("s"))
    secure = "https" in daemon.urls
    if protocol == "nbd":
        sock = ask_over_nbd(url, secure)
    else:
        sock = ask_over_http(url, "/snapshots/big/disk" if protocol == "http" else "/big/disk")
    with sock:
        assert is_open(daemon, "big.hxz")
        done(daemon.ask("DELETE", f"/api/v1/mount?mountpoint=/big&drain_timeout={DRAIN_S:.0f}"))
        assert not is_open(daemon, "big.hxz")
