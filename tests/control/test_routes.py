"""The control API's routes as its clients see them: statuses, shapes, messages."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from hexz.assembly.listeners import CONTROL_PLACES
from tests.control.clients import WAIT_S, Controlled, UnixConnection, ask, done, mount
from tests.peers import ROOT, need, run
from tests.waiting import until

MOUNT = {"source": "/x", "config": ""}
BAD_REQUESTS = [
    # A wrong method or body on a known route is 400, never 405.
    *[
        ("GET", f"/api/v1/{route}", None)
        for route in ("daemon/start", "daemon/exit", "daemon/fuse/sendfd", "daemon/fuse/takeover", "mount")
    ],
    ("POST", "/api/v2/blobs", {"type": "bootstrap"}),
    ("PUT", "/api/v1/daemon", None),
    ("PUT", "/api/v1/daemon/start", {"a": 1}),
    ("GET", "/api/v1/daemon", {"a": 1}),
    ("PATCH", "/api/v1/daemon", None),
    ("DELETE", "/api/v1/metrics", None),
]


@pytest.mark.parametrize(("method", "target", "body"), BAD_REQUESTS)
def test_wrong_methods_and_bodies_are_bad_requests(daemon: Controlled, method: str, target: str, body: Any) -> None:
    answer = daemon.ask(method, target, body)
    assert (answer.status, answer.message) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("target", "allowed"),
    [("/api/v1/daemon", "GET, PUT"), ("/api/v1/mount", "DELETE, POST, PUT"), ("/healthz", "GET, HEAD, OPTIONS")],
)
def test_nothing_is_traced(daemon: Controlled, target: str, allowed: str) -> None:
    """RFC 9110 sections 9.3.8 and 15.5.6: no client of the API sends TRACE, so this is as HTTP has it."""
    answer = raw_exchange(
        daemon.control, f"TRACE {target} HTTP/1.1\r\nHost: x\r\nX-Secret: hush\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ") and f"\r\nAllow: {allowed}\r\n".encode() in head + b"\r\n"
    assert b"hush" not in body


def test_refusals_have_the_status_and_the_words_that_clients_look_for(daemon: Controlled, other: Path) -> None:
    missing = """QueryString("'mountpoint' should be specified in query string")"""
    table: list[tuple[str, str, Any, int, str]] = [
        ("GET", "/api/v1/nothing", None, 404, "NoRoute"),
        ("GET", "/api/v1/daemon/", None, 404, "NoRoute"),
        ("GET", "/disk", None, 404, "NoRoute"),
        ("POST", "/api/v1/mount", MOUNT, 400, missing),
        ("DELETE", "/api/v1/mount", None, 400, missing),
        ("GET", "/api/v1/daemon/backend", None, 400, missing),
        ("GET", "/api/v1/daemon/backend?mountpoint=/no", None, 500, "exist"),
        ("GET", "/api/v1/metrics?id=poison", None, 404, "GlobalMetrics(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/pattern?id=poison", None, 404, "Pattern(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/files?id=poison", None, 404, "FsFilesMetrics(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/backend?id=poison", None, 404, "BackendMetrics(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/blobcache?id=poison", None, 404, "BlobcacheMetrics(Metrics(Stats(NoCounter)))"),
        ("GET", "/api/v1/metrics/pattern?top=-1", None, 400, "QueryString"),
        ("POST", "/api/v1/mount?mountpoint=/a", b"{", 400, "ParseBody(Error("),
        ("POST", "/api/v1/mount?mountpoint=/a", b"\xff", 400, "ParseBody(Error("),
        ("POST", "/api/v1/mount?mountpoint=/a", b"[" * 100_000, 400, "ParseBody(Error("),
        ("POST", "/api/v1/mount?mountpoint=/a", [], 400, "ParseBody(Error("),
        ("POST", "/api/v1/mount?mountpoint=/a", {"source": "/x"}, 400, "missing field `config`"),
        ("POST", "/api/v1/mount?mountpoint=/a", {"config": ""}, 400, "missing field `source`"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "source": 1}, 400, "must be a string"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "prefetch_files": "x"}, 400, "prefetch_files"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "fs_type": "ext4"}, 500, "ext4"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "config": "{"}, 500, "not JSON"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "source": "/x\0"}, 500, "not a possible path"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "source": "/x\ud800"}, 500, "not a possible path"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "source": "/no/such.hxz"}, 500, "/no/such.hxz: no such file"),
        ("POST", "/api/v1/mount?mountpoint=/a", {**MOUNT, "source": __file__}, 500, "magic) (Mount(MountFilesystem))"),
        ("POST", "/api/v1/mount?mountpoint=a", {**MOUNT, "source": str(other)}, 500, "must begin with /"),
        ("POST", "/api/v1/mount?mountpoint=/a/../b", {**MOUNT, "source": str(other)}, 500, "cannot be"),
        ("POST", "/api/v1/mount?mountpoint=/a/memory", {**MOUNT, "source": str(other)}, 500, "cannot be"),
        ("POST", f"/api/v1/mount?mountpoint=/{'a' * 300}", {**MOUNT, "source": str(other)}, 500, "at most 255"),
        (
            "POST", "/api/v1/mount?mountpoint=/snap", {**MOUNT, "source": str(other)}, 500,
            'Mount(MountFilesystem(Other("object or filesystem already exists")))',
        ),
        ("PUT", "/api/v1/mount?mountpoint=/no", {**MOUNT, "source": str(other)}, 500, "doesn't exist"),
        ("DELETE", "/api/v1/mount?mountpoint=/no", None, 500, "doesn't exist"),
        ("DELETE", "/api/v1/mount?mountpoint=/snap&drain_timeout=x", None, 400, "drain_timeout"),
        ("PUT", "/api/v1/daemon", {}, 400, "missing field `log_level`"),
        ("PUT", "/api/v1/daemon", b'{"log_level": ' + b"1" * 5000 + b"}", 400, "ParseBody(Error("),
        ("GET", "/api/v1/daemon?" + "a&" * 101, None, 400, "QueryString"),
        ("PUT", "/api/v1/daemon", {"log_level": "loud"}, 500, "Configure(ResponsePayloadType"),
        ("PUT", "/api/v1/daemon/start", None, 400, 'Configure(DaemonAbnormal(UnexpectedEvent("Start")))'),
        ("PUT", "/api/v1/daemon/fuse/sendfd", None, 501, "Upgrade(DaemonAbnormal(Unsupported))"),
        ("PUT", "/api/v1/daemon/fuse/takeover", None, 501, "Upgrade(DaemonAbnormal(Unsupported))"),
        ("PUT", "/api/v1/config?id=/snap", {"colour": "red"}, 400, "unknown key"),
        ("PUT", "/api/v1/config?id=/no", {"proxy_url": "x"}, 500, "doesn't exist"),
        ("GET", "/api/v2/blobs", None, 400, "'domain_id' should be specified"),
        ("DELETE", "/api/v2/blobs", None, 400, "should be specified"),
        ("DELETE", "/api/v2/blobs?domain_id=d&blob_id=b", None, 500, "blob_cache: cache entry not found"),
        ("PUT", "/api/v2/blobs", {"type": "bootstrap", "id": "b"}, 400, "config"),
        ("PUT", "/api/v2/blobs", {"type": "datablob", "id": "b"}, 500, "CreateBlobObject"),
        (
            "PUT", "/api/v2/blobs", {"type": "bootstrap", "id": "b", "config": {"metadata_path": "/no/such"}}, 500,
            "no such file",
        ),
        (
            "PUT", "/api/v2/blobs", {"type": "bootstrap", "id": "b", "config": {"metadata_path": "/x\0"}}, 500,
            "no possible path",
        ),
        ("PUT", "/api/v2/blobs", {"type": "bootstrap", "id": "b" * 1025, "config": None}, 500, "at most 1024"),
        ("PUT", "/api/v1/daemon", b"x" * ((1 << 20) + 1), 413, "at most"),
    ]  # fmt: skip
    for method, target, body, status, words in table:
        answer = daemon.ask(method, target, body)
        assert answer.status == status, (method, target, answer.body)
        assert words in answer.message, (method, target, answer.message)


def raw_exchange(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(path))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /api/v1/daemon HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_what_cannot_be_parsed_is_refused_in_json_too(daemon: Controlled, request_bytes: bytes, status: int) -> None:
    answer = raw_exchange(daemon.control, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert re.fullmatch(rb'\{"code": "[A-Z_]+", "message": ".+"\}\n', body)


def test_odd_but_allowed_ways_of_asking(daemon: Controlled, other: Path) -> None:
    for request_bytes in (
        b"GET /api/v1/daemon HTTP/1.0\r\n\r\n",
        b"GET http://unix/api/v1/daemon HTTP/1.1\r\nHost: unix\r\nConnection: close\r\n\r\n",
        b"GET /api/v1/daemon?x=%2F&x=2 HTTP/1.1\r\nHost: 2f746d70\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ):
        assert raw_exchange(daemon.control, request_bytes).startswith(b"HTTP/1.1 200 ")
    # curl -d sends a form's content type; the mountpoint may come raw or encoded.
    body = f'{{"source": "{other}", "config": "", "fs_type": "rafs"}}'
    url = "http://unix/api/v1/mount?mountpoint=/rafs/one/lowerdir"
    run(need("curl", "curl"), "-sf", "--unix-socket", daemon.control, "-d", body, url)
    assert "/rafs/one/lowerdir" in daemon.ask("GET", "/api/v1/daemon").json["backend_collection"]
    done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=%2Frafs%2Fone%2Flowerdir"))


def test_requests_may_come_byte_by_byte(daemon: Controlled) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(daemon.control))
        for byte in b"GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


# Strict models of what clients decode: a missing field or a wrong type makes them fail.


def text(value: Any) -> None:
    assert isinstance(value, str)


def count(value: Any) -> None:
    assert isinstance(value, int) and not isinstance(value, bool) and value >= 0


def test_info_is_what_every_client_decodes(tmp_path: Path, snapshot_file: Path) -> None:
    arguments = ("--id", "d-1", "--supervisor", tmp_path / "s.sock", "--http-port", 0, snapshot_file)
    with Controlled(tmp_path / "api.sock", *arguments) as daemon:
        info = daemon.ask("GET", "/api/v1/daemon").json
        second = daemon.ask("GET", "/api/v2/daemon").json
    for key in ("package_ver", "git_commit", "build_time", "profile", "rustc"):
        text(info["version"][key])
    assert (info["id"], info["supervisor"], info["state"]) == ("d-1", str(tmp_path / "s.sock"), "RUNNING")
    assert second["backend_collection"] is None
    (mountpoint, one), *rest = info["backend_collection"].items()
    assert not rest and mountpoint == one["mountpoint"] == "/snap"
    assert one["backend_type"] == "Rafs"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} \+00:00:00", one["mounted_time"])
    config = one["config"]
    count(config["version"])
    assert isinstance(config["cache"], dict) and isinstance(config["rafs"], dict)
    assert isinstance(config["cache"]["prefetch"]["enable"], bool)
    # What nydusctl before 2.2 reads.
    text(config["mode"])
    text(config["device"]["backend"]["type"])
    assert isinstance(config["device"]["backend"]["config"], dict)
    assert config["hexz"]["path"] == str(snapshot_file)


def test_figures_after_known_traffic(daemon: Controlled, disk_image: Path) -> None:
    data = disk_image.read_bytes()
    fetched = run(
        need("curl", "curl"), "-sf", "-o", "/dev/null", "-w", "%{size_download}", f"{daemon.http}/disk"
    ).stdout
    assert int(fetched) == len(data)
    until(lambda: daemon.ask("GET", "/api/v1/metrics?id=/snap").json["data_read"] >= len(data))
    for wanted in ("/snap", "snap", "/"):  # the id comes back as it was given
        assert daemon.ask("GET", f"/api/v1/metrics?id={wanted}").json["id"] == wanted
    fs = daemon.ask("GET", "/api/v1/metrics").json
    assert fs["fop_hits"][4] == 1
    for key, length in (("fop_hits", 15), ("fop_errors", 15), ("block_count_read", 8), ("read_latency_dist", 8)):
        assert len(fs[key]) == length
        for value in fs[key]:
            count(value)
    files = daemon.ask("GET", "/api/v1/metrics/files?id=/snap").json
    assert files["1"]["data_read"] == len(data)
    pattern = daemon.ask("GET", "/api/v1/metrics/pattern").json
    assert pattern and all(one["nr_read"] > 0 for one in pattern)
    backend = daemon.ask("GET", "/api/v1/metrics/backend").json
    assert backend["read_count"] == sum(backend["read_count_block_size_dist"]) > 0
    cache = daemon.ask("GET", "/api/v1/metrics/blobcache?id=snap").json
    assert cache["total"] == 1 and cache["entries_count"] > 0
    latest = "/api/v1/metrics/files?latest=true"
    assert daemon.ask("GET", f"{latest}&peek=true").json == daemon.ask("GET", latest).json != []
    assert daemon.ask("GET", latest).json == []
    assert daemon.ask("GET", "/api/v1/metrics/files?latest=yes").json == daemon.ask("GET", "/api/v1/metrics/files").json


def test_failures_are_events(daemon: Controlled, tmp_path: Path) -> None:
    broken = tmp_path / "broken.hxz"
    broken.write_bytes(b"HEXZ" + bytes(100))
    assert mount(daemon.control, "/broken", broken).status == 500
    events = daemon.ask("GET", "/api/v1/daemon/events").json
    assert (events["max_errors"], events["max_size"], events["total_errors"]) == (500, 51200, 1)
    assert re.match(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT - mount /broken: ", events["errors"][0])


def test_log_level_and_settings_can_be_changed(daemon: Controlled, other: Path) -> None:
    for level in ("trace", "WARN", "off", "info"):
        done(daemon.ask("PUT", "/api/v1/daemon", {"log_level": level}))
    done(daemon.ask("PUT", "/api/v2/daemon", {"log_level": "debug"}))
    for _ in range(2):
        done(daemon.ask("PUT", "/api/v1/config?id=/snap", {"proxy_url": "http://p:1", "registry_auth": "c2VjcmV0"}))
        kept = daemon.ask("GET", "/api/v1/config?id=/snap").json
        assert kept["proxy_url"] == "http://p:1"
        assert "c2VjcmV0" not in kept["registry_auth"]
    done(daemon.ask("PUT", "/api/v1/config?id=/snap", {"proxy_url": "http://name:c2VjcmV0@p:1/?a@b"}))
    assert daemon.ask("GET", "/api/v1/config?id=/snap").json["proxy_url"] == "http://********@p:1/?a@b"
    assert daemon.ask("GET", "/api/v1/config?id=/no").status == 500
    # Settings go with their snapshot: the next one of that name does not inherit them.
    done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/snap"))
    done(mount(daemon.control, "/snap", other))
    assert daemon.ask("GET", "/api/v1/config?id=/snap").json == {}


def test_blobs_are_registered_listed_and_forgotten(daemon: Controlled, other: Path) -> None:
    entry = {"type": "bootstrap", "id": "b", "domain_id": "d", "config": {"metadata_path": str(other)}}
    done(daemon.ask("PUT", "/api/v2/blobs", entry))
    assert daemon.ask("PUT", "/api/v2/blobs", entry).status == 500
    done(daemon.ask("PUT", "/api/v2/blobs", {**entry, "id": "c", "config": None, "config_v2": entry["config"]}))
    listed = daemon.ask("GET", "/api/v2/blobs?domain_id=d").json
    assert [one["id"] for one in listed] == ["b", "c"]
    assert listed[0]["hexz"]["streams"]["disk"]["size"] > 0
    assert daemon.ask("GET", "/api/v2/blobs?domain_id=e").json == []
    done(daemon.ask("DELETE", "/api/v2/blobs?blob_id=b"))
    done(daemon.ask("DELETE", "/api/v2/blobs?domain_id=d&blob_id=b"))
    done(daemon.ask("DELETE", "/api/v2/blobs?domain_id=d"))
    done(daemon.ask("DELETE", "/api/v2/blobs?domain_id=d"))
    assert daemon.ask("GET", "/api/v2/blobs?domain_id=d").json == []


def test_health_and_metrics_are_there_too(daemon: Controlled) -> None:
    for path in ("/healthz", "/readyz"):
        assert daemon.ask("GET", path).status == 200


# The socket


def test_the_socket_is_private_refuses_a_second_owner_and_goes_with_its_daemon(
    daemon: Controlled, tmp_path: Path, snapshot_file: Path
) -> None:
    assert daemon.control.stat().st_mode & 0o777 == 0o600
    command = (sys.executable, ROOT / "hexz_serve.py", "--control", daemon.control, "--http-port", 0, snapshot_file)
    second = run(*command, check=False)
    assert (second.returncode, second.stdout) == (69, "")
    assert second.stderr == f"hexz-serve: {daemon.control}: cannot listen: another server answers there\n"
    assert daemon.state == "RUNNING"
    daemon.stop()
    assert not daemon.control.exists()


@pytest.mark.parametrize("taken", ["--control", "--pid-file"])
def test_a_start_that_fails_leaves_no_sockets_behind(tmp_path: Path, snapshot_file: Path, taken: str) -> None:
    options = {"--control": tmp_path / "api.sock", "--pid-file": tmp_path / "pid", "--http-socket": tmp_path / "http"}
    options[taken] = tmp_path / "folder"
    options[taken].mkdir()
    words = [word for option in options.items() for word in option]
    failed = run(sys.executable, ROOT / "hexz_serve.py", *words, snapshot_file, check=False)
    assert failed.returncode and str(options[taken]) in failed.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_socket()] == []


def test_after_kill_9_the_stale_socket_is_replaced(tmp_path: Path, snapshot_file: Path) -> None:
    control = tmp_path / "api.sock"
    first = Controlled(control, "--http-port", 0, snapshot_file)
    first.stop(signal.SIGKILL)
    assert control.exists()
    with Controlled(control, "--http-port", 0, snapshot_file) as second:
        assert second.state == "RUNNING"


def test_a_silent_connection_lives_as_long_as_the_daemon(daemon: Controlled) -> None:
    watching = UnixConnection(daemon.control)
    watching.connect()
    watching.sock.settimeout(2.5)  # longer than any wait inside the server
    with pytest.raises(socket.timeout):
        watching.sock.recv(1)
    daemon.stop()
    watching.sock.settimeout(WAIT_S)
    assert watching.sock.recv(1) == b""


def test_a_silent_connection_lives_whoever_else_comes(daemon: Controlled) -> None:
    with contextlib.ExitStack() as stack:

        def connected() -> UnixConnection:
            connection = stack.enter_context(contextlib.closing(UnixConnection(daemon.control)))
            connection.connect()
            return connection

        watching = connected()
        watching.sock.settimeout(2.5)  # it counts as idle before that
        with pytest.raises(socket.timeout):
            watching.sock.recv(1)
        for _ in range(CONTROL_PLACES + 2):
            connected()
        connection = connected()  # the places are taken, and it is answered
        connection.request("GET", "/api/v1/daemon")
        assert connection.getresponse().status == 200
        with pytest.raises(socket.timeout):
            watching.sock.recv(1)
        watching.request("GET", "/api/v1/daemon")
        assert watching.getresponse().status == 200


def test_only_trusted_users_change_things(tmp_path: Path, snapshot_file: Path) -> None:
    nobody = 65534
    as_nobody = (need("setpriv", "util-linux"), f"--reuid={nobody}", "--clear-groups")
    control = Path("/tmp") / f"hexz-{tmp_path.name}.sock"
    curl = (need("curl", "curl"), "-s", "-w", "%{http_code}", "--unix-socket", control)
    change = ("-X", "PUT", "-d", '{"log_level": "info"}', "http://unix/api/v1/daemon")
    arguments = ("--control-mode", "666", "--http-port", 0, snapshot_file)
    with Controlled(control, *arguments) as daemon:
        assert run(*as_nobody, *curl, "-o", "/dev/null", "http://unix/api/v1/daemon").stdout == "200"
        refused = run(*as_nobody, *curl, *change).stdout
        assert refused.endswith("403") and '"message"' in refused
        done(daemon.ask("PUT", "/api/v1/daemon", {"log_level": "info"}))
        until(lambda: "uid 0: PUT /api/v1/daemon: 204" in daemon.stderr())
    with Controlled(control, "--control-uid", nobody, *arguments):
        assert run(*as_nobody, *curl, *change).stdout == "204"


def test_exit_ends_the_daemon_and_says_so_first(daemon: Controlled) -> None:
    done(ask(daemon.control, "PUT", "/api/v1/daemon/exit"))
    assert daemon.process.wait(WAIT_S) == 0
