"""STARTTLS: what the protocol says of it, and the programs that use it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.protocol.nbd import constants as c
from tests.nbd.conftest import Exports
from tests.nbd.wire import Client, OptionReply, info, meta
from tests.peers import STOP_S, Server, need, run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as libnbd and QEMU want it: the authority's certificate; and the server's, signed by it."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = need("openssl", "openssl")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    run(
        openssl, "req", "-x509", *key, "-subj", "/CN=tests", "-addext", "keyUsage=keyCertSign",
        "-keyout", folder / "ca-key.pem", "-out", folder / "ca-cert.pem",
    )  # fmt: skip
    names = folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    request = folder / "server.csr"
    run(openssl, "req", *key[:-2], "-subj", "/CN=localhost", "-keyout", folder / "server-key.pem", "-out", request)
    run(
        openssl, "x509", "-req", "-days", "2", "-in", request, "-CA", folder / "ca-cert.pem", "-CAkey",
        folder / "ca-key.pem", "-CAcreateserial", "-extfile", names, "-out", folder / "server-cert.pem",
    )  # fmt: skip
    return folder


def start(exports: Exports, certificates: Path, mode: str, *options: object) -> Server:
    files = [exports.folder / f"{name}.hxz" for name in ("snap", "thin", "damaged")]
    pair = ("--tls-cert", certificates / "server-cert.pem", "--tls-key", certificates / "server-key.pem")
    return Server(*files, "--nbd-port", 0, *pair, "--nbd-tls", mode, *options)


@pytest.fixture(scope="module", params=["required", "optional"])
def secure(request: pytest.FixtureRequest, exports: Exports, certificates: Path) -> Iterator[tuple[Server, str]]:
    with start(exports, certificates, request.param) as server:
        yield server, request.param


def port(server: Server) -> int:
    """The TCP port, whatever the scheme."""
    (url,) = server.urls.values()
    return int(url.rsplit(":", 1)[1].strip("/"))


def connect(server: Server) -> Client:
    return Client(("127.0.0.1", port(server)))


def secured(client: Client, certificates: Path) -> Client:
    """The same client after STARTTLS."""
    assert client.option(c.OPT_STARTTLS) == [OptionReply(c.REP_ACK, b"")]
    return wrapped(client, certificates)


def wrapped(client: Client, certificates: Path) -> Client:
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
    return client


def test_options_before_tls(secure: tuple[Server, str]) -> None:
    """«NBD_REP_ERR_TLS_REQD ... to all options but STARTTLS», ABORT may be acknowledged; unknown ones as well."""
    server, mode = secure
    with connect(server) as client:
        for option, data in ((c.OPT_LIST, b""), (c.OPT_INFO, info("snap")), (77, b"x"), (c.OPT_STRUCTURED_REPLY, b"")):
            refused = client.option(option, data)[-1].kind
            if mode == "required":
                assert refused == c.REP_ERR_TLS_REQD
            else:
                assert refused == (c.REP_ERR_UNSUP if option == 77 else c.REP_ACK)
        assert client.option(c.OPT_ABORT)[-1].kind == c.REP_ACK
        assert client.ended()


def test_export_name_before_tls(secure: tuple[Server, str], exports: Exports) -> None:
    """«MUST terminate the session» for the option that has no error reply, where TLS is required."""
    server, mode = secure
    with connect(server) as client:
        client.send_option(c.OPT_EXPORT_NAME, b"snap")
        if mode == "required":
            assert client.ended()
        else:
            assert struct.unpack(">Q", client.take(8))[0] == len(exports.disk)


def test_tls_starts_over(secure: tuple[Server, str], certificates: Path) -> None:
    """«all state ... MUST be discarded»: what was agreed on in the clear does not hold."""
    server, mode = secure
    with connect(server) as client:
        if mode == "optional":
            client.negotiate("structured")
        secured(client, certificates)
        assert client.option(c.OPT_SET_META_CONTEXT, meta("snap", "base:allocation"))[-1].kind == c.REP_ERR_INVALID
        assert client.option(c.OPT_STRUCTURED_REPLY)[-1].kind == c.REP_ACK
        assert client.option(c.OPT_STARTTLS)[-1].kind == c.REP_ERR_INVALID


def test_what_came_in_the_clear_is_not_taken_for_secure(secure: tuple[Server, str], certificates: Path) -> None:
    """An option put behind STARTTLS by somebody in between must not be answered inside TLS."""
    server, _ = secure
    with connect(server) as client:
        client.send(
            c.IHAVEOPT + struct.pack(">II", c.OPT_STARTTLS, 0) + c.IHAVEOPT + struct.pack(">II", c.OPT_ABORT, 0)
        )
        assert client.option_replies(c.OPT_STARTTLS)[-1].kind == c.REP_ACK
        wrapped(client, certificates)
        assert client.option(c.OPT_LIST)[-1].kind == c.REP_ACK
        client.go("snap")


@pytest.mark.parametrize("form", ["simple", "structured", "extended"])
def test_requests_under_tls(secure: tuple[Server, str], certificates: Path, exports: Exports, form: str) -> None:
    """Reads of all sizes, refusals, payloads read away, a damaged block; then the farewell closes TLS properly."""
    server, _ = secure
    with connect(server) as client:
        secured(client, certificates).negotiate(form)
        client.go("damaged")
        assert client.request(c.CMD_READ, exports.damaged_at, 10).error == c.NBD_EIO
        assert client.read(0, 70_000) == exports.noise[:70_000]
    with connect(server) as client:
        secured(client, certificates).negotiate(form).go("thin")
        size = len(exports.child)
        for offset, length in ((0, 1), (size - 1, 1), (65_535, 2), (5, 300_000), (0, size)):
            assert client.read(offset, length) == exports.child[offset : offset + length]
        assert client.request(c.CMD_WRITE, 0, 100_000, 0, bytes(100_000)).error == c.NBD_EPERM
        asked = {}
        batch = bytearray()
        for number in range(300):
            batch += client.pack(c.CMD_READ, number * 20_000, 9000)
            asked[client.cookie] = (c.CMD_READ, number * 20_000, 9000)
        client.send(bytes(batch) + client.pack(c.CMD_DISC))
        while asked:
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.child[offset : offset + length]
        # An end without TLS's own farewell would raise here.
        assert client.sock.recv(1) == b""


def test_silent_clients_under_tls_make_room(exports: Exports, certificates: Path) -> None:
    with start(exports, certificates, "required", "--max-connections", 2) as server:
        with connect(server) as first, connect(server) as second:
            for client in (first, second):
                secured(client, certificates).go("snap")
                client.read(0, 100)
            deadline = time.monotonic() + STOP_S
            while not greeted(server):  # until they have been silent for a moment
                assert time.monotonic() < deadline


def greeted(server: Server) -> bool:
    with socket.create_connection(("127.0.0.1", port(server)), STOP_S) as sock:
        return sock.recv(8) == b"NBDMAGIC"


def test_nonsense_instead_of_tls_ends_that_connection_only(secure: tuple[Server, str], certificates: Path) -> None:
    server, _ = secure
    with connect(server) as client:
        client.option(c.OPT_STARTTLS)
        with contextlib.suppress(OSError):  # it may hang up at any moment of this
            client.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(100):
                continue
    with connect(server) as client:
        secured(client, certificates).go()


def test_a_stopping_server_tells_so_under_tls(exports: Exports, certificates: Path) -> None:
    """Replies under way end whole; nothing is ever sent in the clear."""
    with start(exports, certificates, "required") as server, connect(server) as client:
        secured(client, certificates).go()
        client.send(client.pack(c.CMD_READ, 0, 6 << 20))
        first = client.take(16 + 100_000)
        server.process.send_signal(signal.SIGTERM)
        rest = client.take((6 << 20) - 100_000)
        assert first[16:] + rest == exports.disk[: 6 << 20]
        assert client.sock.recv(1) == b""
        assert server.process.wait(STOP_S) == 0


def uri(server: Server, certificates: Path, export: str = "") -> str:
    return f"nbds://localhost:{port(server)}/{export}?tls-certificates={certificates}"


@pytest.mark.parametrize("connections", [1, 4])
def test_libnbd_over_tls(
    secure: tuple[Server, str], certificates: Path, exports: Exports, tmp_path: Path, connections: int
) -> None:
    server, _ = secure
    described = json.loads(run(need("nbdinfo", "libnbd-bin"), "--json", uri(server, certificates, "thin")).stdout)
    assert described["TLS"] is True
    assert described["exports"][0]["export-size"] == len(exports.child)
    out = tmp_path / "out.raw"
    run(need("nbdcopy", "libnbd-bin"), f"--connections={connections}", uri(server, certificates, "thin"), out)
    assert out.read_bytes() == exports.child


def test_qemu_over_tls(secure: tuple[Server, str], certificates: Path, disk_image: Path, tmp_path: Path) -> None:
    server, _ = secure
    qemu_img = need("qemu-img", "qemu-utils")
    objects = ["--object", f"tls-creds-x509,id=tls,dir={certificates},endpoint=client"]
    where = f"driver=nbd,host=localhost,port={port(server)},export=,tls-creds=tls"
    described = json.loads(run(qemu_img, "info", *objects, "--output=json", "--image-opts", where).stdout)
    assert described["virtual-size"] >= disk_image.stat().st_size
    local = f"driver=raw,file.filename={disk_image}"
    run(qemu_img, "compare", *objects, "--image-opts", f"driver=raw,file.{where.replace(',', ',file.')}", local)
    copy = tmp_path / "copy.qcow2"
    run(qemu_img, "convert", *objects, "--image-opts", "-O", "qcow2", "-m", "8", "-W", where, copy)
    run(qemu_img, "compare", "-f", "qcow2", "-F", "raw", copy, disk_image)
    extents = json.loads(run(qemu_img, "map", *objects, "--output=json", "--image-opts", where).stdout)
    assert {extent["zero"] for extent in extents} == {True, False}
