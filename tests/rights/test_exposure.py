"""Who may read and write on which listener, however it came about; and what is said when that may not be meant."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hexz.errors import UsageError
from hexz.options.parser import parse_arguments
from hexz.rights.exposure import Access, Anonymous, Place, Reach, parse_anonymous, tcp_place
from hexz.rights.secrets import CREDENTIALS
from tests.conftest import CORPUS
from tests.daemon.test_notify import PASS
from tests.peers import ROOT, STOP_S, Server, fetch, write_secret

GOOD = CORPUS / "0.7.0-lz4-onebyte.hxz"
LOOPBACK = tcp_place("127.0.0.1", "here")
SOCKET = Place(Reach.SOCKET, "here")
NETWORK = tcp_place("0.0.0.0", "here")
TOKEN = "0123456789abcdef0123"
BARE = Anonymous(bare=True)


def named(*protocols: str) -> Anonymous:
    return Anonymous(False, frozenset(protocols))


def secret(path: Path, text: str) -> Path:
    write_secret(path, text)
    path.chmod(0o600)
    return path


# Protocol, place, protocols with a lock, --allow-anonymous: whether strangers may read and write, or what is refused.
TABLE: list[tuple[str, Place, set[str], Anonymous, tuple[bool, bool] | str]] = [
    ("http", LOOPBACK, set(), Anonymous(), (True, True)),
    ("http", SOCKET, set(), Anonymous(), (True, True)),
    ("http", NETWORK, set(), Anonymous(), "give --token-file, or add --allow-anonymous=http"),
    ("http", NETWORK, {"s3"}, Anonymous(), "give --token-file, or add --allow-anonymous=http"),
    ("http", NETWORK, set(), named("s3", "nbd"), "add --allow-anonymous=http"),
    ("http", NETWORK, set(), named("http"), (True, False)),
    ("http", NETWORK, set(), BARE, (True, False)),
    ("http", LOOPBACK, {"http"}, Anonymous(), (False, False)),
    ("http", SOCKET, {"http"}, Anonymous(), (False, False)),
    ("http", NETWORK, {"http"}, Anonymous(), (False, False)),
    ("http", NETWORK, {"http"}, BARE, (False, False)),
    ("http", NETWORK, {"http"}, named("nbd"), (False, False)),
    ("http", NETWORK, {"http"}, named("http"), (True, False)),
    ("http", LOOPBACK, {"http"}, named("http"), (True, False)),
    ("http", LOOPBACK, {"s3"}, Anonymous(), (True, True)),
    ("s3", LOOPBACK, set(), Anonymous(), (True, True)),
    ("s3", NETWORK, {"http"}, Anonymous(), "give --s3-keys-file, or add --allow-anonymous=s3"),
    ("s3", NETWORK, {"s3"}, Anonymous(), (False, False)),
    ("s3", NETWORK, {"s3"}, BARE, (False, False)),
    ("s3", NETWORK, {"s3"}, named("nbd", "http"), (False, False)),
    ("s3", NETWORK, {"s3"}, named("s3"), (True, False)),
    ("nbd", LOOPBACK, {"http", "s3"}, Anonymous(), (True, True)),
    ("nbd", SOCKET, {"http", "s3"}, Anonymous(), (True, True)),
    ("nbd", NETWORK, {"http", "s3"}, Anonymous(), "over NBD: give --tls-client-ca, or add --allow-anonymous=nbd"),
    (
        "nbd",
        NETWORK,
        {"http", "s3"},
        named("http", "s3"),
        "over NBD: give --tls-client-ca, or add --allow-anonymous=nbd",
    ),
    ("nbd", NETWORK, set(), named("nbd"), (True, False)),
    ("nbd", NETWORK, set(), BARE, (True, False)),
]


@pytest.mark.parametrize("row", TABLE)
def test_who_may_do_what(row: tuple[str, Place, set[str], Anonymous, tuple[bool, bool] | str]) -> None:
    protocol, place, locked, anonymous, expected = row
    access = Access(locked, anonymous)
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            access.grant(protocol, place)
    else:
        assert tuple(access.grant(protocol, place))[:2] == expected
        # Of a network's strangers none writes, and of a lock's neither.
        assert not (place is NETWORK or protocol in locked) or not access.grant(protocol, place).writes


def test_allow_anonymous_alone_is_for_one_protocol() -> None:
    access = Access({"s3"}, BARE)
    access.grant("s3", LOOPBACK)
    access.grant("http", NETWORK)
    with pytest.raises(UsageError, match=r"HTTP and NBD on a network: .*--allow-anonymous=http,nbd"):
        access.grant("nbd", NETWORK)
    access = Access({"http", "s3"}, BARE)
    access.grant("http", NETWORK)
    with pytest.raises(UsageError, match="--allow-anonymous"):
        access.grant("s3", NETWORK)


@pytest.mark.parametrize(
    ("host", "reach"),
    [("127.0.0.1", Reach.LOOPBACK), ("127.9.9.9", Reach.LOOPBACK), ("::1", Reach.LOOPBACK),
     ("::ffff:127.0.0.1", Reach.LOOPBACK), ("localhost", Reach.LOOPBACK), ("0.0.0.0", Reach.NETWORK),
     ("::", Reach.NETWORK), ("", Reach.NETWORK), ("10.0.0.1", Reach.NETWORK), ("fe80::1%eth0", Reach.NETWORK),
     ("localhost.example.org", Reach.NETWORK), ("::ffff:10.0.0.1", Reach.NETWORK), ("127.1", Reach.NETWORK)],
)  # fmt: skip
def test_what_is_near(host: str, reach: Reach) -> None:
    assert tcp_place(host, "").reach is reach


def test_the_option_does_not_take_a_snapshot_for_its_value() -> None:
    for words in (["--allow-anonymous", "snap"], ["snap", "--allow-anonymous"], ["--allow-anonymous=nbd", "snap"]):
        settings = parse_arguments(words)
        assert settings.options.snapshots == ("snap",)
    assert parse_arguments(["--", "--allow-anonymous"]).options.snapshots == ("--allow-anonymous",)
    assert parse_anonymous(["", "nbd,s3"]) == Anonymous(True, frozenset({"nbd", "s3"}))
    for value in ("snap", "nbd,", "NBD", "nbd s3"):
        with pytest.raises(UsageError, match="http, nbd, s3"):
            parse_anonymous([value])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bind", "0.0.0.0", "--http", "--nbd"], "--token-file"),
        (
            ["--bind", "0.0.0.0", "--http", "--nbd", "--token-file", "t"],
            "over NBD: give --tls-client-ca, or add --allow-anonymous=nbd",
        ),
        (["--bind", "0.0.0.0", "--nbd", "--s3", "--s3-keys-file", "k", "--allow-anonymous"], "--allow-anonymous=nbd"),
        (["--bind", "0.0.0.0", "--nbd", "--s3", "--s3-keys-file", "k", "--allow-anonymous=nbd"], ""),
        (["--bind", "0.0.0.0", "--nbd", "--s3", "--allow-anonymous=nbd,s3"], ""),
        (["--bind", "0.0.0.0", "--nbd", "--allow-anonymous"], ""),
        (["--bind", "0.0.0.0", "--nbd-socket", "s"], ""),
        (["--nbd", "--http", "--s3", "--allow-anonymous"], ""),
    ],
)
def test_the_command_line(words: list[str], says: str) -> None:
    if says:
        with pytest.raises(UsageError, match=says):
            parse_arguments([*words, "snap"])
    else:
        parse_arguments([*words, "snap"])


# The daemon


def status_of(url: str, **headers: str) -> int:
    return fetch(url, headers=headers)[0]


def run_daemon(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Status, output and errors of one that does not go on."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "hexz_serve.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=STOP_S, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o500)
    folder.chmod(0o700)
    secret(folder / "tokens", f"op {TOKEN}\n")
    return folder


def test_credentials_count_for_bind(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd passes is as good as --token-file; without it, or under a wrong name, the start fails."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    with Server("--bind", "0.0.0.0", "--http-port", 0, GOOD) as server:
        url = server.http.replace("0.0.0.0", "127.0.0.1")
        assert status_of(f"{url}/info") == 401
        assert status_of(f"{url}/info", Authorization=f"Bearer {TOKEN}") == 200
        assert "unencrypted: --tls-cert" in server.stderr()
    (credentials / "tokens").rename(credentials / "token")
    status, _, errors = run_daemon("--bind", "0.0.0.0", "--http-port", 0, GOOD)
    assert (status, "--token-file" in errors) == (2, True)
    with Server("--http-port", 0, GOOD) as server:
        assert f"the credential 'token' means nothing here: {', '.join(CREDENTIALS)} do" in server.stderr()
        assert status_of(f"{server.http}/info") == 200
    with Server("--http-port", 0, "--token-file", credentials / "token", GOOD) as server:
        assert warned(server) == []
    status, _, errors = run_daemon("--http-port", 0, "--token-file", credentials / "tokens", GOOD)
    assert (status, "No such file" in errors) == (78, True)


def start_on(sock: socket.socket, name: str, *arguments: object) -> subprocess.Popen[str]:
    """A daemon that gets a listening socket as from a socket unit."""
    command = [sys.executable, "-c", PASS, str(sock.fileno()), name, sys.executable, str(ROOT / "hexz_serve.py")]
    return subprocess.Popen(
        [*command, *map(str, arguments)], pass_fds=[sock.fileno()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "host", "options", "says"),
    [
        ("http", "0.0.0.0", [], "a socket at 0.0.0.0:"),
        ("http", "0.0.0.0", ["--allow-anonymous=nbd"], "over HTTP: give --token-file, or"),
        ("http", "0.0.0.0", ["--allow-anonymous=http"], ""),
        ("http", "0.0.0.0", ["--allow-anonymous"], ""),
        ("nbd", "0.0.0.0", [], "over NBD: give --tls-client-ca, or add --allow-anonymous=nbd"),
        ("s3", "0.0.0.0", [], "give --s3-keys-file, or"),
        ("http", "127.0.0.1", [], ""),
        ("nbd", "127.0.0.1", [], ""),
    ],
)
def test_sockets_that_are_passed(protocol: str, host: str, options: list[str], says: str) -> None:
    with socket.create_server((host, 0)) as sock, start_on(sock, protocol, *options, GOOD) as process:
        if says:
            _, errors = process.communicate(timeout=STOP_S)
            assert process.returncode == 2 and says in errors and errors.count("\n") == 1
        else:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"listening {protocol}://")
            process.terminate()
            process.communicate(timeout=STOP_S)
            assert process.returncode == 0


def warned(server: Server) -> list[str]:
    return [line for line in server.stderr().splitlines() if " WARNING " in line]


def test_an_open_listener_beside_a_lock_is_told(tmp_path: Path) -> None:
    tokens = secret(tmp_path / "tokens", f"op {TOKEN}\n")
    keys = secret(tmp_path / "keys", "KEY a-secret-of-some-length\n")
    path = tmp_path / "nbd.sock"
    everything = ("--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--nbd-socket", path)
    with Server(*everything, "--token-file", tokens, GOOD) as server:
        said = warned(server)
        assert len(said) == 2
        assert f"WARNING hexz.daemon: {server.nbd}: every user of this machine may read, although" in said[0]
        assert "--token-file is given: NBD has neither tokens nor keys; --nbd-socket" in said[0]
        assert f"{server.urls['s3']}: every user" in said[1] and "--s3-keys-file would lock it" in said[1]
    with Server(*everything, "--s3-keys-file", keys, GOOD) as server:
        assert "--token-file would lock it" in warned(server)[0] and len(warned(server)) == 2
    with Server(*everything, "--token-file", tokens, "--s3-keys-file", keys, GOOD) as server:
        assert len(warned(server)) == 1
    with Server(*everything, GOOD) as server:
        assert warned(server) == []
    with Server("--http-port", 0, "--token-file", tokens, "--allow-anonymous=http", GOOD) as server:
        assert "may read without a token: --allow-anonymous=http opens it although --token-file" in server.stderr()
        assert status_of(f"{server.http}/info") == 200
        assert status_of(f"{server.http}/info", Authorization="Bearer wrong-wrong-wrong-wrong") == 401


def test_a_socket_that_lets_everybody_in_is_told(tmp_path: Path) -> None:
    """A passed unix socket has the mode that its unit gave it."""
    path = tmp_path / "socket"
    tokens = secret(tmp_path / "tokens", f"op {TOKEN}\n")
    for mode, told in ((0o660, False), (0o666, True)):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            path.chmod(mode)
            sock.listen()
            with start_on(sock, "nbd", "--token-file", tokens, GOOD) as process:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("listening nbd+unix:")
                process.terminate()
                _, errors = process.communicate(timeout=STOP_S)
                assert ("every user of this machine may read" in errors) is told


def test_data_in_the_clear_is_told(snapshot_file: Path, tmp_path: Path) -> None:
    tokens = secret(tmp_path / "tokens", f"op {TOKEN}\n")
    with Server("--bind", "0.0.0.0", "--http-port", 0, "--token-file", tokens, snapshot_file) as server:
        assert "tokens and data cross the network unencrypted: --tls-cert" in server.stderr()
    with Server("--bind", "0.0.0.0", "--nbd-port", 0, "--allow-anonymous", snapshot_file) as server:
        assert ": data cross the network unencrypted" in server.stderr()
    access = Access(set(), BARE, {"nbd": "optional", "http": "required"})
    assert "required does not let them" in access.warnings("nbd://h/", "nbd", NETWORK)[0]
    assert access.warnings("https://h/", "http", NETWORK) == []
    assert access.warnings("nbd://h/", "nbd", LOOPBACK) == []


def test_check_says_who_may_read_and_write(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir(mode=0o755)
    tokens = secret(tmp_path / "tokens", f"op {TOKEN}\n")
    images = ("--images-dir", tmp_path / "images")
    http, nbd, s3 = "http://0.0.0.0:1/", "nbd://0.0.0.0:2/", "s3://0.0.0.0:3/"
    ports = ("--check", "--bind", "0.0.0.0", "--http-port", 1, "--nbd-port", 2, "--s3-port", 3)

    def told(*options: object) -> list[str]:
        status, output, errors = run_daemon(*options, GOOD)
        assert (status, errors) == (0, "")
        return output.splitlines()[1:]

    assert told(*ports, "--allow-anonymous=nbd,s3", "--token-file", tokens, *images) == [
        f"{http} reads: whoever has a token; writes: whoever has a token, with the image's own token where it has one",
        f"{nbd} reads: everybody on the network; writes: nobody",
        f"{s3} reads: everybody on the network; writes: nobody",
    ]
    assert told(*ports, "--allow-anonymous=http,nbd,s3", *images)[0] == (
        f"{http} reads: everybody on the network; writes: whoever has the image's own token"
    )
    assert told("--check", "--nbd", "--http-socket", "s", *images) == [
        "http+unix://s reads: whoever may open the socket; "
        "writes: whoever may open the socket, with the image's own token where it has one",
        "nbd://127.0.0.1:10809/ reads: every user of this machine; writes: nobody",
    ]
    for option in ("--token-file", "--s3-keys-file"):
        status, _, errors = run_daemon("--check", option, secret(tmp_path / "bad", "x\n"), GOOD)
        assert (status, "line 1" in errors) == (78, True)


def test_strangers_from_a_network_read_images_and_do_not_write(tmp_path: Path) -> None:
    """But to an image that has a token of its own, with that; on loopback everything stays as open as it was."""
    images, files = tmp_path / "images", tmp_path / "files"
    for folder in (images, files):
        folder.mkdir(mode=0o755)
    (files / "raw").write_bytes(b"R" * 65536)
    token = "a-token-of-its-own-1"
    overlay = {"backend": "overlay", "snapshot": "snap"}
    registered = {
        "raw": {"backend": "file", "file": str(files / "raw")},
        "work": {**overlay, "file": str(files / "work")},
        "locked": {**overlay, "file": str(files / "locked"), "token": token},
    }
    for name, keys in registered.items():
        secret(images / name, json.dumps(keys))
    options = ("--http-port", 0, "--images-dir", images, "--images-allow", files, f"snap={GOOD}")

    def ask(base: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
        return fetch(f"{base}/images/{path}", method, headers, body)

    kind = {"Content-Type": "application/octet-stream"}
    one = {"Range": "bytes=0-0", **kind}
    writes = [("PUT", "raw", kind, b"E" * 9), ("PATCH", "work", one, b"E"), ("POST", "work/flush", {}, b"")]
    with Server(*options, "--bind", "0.0.0.0", "--allow-anonymous") as server:
        base = server.http.replace("0.0.0.0", "127.0.0.1")
        for method, path, headers, body in writes:
            status, said = ask(base, method, path, headers, body)
            assert (status, b"token" in said) == (403, True), (method, path)
        assert ask(base, "GET", "raw", {})[1] == b"R" * 65536
        abilities = json.loads(ask(base, "OPTIONS", "work", {})[1])
        assert (abilities["max_writers"], "zero" in abilities["features"]) == (0, False)
        assert ask(base, "PATCH", "locked", one, b"E")[0] == 401
        assert ask(base, "PATCH", "locked", {**one, "X-Image-Token": token}, b"E")[0] == 200
        assert ask(base, "PUT", "snap", kind, b"E")[0] == 405
    assert (files / "raw").read_bytes() == b"R" * 65536
    with Server(*options) as server:
        for method, path, headers, body in writes:
            assert ask(server.http, method, path, headers, body)[0] == 200
