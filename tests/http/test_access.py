"""Who may read, how much, and what is written down: tokens, rate limits, TLS, the access log, strange names."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hexz.errors import ConfigError, UsageError
from hexz.servers.http import access
from hexz.servers.http import handler as http_handler
from hexz.servers.http.access import AccessLog, Gate, RateLimit, Tokens, parse_rate_limit
from hexz.servers.http.handler import STREAK
from hexz.servers.tls import TlsContext
from tests.crafted import Craft
from tests.http.serving import Client, Reply, Serving, request, serving
from tests.peers import Server, need, run, write_secret
from tests.waiting import until

OLD, NEW = "a-token-that-is-long-1", "a-token-that-is-long-2"
RANGED = {"Range": "bytes=10-19"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Tokens


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    return write_secret(path, f"# who reads\nalice {OLD}\nbob {NEW}x  # comment\n\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(OLD), 200),
        ({"Authorization": f"bearer  {OLD}"}, 200),  # 11.1: the scheme in any case
        ({}, 401),
        (bearer(NEW), 401),
        (bearer(OLD[:-1]), 401),
        (bearer(""), 401),
        ({"Authorization": OLD}, 401),
        ({"Authorization": f"Basic {OLD}"}, 401),
        (bearer("\xff\xfe"), 401),
    ],
)
def test_tokens(snapshot_file: Path, token_file: Path, headers: dict[str, str], status: int) -> None:
    """RFC 9110 11.6.1: 401 has a challenge; RFC 6750 section 3."""
    with serving({"snap": snapshot_file}, gate=Gate(Tokens(str(token_file)))) as server, server.client() as client:
        for path in ("/", "/disk", "/snap.hxz", "/nothing", "/info"):
            reply = client.ask("HEAD", path, headers)
            assert reply.status == (404 if status == 200 and path == "/nothing" else status)
            assert ("www-authenticate" in reply.headers) is (status == 401)
        assert client.ask("GET", "/healthz").status == client.ask("GET", "/readyz").status == 200


def test_a_token_is_asked_for_on_every_request(snapshot_file: Path, token_file: Path) -> None:
    """One right request on a connection opens nothing for those behind it, on the fast path neither."""
    with serving({"snap": snapshot_file}, gate=Gate(Tokens(str(token_file)))) as server, server.client() as client:
        for _ in range(STREAK + 3):
            assert client.ask("GET", "/disk", {**RANGED, **bearer(OLD)}).status == 206
        assert client.ask("GET", "/disk", RANGED).status == 401
        assert client.ask("GET", "/disk", {**RANGED, **bearer(NEW)}).status == 401
        assert client.ask("GET", "/disk", {**RANGED, **bearer(OLD)}).status == 206


@pytest.mark.parametrize("text", ["", "# none\n", "alice\n", "alice short\n", f"a {OLD} more\n", f"a {OLD}\na {NEW}\n",
                                  "a \xff\xfe"])  # fmt: skip
def test_token_files_that_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    write_secret(path, text.encode("latin-1"))
    with pytest.raises(ConfigError, match=str(path)):
        Tokens(str(path))


def test_tokens_are_read_again(snapshot_file: Path, token_file: Path) -> None:
    """SIGHUP: the new ones count at once, on open connections too; a file that is wrong changes nothing."""
    with Server(snapshot_file, "--http-port", 0, "--token-file", token_file) as server:
        with Client(("127.0.0.1", int(server.http.rpartition(":")[2]))) as client:

            def status(token: str) -> int:
                return client.ask("GET", "/disk", {**RANGED, **bearer(token)}).status

            assert [status(OLD) for _ in range(STREAK + 3)] == [206] * (STREAK + 3)
            assert status(NEW) == 401
            write_secret(token_file, f"alice {NEW}\n")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: status(OLD) == 401)
            assert status(NEW) == 206
            write_secret(token_file, "rubbish\n")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: "line 1" in server.stderr())
            assert (status(NEW), status(OLD)) == (206, 401)


# Rate limits


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100", (100, 0)), ("100,50M", (100, 50 << 20)), ("0,1K", (0, 1024)), ("", None), ("-1", None), ("1,", None),
     ("x", None), ("1,2,3", None), ("\u0661", None), ("9" * 10, None), (" 1", None)],
)  # fmt: skip
def test_rate_limits_as_written(text: str, expected: tuple[int, int] | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            parse_rate_limit(text)
    else:
        assert parse_rate_limit(text) == expected


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(access, "time", made)
    return made


def ask_from(server: Serving, address: str, path: str = "/healthz") -> Reply:
    with socket.create_connection(server.address, 30, (address, 0)) as sock:
        client = Client.__new__(Client)
        client.sock, client.rest = sock, b""
        return client.ask("GET", path)


def test_a_client_that_asks_too_often(snapshot_file: Path, clock: Clock) -> None:
    """RFC 6585 section 4, RFC 9110 10.2.3: 429 says when to come again; other addresses notice nothing."""
    with serving({"snap": snapshot_file}, gate=Gate(None, RateLimit(5, 0))) as server:
        assert [ask_from(server, "127.0.0.1").status for _ in range(7)] == [200] * 5 + [429] * 2
        refused = ask_from(server, "127.0.0.1")
        assert refused.headers["retry-after"] == "1"
        assert ask_from(server, "127.0.0.2").status == 200
        clock.now += 0.5
        assert [ask_from(server, "127.0.0.1").status for _ in range(4)] == [200, 200, 429, 429]
        clock.now += 3600  # what was not used does not add up
        assert [ask_from(server, "127.0.0.1").status for _ in range(6)] == [200] * 5 + [429]


def test_a_client_that_reads_too_much(snapshot_file: Path, clock: Clock, disk: bytes) -> None:
    """An answer that has begun is finished; the next one waits until it is paid for."""
    with serving({"snap": snapshot_file}, gate=Gate(None, RateLimit(0, 1 << 20))) as server, server.client() as client:
        assert client.ask("GET", "/disk", {"Range": "bytes=0-3145727"}).body == disk[: 3 << 20]
        until(lambda: client.ask("HEAD", "/info").status == 429)
        refused = client.ask("GET", "/disk", RANGED)
        assert (refused.status, refused.headers["retry-after"]) == (429, "3")
        clock.now += int(refused.headers["retry-after"])
        assert client.ask("GET", "/disk", RANGED).status == 206


def test_a_network_of_ipv6_is_one_client(clock: Clock) -> None:
    """RFC 6177: a /64 is the least that a customer has.  An IPv4 address in IPv6 clothes is that address."""
    gate = Gate(None, RateLimit(5, 0))

    def admitted(*peers: str) -> int:
        return sum(gate.charge(peer) is None for peer in peers for _ in range(3))

    assert admitted(*(f"2001:db8::{number:x}:5000" for number in range(20))) == 5
    assert admitted("2001:db8:0:1::1:5000") == 3
    assert admitted(*(f"192.0.2.1:{port}" for port in range(20))) == 5
    assert admitted("::ffff:192.0.2.1:5000") == 0
    assert admitted("192.0.2.2:1", "unix") == 6


def test_what_is_refused_is_counted_too(snapshot_file: Path, token_file: Path, clock: Clock) -> None:
    """What is malformed, what has no token, by another name, of another origin, and what browsers ask beforehand."""
    asked = [
        request("GET", "/disk"),
        b"GET /disk HTTP/1.1\r\nbad header\r\n\r\n",
        b"rubbish\r\n\r\n",
        request("POST", "/disk", {"Origin": "http://evil.example"}),
        request("OPTIONS", "/disk", {"Access-Control-Request-Method": "GET"}),
    ]
    usual = [401, 400, 400, 403, 204]
    gate = Gate(Tokens(str(token_file)), RateLimit(4, 0))
    with serving({"snap": snapshot_file}, gate=gate, cors="*") as server:
        for data, status in zip(asked, usual):
            clock.now += 1
            statuses = []
            for _ in range(6):
                with server.client() as client:
                    client.send(data)
                    statuses.append(client.receive().status)
            assert statuses == [status] * 4 + [429] * 2


def test_limits_hold_on_the_fast_path(snapshot_file: Path, clock: Clock) -> None:
    """Requests that differ in their range alone are counted like all others, and so are their bytes."""
    with serving({"snap": snapshot_file}, gate=Gate(None, RateLimit(20, 0))) as server, server.client() as client:
        assert [client.ask("GET", "/disk", RANGED).status for _ in range(25)] == [206] * 20 + [429] * 5
        clock.now += 1
        assert [client.ask("GET", "/disk", RANGED).status for _ in range(25)] == [206] * 20 + [429] * 5
    ranged = {"Range": "bytes=0-99999"}
    with serving({"snap": snapshot_file}, gate=Gate(None, RateLimit(0, 1_500_000))) as server:
        with server.client() as client:
            statuses = [client.ask("GET", "/disk", ranged).status for _ in range(20)]
        # An answer may arrive before its bytes are counted.
        assert 15 <= statuses.count(206) <= 17 and statuses[-1] == 429


def test_what_was_not_read_is_not_logged_as_sent(snapshot_file: Path, tmp_path: Path) -> None:
    """Also when the crowd had begun the answer."""
    path = tmp_path / "access"
    with serving({"snap": snapshot_file}, access_log=AccessLog(str(path))) as server:
        with server.client() as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(STREAK + 3):
                client.ask("GET", "/disk", RANGED)
            client.send(request("GET", "/disk", {"Range": "bytes=0-99999"}) * 100)
            client.sock.recv(1)
        until(lambda: len(server.listener.live()) == 0)
        lines = entries(path)[STREAK + 3 :]
        assert lines and all(line["bytes"] == 100_000 for line in lines[:-1])
        assert sum(line["bytes"] for line in lines) < 10_000_000


def test_the_addresses_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(access, "MAX_CLIENTS", 10)
    gate = Gate(None, RateLimit(1, 0))
    for number in range(100):
        gate._limiter.wait_for(f"10.0.0.{number}")  # type: ignore[union-attr]
    assert len(gate._limiter._clients) == 10  # type: ignore[union-attr]
    assert gate._limiter.wait_for("10.0.0.99") > 0  # type: ignore[union-attr]


# The access log


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_access_log(snapshot_file: Path, token_file: Path, tmp_path: Path) -> None:
    """A line each, also for what was refused, and what a client sends cannot end a line or pose as another field."""
    path = tmp_path / "access"
    gate, log = Gate(Tokens(str(token_file))), AccessLog(str(path))
    with serving({"snap": snapshot_file}, gate=gate, access_log=log) as server, server.client() as client:
        for _ in range(STREAK + 2):
            client.ask("GET", "/disk", {**RANGED, **bearer(OLD), "Host": "snap.example:80"})
        client.ask("HEAD", '/disk?a="},{\\x', bearer(OLD))
        client.ask("GET", "/disk")
        client.send(b"rubbish\r\n\r\n")
        client.receive()
        assert client.ended()
        until(lambda: len(entries(path)) == STREAK + 5)
    lines = entries(path)
    for line in lines[: STREAK + 2]:
        assert {key: line[key] for key in ("token", "method", "host", "path", "range", "status", "bytes")} == {
            "token": "alice", "method": "GET", "host": "snap.example:80", "path": "/disk", "range": "bytes=10-19",
            "status": 206, "bytes": 10,
        }  # fmt: skip
        assert line["client"].startswith("127.0.0.1:") and 0 <= line["seconds"] < 60
        assert abs(line["time"] - time.time()) < 600
    odd, refused, rubbish = lines[STREAK + 2 :]
    assert (odd["path"], odd["status"], odd["bytes"]) == ('/disk?a="},{\\x', 200, 0)
    assert (refused["token"], refused["status"]) == (None, 401)
    assert [rubbish[key] for key in ("method", "host", "path", "status")] == [None, None, None, 400]
    assert OLD not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_access_log_is_rotated(snapshot_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "access"
    with Server(snapshot_file, "--http-port", 0, "--access-log", path) as server:
        with Client(("127.0.0.1", int(server.http.rpartition(":")[2]))) as client:
            client.ask("GET", "/healthz")
            until(lambda: len(entries(path)) == 1)
            path.rename(tmp_path / "access.1")
            server.process.send_signal(signal.SIGHUP)
            until(path.exists)

            def again() -> bool:
                client.ask("GET", "/readyz")
                return bool(entries(path))

            until(again)
    assert {line["path"] for line in entries(path)} == {"/readyz"}


def test_an_access_log_that_cannot_be_written(tmp_path: Path) -> None:
    """It goes to no file that somebody else could have put there, and no FIFO holds up the start."""
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "shared").touch()
    os.link(tmp_path / "shared", tmp_path / "other name")
    paths = [tmp_path / name for name in ("link", "none/log", "fifo", "shared")] + [tmp_path]
    if os.geteuid() == 0:
        (tmp_path / "theirs").touch()
        os.chown(tmp_path / "theirs", 65534, 65534)
        paths.append(tmp_path / "theirs")
    for path in paths:
        with pytest.raises(ConfigError, match=str(path)):
            AccessLog(str(path))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(("before", "after"), [(0o666, 0o640), (0o640, 0o640), (0o644, 0o640), (0o600, 0o600)])
def test_an_access_log_is_for_its_owner_and_those_who_collect_it(tmp_path: Path, before: int, after: int) -> None:
    """Who rotates logs creates them for a group that may read; what the others could do ends."""
    path = tmp_path / "access"
    path.touch()
    path.chmod(before)
    AccessLog(str(path))
    assert path.stat().st_mode & 0o777 == after


# TLS


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    run(
        need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", key, "-out", made,
    )  # fmt: skip
    return made, key


def shake_hands(address: tuple[str, int], **versions: Any) -> tuple[bytes, str]:
    """The certificate that the server shows, and the version agreed on."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, version in versions.items():
        setattr(context, name, version)
    with socket.create_connection(address, 30) as sock, context.wrap_socket(sock) as secure:
        return secure.getpeercert(True) or b"", secure.version() or ""


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_tls(snapshot_file: Path, disk: bytes, tmp_path: Path) -> None:
    """Everything as without; TLS 1.2 and later only; what is no TLS ends, and harms nobody."""
    cert, key = certificate(tmp_path, "one")
    with serving({"snap": snapshot_file}, tls=TlsContext(str(cert), str(key))) as server:
        context = ssl.create_default_context(cafile=str(cert))
        with socket.create_connection(server.address, 30) as sock:
            client = Client.__new__(Client)
            client.sock, client.rest = context.wrap_socket(sock, server_hostname="127.0.0.1"), b""
            for start, stop in ((0, 10), (100_000, 3_000_000)):
                for _ in range(2):
                    reply = client.ask("GET", "/disk", {"Range": f"bytes={start}-{stop - 1}"})
                    assert (reply.status, reply.body == disk[start:stop]) == (206, True)
            client.send(request("GET", "/healthz") * 3)
            assert [client.receive().status for _ in range(3)] == [200] * 3
            assert client.ask("GET", "/disk").body == disk
            client.send(request("GET", "/info", {"Connection": "close"}))
            assert client.receive().status == 200
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert shake_hands(server.address, minimum_version=version, maximum_version=version)[0] == der(cert)
        with warnings.catch_warnings(), pytest.raises((ssl.SSLError, ConnectionError)):
            warnings.simplefilter("ignore", DeprecationWarning)
            shake_hands(server.address, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
        with server.client() as plain:
            plain.send(request("GET", "/disk"))
            with pytest.raises((EOFError, ConnectionError)):
                plain.receive()
        assert shake_hands(server.address)[0] == der(cert)


def test_tls_agrees_on_http_1_1_with_whoever_would_rather_have_2(snapshot_file: Path, tmp_path: Path) -> None:
    """RFC 7301: clients of HTTP/2 then fall back, and know before their first request."""
    cert, key = certificate(tmp_path, "one")
    openssl = need("openssl", "openssl")
    pair = ("--tls-cert", cert, "--tls-key", key)
    with Server("--http-port", 0, "--s3-port", 0, "--allow-anonymous", *pair, snapshot_file) as server:
        for url in server.urls.values():
            place = url.partition("://")[2].rstrip("/")
            for offered, agreed in (("h2,http/1.1", "ALPN protocol: http/1.1"), ("h2", "No ALPN negotiated")):
                shown = subprocess.run(
                    [openssl, "s_client", "-connect", place, "-alpn", offered],
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
                ).stdout  # fmt: skip
                assert agreed in shown, (url, shown)
            spoken = run(
                need("curl", "curl"), "-sS", "--cacert", cert, "--http2", "-o", "/dev/null", "-w", "%{http_version}",
                f"https://{place}/snap.hxz",
            )  # fmt: skip
            assert spoken.stdout == "1.1"


def test_a_handshake_that_does_not_come(snapshot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_handler, "TLS_HANDSHAKE_S", 0.2)
    cert, key = certificate(tmp_path, "one")
    with serving({"snap": snapshot_file}, tls=TlsContext(str(cert), str(key))) as server, server.client() as client:
        assert client.ended()


def test_the_certificate_is_read_again(snapshot_file: Path, tmp_path: Path) -> None:
    """SIGHUP: new connections get the new one; a file that is wrong changes nothing."""
    cert, key = certificate(tmp_path, "one")
    other, other_key = certificate(tmp_path, "two")
    first, second = der(cert), der(other)
    with Server(snapshot_file, "--http-port", 0, "--tls-cert", cert, "--tls-key", key) as server:
        address = ("127.0.0.1", int(server.urls["https"].rstrip("/").rpartition(":")[2]))
        assert shake_hands(address)[0] == first
        cert.write_bytes(other.read_bytes())
        key.write_bytes(other_key.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        until(lambda: shake_hands(address)[0] == second)
        cert.write_text("rubbish")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: str(cert) in server.stderr())
        assert shake_hands(address)[0] == second


# Folder archives with strange names

STRANGE = [
    "a b", "<script>alert(1)</script>.html", "a\r\nSet-Cookie: x=1", "%2e%2e", "..%2fx", "...", "~", "con",
    "a/b/..c/d", 'quo"te', "\u202egnp.exe", "\u00e9", "e\u0301", "\U0001f600", "a?b#c", "x" * 5000,
]  # fmt: skip


def archive(folder: Path, files: list[dict[str, Any]]) -> Path:
    craft = Craft("C52")
    craft.data(bytes(range(256)) * 16)
    craft.page()
    craft.metadata = json.dumps({"files": files}).encode()
    return craft.write(folder / "odd.hxz")


def test_strange_names_in_an_archive(tmp_path: Path) -> None:
    """Each can be listed, and read by its percent-encoded name if that is a name at all; none leaves its archive."""
    files = [{"path": path, "offset": n, "size": 10} for n, path in enumerate(STRANGE)]
    with serving({"odd": archive(tmp_path, files)}) as server, server.client() as client:
        listed = json.loads(client.ask("GET", "/snapshots/odd/files/").body)["entries"]
        assert {entry["name"] for entry in listed} == {
            path.partition("/")[0] + "/" if "/" in path else path for path in STRANGE
        }
        for number, path in enumerate(STRANGE):
            reply = client.ask("GET", f"/snapshots/odd/files/{quote(path)}")
            assert (reply.status, reply.body) == (200, bytes(range(number, number + 10)))
            assert reply.headers["content-security-policy"] == "sandbox"
            assert "set-cookie" not in reply.headers
        page = client.ask("GET", "/", {"Accept": "text/html"}).body
        assert b"<script>" not in page


@pytest.mark.parametrize(
    "path, listed",
    [("../x", "x"), ("/etc/passwd", "etc/"), ("a/../../x", "x"), ("./a", "a"), ("a//b", "a/"), ("a/", "a"), ("", None),
     ("a\0b", "a\0b"), ("a\\b", "a\\b"), ("..", None)],
)  # fmt: skip
def test_hostile_names_in_an_archive(tmp_path: Path, path: str, listed: str | None) -> None:
    """They are listed below the archive, as tar would extract them; what is no file's name is left out."""
    others = {"path": "other", "offset": 1, "size": 1}
    with serving({"odd": archive(tmp_path, [{"path": path, "offset": 0, "size": 1}, others])}) as server:
        with server.client() as client:
            reply = client.ask("GET", "/snapshots/odd/files/")
            names = [entry["name"] for entry in json.loads(reply.body)["entries"]]
            assert names == sorted(([listed] if listed is not None else []) + ["other"])
            assert client.ask("GET", "/snapshots/odd/files/other").body == b"\x01"
            if listed is not None and not listed.endswith("/"):
                assert client.ask("GET", f"/snapshots/odd/files/{quote(listed)}").body == b"\x00"
            for target in ("/disk", "/odd.hxz", "/info", "/snapshots", "/"):
                reply = client.ask("GET", target)
                assert reply.status == 200 and b"root:" not in reply.body and str(tmp_path).encode() not in reply.body
