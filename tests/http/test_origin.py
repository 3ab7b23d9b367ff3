"""What pages of other sites may have a browser do here: not to read by a name of theirs, and not to write at all."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hexz.errors import UsageError
from hexz.options.parser import parse_arguments
from hexz.protocol.http.head import RequestHead, parse_head
from hexz.protocol.http.origin import Hosts, is_foreign_write, parse_ip
from hexz.rights.exposure import Grant
from hexz.servers.http.access import Gate, RateLimit, Tokens
from hexz.servers.http.handler import STREAK
from tests.http.serving import Client, Reply, request, serving
from tests.peers import Server, write_secret

RANGED = {"Range": "bytes=10-19"}
NAMES = ("box.example", "192.0.2.7", "2001:db8::7")


@pytest.mark.parametrize(
    ("address", "admitted", "refused"),
    [
        (
            "127.0.0.1",
            ["127.0.0.1", "127.0.0.1:8080", "127.9.9.9:1", "[::1]:80", "[::ffff:127.0.0.1]", "localhost", "LocalHost:1",
             "localhost.", "box.example", "BOX.example:443", "box.example.", "192.0.2.7:80", "[2001:db8::7]",
             "[2001:DB8:0:0::7]:1", "s3.example", "bucket.s3.example", "a.b.s3.example:9000"],
            ["", "evil.example", "evil.example:80", "box.example.evil.example", "xbox.example", "a.box.example",
             "localhost.evil.example", "evil.localhost", "xs3.example", "127.0.0.1.evil.example", "10.0.0.1",
             "[fe80::1]", "127.1", "0x7f.1", "0.0.0.0", "[::]"],
        ),
        ("192.0.2.9", ["192.0.2.9:80", "127.0.0.1", "[::ffff:192.0.2.9]"], ["192.0.2.8", "evil.example"]),
        ("2001:db8::9", ["[2001:db8::9]:80", "[::1]"], ["[2001:db8::8]", "192.0.2.9"]),
        ("0.0.0.0", ["192.0.2.9:80", "[fe80::1]", "10.0.0.1", "localhost"], ["evil.example", "127.1", ""]),
        ("::", ["192.0.2.9:80", "[fe80::1]", "10.0.0.1"], ["evil.example"]),
    ],
)  # fmt: skip
def test_names_of_a_listener(address: str, admitted: list[str], refused: list[str]) -> None:
    hosts = Hosts(NAMES, ["S3.example"], parse_ip(address))
    assert [host for host in admitted if not hosts.admits(host)] == []
    assert [host for host in refused if hosts.admits(host)] == []


def head_of(method: str, host: str, **headers: str) -> RequestHead:
    fields = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return parse_head(request(method, "/images/x", fields)[:-4])


FOREIGN: list[tuple[str, dict[str, str], bool]] = [
    ("box:8080", {}, False),
    ("box:8080", {"Origin": "http://box:8080"}, False),
    ("BOX:8080", {"Origin": "http://box:8080"}, False),
    ("box", {"Origin": "http://box"}, False),
    ("box:80", {"Origin": "http://box"}, False),
    ("box", {"Origin": "https://box:443"}, False),
    ("box", {"Origin": "https://box"}, False),
    ("[::1]:8080", {"Origin": "http://[::1]:8080"}, False),
    ("box:8080", {"Origin": "http://box:8080", "Sec-Fetch-Site": "same-origin"}, False),
    ("box:8080", {"Sec-Fetch-Site": "none"}, False),
    ("box:8080", {"Origin": "http://evil.example"}, True),
    ("box:8080", {"Origin": "http://box:3000"}, True),
    ("box:8080", {"Origin": "http://box"}, True),
    ("box:8080", {"Origin": "http://sub.box:8080"}, True),
    ("box:8080", {"Origin": "null"}, True),
    ("box:8080", {"Origin": ""}, True),
    ("box:8080", {"Origin": "file://"}, True),
    ("box:8080", {"Origin": "http://box:8080,http://evil.example"}, True),
    ("box:8080", {"Sec-Fetch-Site": "cross-site"}, True),
    ("box:8080", {"Sec-Fetch-Site": "same-site"}, True),
    ("box:8080", {"Origin": "http://box:8080", "Sec-Fetch-Site": "same-site"}, True),
]


@pytest.mark.parametrize(("host", "headers", "foreign"), FOREIGN)
def test_writes_of_other_origins(host: str, headers: dict[str, str], foreign: bool) -> None:
    for method in ("PUT", "PATCH", "POST", "DELETE"):
        assert is_foreign_write(head_of(method, host, **headers)) is foreign
    for method in ("GET", "HEAD", "OPTIONS"):
        assert not is_foreign_write(head_of(method, host, **headers))


def test_host_names_as_written() -> None:
    assert parse_arguments(["--host-name", "Box.example", "--host-name", "::1", "s"]).options.host_name[0] == (
        "box.example"
    )
    for name in ("box:80", "http://box", "", "a b", "-x", "box.", "*.box", "[::1]"):
        with pytest.raises(UsageError, match="--host-name"):
            parse_arguments([f"--host-name={name}", "s"])


def test_a_name_that_is_none_of_the_servers(snapshot_file: Path, tmp_path: Path) -> None:
    """Over HTTP and S3 nothing is read by it; the refusal names the option.  Health has no secrets."""
    options = ("--http-port", 0, "--s3-port", 0, "--s3-domain", "s3.example", "--cors", "*", snapshot_file)
    with Server(*options, "--host-name", "box.example") as server:
        ports = [int(server.urls[name].rstrip("/").rpartition(":")[2]) for name in ("http", "s3")]
        for port, target in zip(ports, ("/disk", "/snap/disk")):
            with Client(("127.0.0.1", port)) as client:
                for host in ("evil.example", f"evil.example:{port}", "169.254.169.254", "localhost.evil.example"):
                    for extra in ({}, {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}):
                        reply = client.ask("GET", target, {**RANGED, "Host": host, **extra})
                        assert (reply.status, f"--host-name {host.partition(':')[0]}".encode() in reply.body) == (
                            421, True,
                        )  # fmt: skip
                for host in (f"127.0.0.1:{port}", "localhost", "box.example", "s3.example", "[::1]"):
                    assert client.ask("GET", target, {**RANGED, "Host": host}).status == 206
                client.send(f"GET http://evil.example{target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert client.receive().status == 421
                client.send(f"GET {target} HTTP/1.0\r\n\r\n".encode())
                assert client.receive().status == 421
        with Client(("127.0.0.1", ports[0])) as client:
            assert client.ask("GET", "/healthz", {"Host": "evil.example"}).status == 200
            assert client.ask("GET", "/readyz", {"Host": "evil.example"}).status == 200
        with Client(("127.0.0.1", ports[1])) as client:
            assert client.ask("GET", "/disk", {**RANGED, "Host": "snap.s3.example"}).status == 206


def test_who_has_a_token_or_comes_by_a_unix_socket_may_use_any_name(snapshot_file: Path, tmp_path: Path) -> None:
    """Pages have no token, and no way to a unix socket: a proxy there passes on the name that it was asked for."""
    token = "a-token-that-is-long-1"
    tokens = tmp_path / "tokens"
    write_secret(tokens, f"alice {token}\n")
    tokens.chmod(0o600)
    path = tmp_path / "socket"
    with Server("--http-port", 0, "--token-file", tokens, snapshot_file) as server:
        port = int(server.http.rpartition(":")[2])
        with Client(("127.0.0.1", port)) as client:
            asked = {"Host": "snap.example", **RANGED}
            assert client.ask("GET", "/disk", {**asked, "Authorization": f"Bearer {token}"}).status == 206
            assert client.ask("GET", "/disk", asked).status == 401
    with Server("--http-socket", path, snapshot_file), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        client = Client.__new__(Client)
        client.sock, client.rest = sock, b""
        assert client.ask("GET", "/disk", {"Host": "snap.example", **RANGED}).status == 206


def test_the_fast_path_does_not_take_another_name_for_the_same(snapshot_file: Path, disk: bytes) -> None:
    grant = Grant(hosts=Hosts([], [], parse_ip("127.0.0.1")))
    with serving({"snap": snapshot_file}, grant=grant) as server, server.client() as client:
        for start in range(STREAK * 2):
            asked = {"Range": f"bytes={start}-{start + 9}"}
            reply = client.ask("GET", "/disk", {"Host": "localhost", **asked})
            assert (reply.status, reply.body) == (206, disk[start : start + 10])
            assert client.ask("GET", "/disk", {"Host": "evilhosts", **asked}).status == 421


def test_pages_write_nothing(snapshot_file: Path, tmp_path: Path) -> None:
    """In whatever way they come by: their own names, requests that need no leave, with a token, on a unix socket."""
    images, files = tmp_path / "images", tmp_path / "files"
    for folder in (images, files):
        folder.mkdir(mode=0o755)
    (files / "raw").write_bytes(b"R" * 4096)
    (images / "raw").write_text(json.dumps({"backend": "file", "file": str(files / "raw")}))
    overlay = {"backend": "overlay", "snapshot": "snap", "file": str(files / "work")}
    (images / "work").write_text(json.dumps(overlay))
    path = tmp_path / "socket"
    options = ("--http-port", 0, "--http-socket", path, "--images-dir", images, "--images-allow", files)

    def ask(client: Client, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Reply:
        return client.ask(method, target, {**headers, "Content-Length": str(len(body))}, body)

    with Server(*options, "--cors", "*", snapshot_file) as server, socket.socket(socket.AF_UNIX) as sock:
        port = int(server.http.rpartition(":")[2])
        sock.connect(str(path))
        by_path = Client.__new__(Client)
        by_path.sock, by_path.rest = sock, b""
        with Client(("127.0.0.1", port)) as by_port:
            own = f"127.0.0.1:{port}"
            for client in (by_port, by_path):
                for pages in (
                    {"Host": own, "Origin": "http://evil.example"},
                    {"Host": own, "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
                    {"Host": own, "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"},
                    {"Host": own, "Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
                ):
                    assert ask(client, "PUT", "/images/raw", pages, b"EVIL").status == 403
                    assert ask(client, "PATCH", "/images/work", {**pages, "Range": "bytes=0-3"}, b"EVIL").status == 403
                    assert ask(client, "POST", "/images/work/flush", pages).status == 403
                    assert client.ask("GET", "/images/raw", pages).body == b"R" * 4096
            evil = {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}
            assert ask(by_port, "PUT", "/images/raw", evil, b"EVIL").status == 421
            ours = {"Host": own, "Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}
            assert ask(by_port, "POST", "/images/work/flush", ours).status == 200
    assert (files / "raw").read_bytes() == b"R" * 4096


def test_a_token_does_not_make_a_page_of_another_origin_trusted(snapshot_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    write_secret(path, "alice a-token-that-is-long-1\n")
    path.chmod(0o600)
    gate = Gate(Tokens(str(path)), RateLimit(100, 0))
    bearer = "Bearer a-token-that-is-long-1"
    assert gate.admit(head_of("PATCH", "box", Authorization=bearer), "peer:1") == ("alice", None)
    name, refusal = gate.admit(head_of("PATCH", "box", Authorization=bearer, Origin="http://x"), "peer:1")
    assert name is None and refusal is not None and refusal.status == 403
