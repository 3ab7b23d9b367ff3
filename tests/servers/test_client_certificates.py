"""--tls-client-ca: whoever has no certificate of that authority gets nothing, over all protocols."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hexz.rights.exposure import Access, Anonymous
from tests.conftest import CORPUS
from tests.peers import ROOT, Server, need, run
from tests.rights.test_exposure import LOOPBACK, NETWORK, SOCKET, secret

GOOD = CORPUS / "0.7.0-lz4-onebyte.hxz"
TIMEOUT_S = 60.0
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
CLIENTS = {"known": True, "none": False, "foreign": False}
"""Folders as libnbd wants them; whether their client is let in."""


def authority(folder: Path) -> None:
    """A key and a certificate that may sign others."""
    folder.mkdir()
    run(
        need("openssl", "openssl"), "req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={folder.name}",
        "-addext", "keyUsage=keyCertSign", "-keyout", folder / "ca-key.pem", "-out", folder / "ca-cert.pem",
    )  # fmt: skip


def signed(by: Path, name: str, folder: Path) -> None:
    """A certificate for localhost, as a server's or a client's."""
    folder.mkdir(exist_ok=True)
    names, request = folder / "names", folder / "request"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl = need("openssl", "openssl")
    run(openssl, "req", *KEY, "-subj", f"/CN={name}", "-keyout", folder / f"{name}-key.pem", "-out", request)
    run(
        openssl, "x509", "-req", "-days", "2", "-in", request, "-CA", by / "ca-cert.pem", "-CAkey", by / "ca-key.pem",
        "-CAcreateserial", "-extfile", names, "-out", folder / f"{name}-cert.pem",
    )  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, a server's certificate, and a folder for each client."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "theirs"):
        authority(folder / name)
    signed(folder / "ours", "server", folder / "server")
    signed(folder / "ours", "client", folder / "known")
    signed(folder / "theirs", "client", folder / "foreign")
    (folder / "none").mkdir()
    for name in CLIENTS:
        shutil.copy(folder / "ours" / "ca-cert.pem", folder / name)
    return folder


def options(house: Path, *more: object) -> tuple[object, ...]:
    pair = ("--tls-cert", house / "server" / "server-cert.pem", "--tls-key", house / "server" / "server-key.pem")
    return (*pair, "--tls-client-ca", house / "ours" / "ca-cert.pem", *more)


def port(url: str) -> int:
    return int(url.rstrip("/").rpartition(":")[2])


def refusals(server: Server, most: int) -> list[str]:
    """The lines on handshakes that failed, once there are so many."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        lines = [line for line in server.stderr().splitlines() if " TLS: " in line]
        if len(lines) >= most or time.monotonic() > deadline:
            return lines
        time.sleep(0.02)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_curl(house: Path, protocol: str, client: str) -> None:
    shown = ["--cert", house / client / "client-cert.pem", "--key", house / client / "client-key.pem"]
    shown = shown if client != "none" else []
    with Server(*options(house, f"--{protocol}-port", 0, f"snap={GOOD}")) as server:
        (url,) = server.urls.values()
        path = "snap/disk" if protocol == "s3" else "disk"
        done = run(
            need("curl", "curl"), "-sS", "--cacert", house / "ours" / "ca-cert.pem", *shown,
            "-o", "/dev/null", "-w", "%{http_code}", f"https://127.0.0.1:{port(url)}/{path}", check=False,
        )  # fmt: skip
        assert (done.returncode == 0, done.stdout) == ((True, "200") if CLIENTS[client] else (False, "000"))
        lines = refusals(server, 0 if CLIENTS[client] else 1)
        assert len(lines) == (0 if CLIENTS[client] else 1), lines
        assert all("certificate" in line and " INFO " in line for line in lines)


@pytest.mark.parametrize("client", CLIENTS)
def test_libnbd(house: Path, client: str) -> None:
    with Server(*options(house, "--nbd-port", 0, f"snap={GOOD}")) as server:
        (url,) = server.urls.values()
        uri = f"nbds://localhost:{port(url)}/snap?tls-certificates={house / client}"
        done = run(need("nbdinfo", "libnbd-bin"), "--json", uri, check=False)
        assert (done.returncode == 0) is CLIENTS[client], done.stderr
        if CLIENTS[client]:
            assert json.loads(done.stdout)["TLS"] is True
        assert len(refusals(server, 0 if CLIENTS[client] else 1)) == (0 if CLIENTS[client] else 1)


def asked(house: Path, address: tuple[str, int], client: str, version: ssl.TLSVersion) -> bool:
    """Whether the daemon answers a request at all."""
    context = ssl.create_default_context(cafile=str(house / "ours" / "ca-cert.pem"))
    context.minimum_version = context.maximum_version = version
    if client != "none":
        context.load_cert_chain(house / client / "client-cert.pem", house / client / "client-key.pem")
    try:
        with socket.create_connection(address, TIMEOUT_S) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return sock.recv(100).startswith(b"HTTP/1.1 200")
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_authority_is_read_again(house: Path, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """SIGHUP: new connections are held to the new one; a file that is wrong changes nothing."""
    ca = tmp_path / "ca.pem"
    shutil.copy(house / "ours" / "ca-cert.pem", ca)
    with Server(*options(house, "--tls-client-ca", ca, "--http-port", 0, GOOD)) as server:
        address = "127.0.0.1", port(server.http if "http" in server.urls else server.urls["https"])

        def let_in() -> set[str]:
            return {client for client in CLIENTS if asked(house, address, client, version)}

        def reload() -> None:
            count = server.stderr().count("reloaded: ")
            server.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + TIMEOUT_S
            while server.stderr().count("reloaded: ") == count:
                assert time.monotonic() < deadline
                time.sleep(0.02)

        assert let_in() == {"known"}
        shutil.copy(house / "theirs" / "ca-cert.pem", ca)
        reload()
        assert let_in() == {"foreign"}
        ca.write_text("rubbish")
        reload()
        assert f"{ca}: no certificate of an authority as PEM" in server.stderr()
        assert let_in() == {"foreign"}


def test_it_opens_a_network_to_those_who_have_one(house: Path) -> None:
    """Without --allow-anonymous; but NBD whose clients may do without TLS stays shut."""
    ports = ("--bind", "0.0.0.0", "--http-port", 0, "--nbd-port", 0, "--s3-port", 0)
    with Server(*options(house, *ports, GOOD)) as server:
        assert len(server.urls) == 3
        assert " WARNING " not in server.stderr()
        address = "127.0.0.1", port(server.urls["https"])
        assert asked(house, address, "known", ssl.TLSVersion.TLSv1_3)
        assert not asked(house, address, "none", ssl.TLSVersion.TLSv1_3)
    for mode in ("optional", "off"):
        done = start(*options(house, "--bind", "0.0.0.0", "--nbd-port", 0, "--nbd-tls", mode, GOOD))
        assert done.returncode == 2
        assert "over NBD: give --nbd-tls required, or add --allow-anonymous=nbd" in done.stderr


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "hexz_serve.py", *arguments, check=False)


def test_what_it_needs(house: Path, tmp_path: Path) -> None:
    ca = house / "ours" / "ca-cert.pem"
    done = start("--tls-client-ca", ca, "--http-port", 0, GOOD)
    assert (done.returncode, "--tls-client-ca needs --tls-cert" in done.stderr) == (2, True)
    (tmp_path / "empty").write_bytes(b"")
    for wrong, says in ((tmp_path / "missing", "cannot read: No such file"), (tmp_path / "empty", "as PEM")):
        done = start(*options(house, "--tls-client-ca", wrong, "--http-port", 0, GOOD))
        assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
        assert f"{wrong}: " in done.stderr and says in done.stderr


REQUIRED = dict.fromkeys(("http", "nbd", "s3"), "required")


def test_who_is_told_to_read_and_write() -> None:
    access = Access(set(), Anonymous(), REQUIRED, authority=True, images=True)
    assert access.describe("nbd", NETWORK) == "reads: whoever has a certificate; writes: nobody"
    assert access.describe("s3", LOOPBACK) == "reads: whoever has a certificate; writes: nobody"
    assert access.describe("http", NETWORK) == (
        "reads: whoever has a certificate; writes: whoever has the image's own token and a certificate"
    )
    assert access.describe("http", LOOPBACK) == (
        "reads: whoever has a certificate; "
        "writes: whoever has a certificate, with the image's own token where it has one"
    )
    tokens = Access({"http"}, Anonymous(), REQUIRED, authority=True, images=True)
    assert tokens.describe("http", NETWORK).startswith("reads: whoever has a token and a certificate; writes: whoever ")
    # On a network strangers to tokens do not write, certificate or not.
    assert not access.grant("http", NETWORK).writes


def test_a_listener_that_does_without_is_told() -> None:
    access = Access(set(), Anonymous(), {**REQUIRED, "nbd": "optional"}, authority=True)
    (line,) = access.warnings("nbd://h/", "nbd", LOOPBACK)
    assert line == (
        "nbd://h/: every user of this machine may read, although --tls-client-ca is given: "
        "--nbd-tls required would ask all clients for a certificate"
    )
    assert access.warnings("https://h/", "http", NETWORK) == []
    assert access.warnings("nbd+unix://h", "nbd", SOCKET) == []


def test_tokens_are_asked_for_all_the_same(house: Path, tmp_path: Path) -> None:
    tokens = secret(tmp_path / "tokens", "op 0123456789abcdef0123\n")
    with Server(*options(house, "--http-port", 0, "--token-file", tokens, GOOD)) as server:
        known = house / "known"
        done = run(
            need("curl", "curl"), "-sS", "--cacert", known / "ca-cert.pem", "--cert", known / "client-cert.pem",
            "--key", known / "client-key.pem", "-o", "/dev/null", "-w", "%{http_code}",
            f"https://127.0.0.1:{port(server.urls['https'])}/disk",
        )  # fmt: skip
        assert done.stdout == "401"
