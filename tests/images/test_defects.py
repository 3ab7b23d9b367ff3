"""What the image server that this API comes from does wrong: for each defect a test of the rule that we follow."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hexz.catalog import Catalog
from hexz.errors import ConfigError
from hexz.images import registry as registry_module
from hexz.images.backend import coalesced
from hexz.images.errors import Busy, NoSuchImage
from hexz.images.nbd.backend import NbdBackend
from hexz.images.registry import Registry
from hexz.snapshot import new_context
from hexz.tools.pack import pack
from tests import samples
from tests.http.serving import Client, request
from tests.images.house import House, nbdkit, qcow2_with_bitmap, qemu_nbd
from tests.images.test_nbd_client import SIZE as SCRIPTED_SIZE
from tests.images.test_nbd_client import Scripted, status

SIZE = (1 << 20) + 512
OLD = samples.image(SIZE, seed=60)
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    (folder / "old.raw").write_bytes(OLD)
    pack(str(folder / "old.raw"), str(folder / "old.hxz"))
    (folder / "big.raw").write_bytes(samples.image(8 << 20, seed=61))
    pack(str(folder / "big.raw"), str(folder / "big.hxz"))
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, snapshots: Path) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house"), snapshots / "old.hxz", snapshots / "big.hxz") as made:
        yield made


def raw_image(house: House, name: str, content: bytes = OLD, **keys: Any) -> Path:
    path = house.files / f"{name}.raw"
    path.write_bytes(content)
    house.register(name, backend="file", file=str(path), **keys)
    return path


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["error"]


# 1: HTTP/1.0 by accident, and each answer in two segments


def test_defect_01_one_connection_serves_many_requests_and_small_answers_come_at_once(house: House) -> None:
    with Client(house.address) as client:
        for _ in range(50):
            client.send(request("OPTIONS", "/images/old"))
            # Head and body are one write: with two of them and Nagle's algorithm each answer took 40 ms.
            first = client.sock.recv(1 << 16)
            head, _, body = first.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and json.loads(body)["size"] == SIZE
        client.send(request("GET", "/images/old", {"Range": "bytes=5-9"}) * 3)
        assert [client.receive().body for _ in range(3)] == [OLD[5:10]] * 3
        raw_image(house, "one")
        head_only = request("PUT", "/images/one", {"Content-Length": str(SIZE), "Expect": "100-continue"})
        client.send(head_only)
        assert client.receive().status == 100
        client.send(OLD)
        assert client.receive().status == 200


# 2: block status entries swallowed, so that there were no extents


def test_defect_02_extents_are_real(house: House, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "kit.sock", "data", "1*65536 0*65536 2*65536") as peer:
        house.register("real", socket=str(peer.socket))
        found = [(e["start"], e["length"], e["zero"]) for e in house.extents("real")]
    # The plugin keeps its data in pages of 32 KiB: what is not stored is a hole.
    assert found == [(0, 65536, False), (65536, 65536, True), (131072, 65536, False)]


# 3: short answers skipped over, long ones repeated


def test_defect_03_extents_tile_the_image_whatever_the_answers_cover(tmp_path: Path) -> None:
    answers: list[tuple[int, list[tuple[int, int]]]] = [(5, [(1, 3)]), (5, [(4095, 0), (9, 3)]), (5, [(1 << 31, 0)])]
    with Scripted(tmp_path, status(answers)) as server:
        backend = NbdBackend(server.where, "", "b")
        with contextlib.closing(backend.open()) as session:
            found = [(e.start, e.length, e.zero) for e in coalesced(session.extents(0, SCRIPTED_SIZE, False))]
        backend.close()
    assert found == [(0, 1, True), (1, 4095, False), (4096, 9, True), (4105, SCRIPTED_SIZE - 4105, False)]


# 4: "no bitmap" guessed from what the list looks like


def test_defect_04_an_unchanged_full_disk_is_clean_and_not_all_dirty(house: House, tmp_path: Path) -> None:
    raw = tmp_path / "full.raw"
    raw.write_bytes(os.urandom(1 << 20))
    qcow2_with_bitmap(tmp_path / "full.qcow2", raw)
    with qemu_nbd(tmp_path / "nbd.sock", tmp_path / "full.qcow2", "qcow2", "-r", "-B", "b0") as peer:
        house.register("full", socket=str(peer.socket), export="disk", export_bitmap="b0")
        clean = house.extents("full", "?context=dirty")
        house.register("full", socket=str(peer.socket), export="disk", export_bitmap="another")
        unknown = house.extents("full", "?context=dirty")
        assert house.json("OPTIONS", "/full")["dirty"] is False
    assert clean == [{"start": 0, "length": 1 << 20, "dirty": False, "zero": False}]
    assert unknown == [{"start": 0, "length": 1 << 20, "dirty": True, "zero": False}]
    assert "no dirty bitmap 'another': backups will copy everything" in house.server.stderr()


# 5: a connection and a handshake for each request


def test_defect_05_requests_share_nbd_connections(house: House, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdkit(tmp_path / "kit.sock", "--filter=log", "memory", "size=1M", f"logfile={log}") as peer:
        house.register("shared", socket=str(peer.socket))
        with Client(house.address) as client:
            for number in range(25):
                assert client.ask("GET", "/images/shared", {"Range": f"bytes={number}-{number + 99}"}).status == 206
                assert client.ask("GET", "/images/shared/extents?context=dirty").status == 200
    assert len(re.findall(r" Connect ", log.read_text())) == 1


# 6: a dead NBD server: no answer at all, and OPTIONS that claims what is not so


def test_defect_06_a_dead_server_is_told_and_options_tell_the_truth(house: House, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "kit.sock", "memory", "size=1M") as peer:
        house.register("dead", socket=str(peer.socket))
        assert house.json("OPTIONS", "/dead")["max_writers"] == 1
        peer.kill()
        for method, path in (("GET", "/dead"), ("OPTIONS", "/dead"), ("GET", "/dead/extents"), ("PUT", "/dead")):
            answer = house.ask(method, path, b"x" if method == "PUT" else None)
            assert error_of(answer)[0] == 503 and answer[1]["retry-after"], (method, path)
    with nbdkit(tmp_path / "kit.sock", "-r", "memory", "size=1M"):
        options = house.ask("OPTIONS", "/dead")
        assert json.loads(options[2])["max_writers"] == 0
        assert "PUT" not in options[1]["allow"] and "PUT" not in options[1]["access-control-allow-methods"]


# 7: writes to a read-only export end in a 500


def test_defect_07_writes_to_what_is_read_only_are_refused_up_front(house: House, tmp_path: Path) -> None:
    zero = b'{"op":"zero","size":1}'
    with nbdkit(tmp_path / "kit.sock", "-r", "memory", "size=1M") as peer:
        house.register("export", socket=str(peer.socket))
        with nbdkit(tmp_path / "rw.sock", "memory", "size=1M") as writable:
            house.register("registered", socket=str(writable.socket), mode="ro")
            for image, expected in (("export", 405), ("registered", 403), ("old", 405)):
                for method, body, headers in (
                    ("PUT", OLD, {}),
                    ("PUT", b"x", {"Content-Range": "bytes 0-0/*"}),
                    ("PATCH", zero, {"Content-Type": "application/json"}),
                    ("PATCH", b"x", {"Range": "bytes=0-0"}),
                ):
                    code, headers_of, _ = house.ask(method, f"/{image}", body, headers)
                    assert code == expected and (code != 405 or "PUT" not in headers_of["allow"]), (image, method)
                # Flushing what cannot be written is no error: there is nothing to flush.
                assert house.json("POST", f"/{image}/flush") == {"ok": True}


# 8: a PUT whose length is not the image's is begun


def test_defect_08_a_put_of_another_length_is_refused_before_its_first_byte(house: House, tmp_path: Path) -> None:
    with nbdkit(tmp_path / "kit.sock", "data", "7*1000", "size=4096") as peer:
        house.register("sized", socket=str(peer.socket))
        before = house.ask("GET", "/sized")[2]
        for length, expected, headers in (
            (4095, 400, {}),
            (4097, 416, {}),
            (10, 400, {"Content-Range": "bytes 0-10/*"}),
            (10, 400, {"Content-Range": "bytes 0-9/5000"}),
            (10, 416, {"Content-Range": "bytes 4090-4099/*"}),
            (10, 400, {"Content-Range": "bytes 9-0/*"}),
            (10, 400, {"Range": "bytes=0-9"}),
        ):
            with Client(house.address) as client:
                fields = {"Content-Length": str(length), "Expect": "100-continue", **headers}
                client.send(request("PUT", "/images/sized", fields))
                assert client.receive().status == expected, (length, headers)
        assert house.ask("GET", "/sized")[2] == before
        assert house.ask("PUT", "/sized", bytes(4096))[0] == 200


# 9: a PUT to a file cuts it off first, under the eyes of its readers


def test_defect_09_a_file_is_the_old_one_or_the_new_one_as_a_whole(house: House) -> None:
    new = samples.image(2 * SIZE, seed=62)
    path = raw_image(house, "whole")
    with Client(house.address) as writer:
        writer.send(request("PUT", "/images/whole", {"Content-Length": str(len(new))}) + new[: len(new) // 2])
        deadline = time.monotonic() + DEADLINE_S
        while len(os.listdir(house.files)) < 2 or not any(
            name.startswith(".whole") for name in os.listdir(house.files)
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert house.ask("GET", "/whole")[2] == OLD == path.read_bytes()
    # The writer is gone in the middle: what it sent is forgotten.
    while any(name.startswith(".whole") for name in os.listdir(house.files)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert house.ask("GET", "/whole")[2] == OLD
    with Client(house.address) as reader:
        reader.send(request("GET", "/images/whole"))
        while len(reader.rest) < 1000:
            reader._more()
        assert house.ask("PUT", "/whole", new)[0] == 200
        assert reader.receive().body == OLD
    assert house.ask("GET", "/whole")[2] == new == path.read_bytes()


# 10: nobody is asked who he is, anybody may register, and any file may be named


def test_defect_10_files_lie_where_they_may_and_tokens_are_asked_for(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"secret")
    (house.files / "link").symlink_to(secret)
    (house.files / "folder").symlink_to(tmp_path)
    places = [
        secret,
        house.files / "link",
        house.files / "folder" / "secret.raw",
        house.files / ".." / "x",
        house.files,
    ]
    for number, place in enumerate([*places, Path("/etc/passwd"), Path("/dev/zero"), Path("/proc/self/environ")]):
        house.register(f"place{number}", backend="file", file=str(place))
        assert house.ask("GET", f"/place{number}")[0] == 500, place
    assert "is in none of the allowed directories" in house.server.stderr()

    raw_image(house, "locked", token="t0ken-of-an-image")
    for headers, expected in (
        ({}, 401),
        ({"X-Image-Token": "wrong"}, 401),
        ({"Authorization": "Bearer t0ken-of-an-image2"}, 401),
        ({"Authorization": "Basic t0ken-of-an-image"}, 401),
        ({"X-Image-Token": "t0ken-of-an-image"}, 200),
        ({"Authorization": "Bearer t0ken-of-an-image"}, 200),
        ({"Authorization": "bearer t0ken-of-an-image"}, 200),
    ):
        for method, path in (("GET", "/locked"), ("HEAD", "/locked"), ("OPTIONS", "/locked"),
                             ("GET", "/locked/checksum"), ("POST", "/locked/flush")):  # fmt: skip
            assert house.ask(method, path, None, headers)[0] == expected, (headers, method, path)
    status_line = house.ask("PUT", "/locked", b"x")
    assert status_line[0] == 401 and "bearer" in status_line[1]["www-authenticate"].lower()


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o602])
def test_defect_10_registrations_that_others_can_write_do_not_count(house: House, tmp_path: Path, mode: int) -> None:
    raw_image(house, "open")
    assert house.ask("GET", "/open")[0] == 200
    (house.images / "open").chmod(mode)
    assert house.ask("GET", "/open")[0] == 500
    (house.images / "open").chmod(0o644)
    assert house.ask("GET", "/open")[0] == 200
    if os.geteuid() == 0:
        os.chown(house.images / "open", 65534, -1)
        assert house.ask("GET", "/open")[0] == 500
    (house.images / "open").unlink()
    (house.images / "open").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("{}")
    assert house.ask("GET", "/open")[0] == 500
    (house.images / "open").unlink()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        Registry(Catalog(new_context(1 << 20)), str(tmp_path))


# 11: a NUL in the id kills the handler


@pytest.mark.parametrize(
    "image_id",
    ["a%00b", "%00", "..", "%2e%2e", "%2e%2e%2fold", "a%2fb", ".old", "-old", "a" * 200, "%ff", "a%20b", "*", "o%6Cx",
     "old%00", "old%0a", "%C3%A9", "..%5cold"],
)  # fmt: skip
def test_defect_11_odd_ids_are_unknown_ids(house: House, image_id: str) -> None:
    (house.images / ".old").write_text('{"backend":"file","file":"/etc/passwd"}')
    for method in ("GET", "OPTIONS", "PUT"):
        with Client(house.address) as client:
            answer = client.ask(method, f"/images/{image_id}", {"Content-Length": "0"} if method == "PUT" else {})
            if image_id == "*" and method == "OPTIONS":
                assert answer.status == 200
                continue
            assert answer.status in (400, 404), (method, answer)
            assert client.ask("OPTIONS", "/images/old").status == 200
    # Escapes are decoded, and empty segments do not count.
    assert house.ask("OPTIONS", "//o%6Cd/")[0] == 200


# 12: an early refusal leaves the body unread, which then passes for a request


def test_defect_12_what_is_left_of_a_refused_body_is_never_a_request(house: House) -> None:
    smuggled = request("DELETE", "/images/old")
    for target, headers in (
        ("/images/old", {}),
        ("/images/nothing", {}),
        ("/images/old/extents", {}),
        ("/nothing", {}),
        ("/images/old", {"Content-Type": "text/plain"}),
    ):
        with Client(house.address) as client:
            client.send(request("PATCH", target, {"Content-Length": str(len(smuggled)), **headers}) + smuggled)
            assert client.receive().status in (404, 405), target
            # On the same connection, if it stays, the next answer is the next request's.
            with contextlib.suppress(ConnectionError, EOFError):
                client.send(request("GET", "/images/old", {"Range": "bytes=0-9"}))
                answer = client.receive()
                assert (answer.status, answer.body) == (206, OLD[:10])
    # A large body is read away: the refusal arrives, and is not lost to a reset.
    for _ in range(5):
        with Client(house.address) as client:
            client.send(request("PUT", "/images/old", {"Content-Length": str(16 << 20)}))
            with contextlib.suppress(ConnectionError):
                for _ in range(16):
                    client.send(bytes(1 << 20))
            assert client.receive().status == 405


# 13: no HEAD, no validators, no Allow


def test_defect_13_head_validators_and_allow_are_there(house: House) -> None:
    code, headers, body = house.ask("HEAD", "/old")
    assert (code, headers["content-length"], body) == (200, str(SIZE), b"")
    assert headers["accept-ranges"] == "bytes" and headers["content-type"] == "application/octet-stream"
    etag = headers["etag"]
    assert house.ask("GET", "/old", None, {"If-None-Match": etag})[0] == 304
    assert house.ask("GET", "/old", None, {"If-Match": '"other"'})[0] == 412
    assert house.ask("GET", "/old", None, {"Range": "bytes=0-9", "If-Range": etag})[0] == 206
    assert house.ask("GET", "/old", None, {"Range": "bytes=0-9", "If-Range": '"other"'})[0] == 200
    # What is written may change: it has no validators, and If-Range never holds.
    house.register("thirteen", backend="overlay", snapshot="old", file=str(house.files / "thirteen"))
    assert "etag" not in house.ask("HEAD", "/thirteen")[1]
    assert house.ask("GET", "/thirteen", None, {"Range": "bytes=0-9", "If-Range": etag})[0] == 200
    for method, path, allowed in (
        ("DELETE", "/old", "OPTIONS,GET,HEAD"),
        ("POST", "/old", "OPTIONS,GET,HEAD"),
        ("DELETE", "/thirteen", "OPTIONS,GET,HEAD,PUT,PATCH"),
        ("PUT", "/old/extents", "OPTIONS,GET,HEAD"),
        ("GET", "/old/flush", "OPTIONS,POST"),
        ("DELETE", "/old/checksum", "OPTIONS,GET,HEAD"),
    ):
        code, headers, body = house.ask(method, path)
        assert (code, headers["allow"]) == (405, allowed), (method, path)
        assert headers["access-control-allow-methods"] == allowed.replace(",", ", ") and json.loads(body)["error"]
    ranges = [
        ("bytes=0-0", 206, OLD[:1]), ("bytes=-1", 206, OLD[-1:]), (f"bytes={SIZE - 1}-", 206, OLD[-1:]),
        (f"bytes=-{SIZE * 9}", 206, OLD), (f"bytes=5-{SIZE * 9}", 206, OLD[5:]), ("BYTES=3-4", 206, OLD[3:5]),
        (f"bytes={SIZE}-", 416, None), ("bytes=-0", 416, None), ("lines=1-2", 200, OLD), ("bytes=1_0-2_0", 200, OLD),
    ]  # fmt: skip
    for text, expected, content in ranges:
        code, headers, body = house.ask("GET", "/old", None, {"Range": text})
        assert code == expected and (content is None or body == content), text
        if code == 416:
            assert headers["content-range"] == f"bytes */{SIZE}" and "not satisfiable" in json.loads(body)["error"]


# 14: configurations that cannot be used are "unknown", known by their time alone, and kept for ever


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "needs either socket, or host and port"),
        ('{"backend":"iscsi"}', "backend 'iscsi' is unknown"),
        ('{"backend":5}', "backend 5 is unknown"),
        ('{"backend":"file"}', "needs file"),
        ('{"backend":"overlay","file":"/x"}', "needs snapshot"),
        ('{"backend":"file","file":"relative"}', "absolute"),
        ('{"socket":"/x","export":""}', "export is no text"),
        ('{"socket":"/x","max_readers":0}', "max_readers is not a whole number"),
        ('{"socket":"/x","mode":"x"}', "neither 'ro' nor 'rw'"),
        ('{"backend":"hexz","snapshot":"x","stream":"tape"}', "neither 'disk' nor 'memory'"),
        ("[" * 3000, "not JSON"),
        (" " * 5000, "longer than 4096"),
    ],
)
def test_defect_14_a_registration_that_cannot_be_used_is_a_500_with_its_reason_in_the_log(
    house: House, text: str, reason: str
) -> None:
    path = house.images / "wrong.json"
    path.write_text(text)
    path.chmod(0o644)
    answer = house.ask("GET", "/wrong")
    assert error_of(answer) == (500, "this image's registration cannot be used: the log says why")
    assert reason in house.server.stderr()
    path.unlink()
    assert error_of(house.ask("GET", "/wrong")) == (404, "unknown image_id")


def test_defect_14_a_change_is_noticed_even_if_the_time_is_the_same(house: House) -> None:
    one, other = raw_image(house, "first", b"one"), raw_image(house, "second", b"other")
    path = house.images / "changing"
    path.write_text(json.dumps({"backend": "file", "file": str(one)}))
    path.chmod(0o644)
    before = path.stat()
    assert house.ask("GET", "/changing")[2] == b"one"
    path.write_text(json.dumps({"backend": "file", "file": str(other)}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert house.ask("GET", "/changing")[2] == b"other"
    path.unlink()
    assert house.ask("GET", "/changing")[0] == 404


def test_defect_14_what_is_gone_or_idle_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, files = tmp_path / "images", tmp_path / "files"
    images.mkdir()
    files.mkdir()
    (files / "raw").write_bytes(b"raw")
    catalog = Catalog(new_context(1 << 20))
    registry = Registry(catalog, str(images), (str(files),))
    keys = {"backend": "file", "file": str(files / "raw")}

    def register(name: str, **more: object) -> None:
        (images / name).write_text(json.dumps({**keys, **more}))
        (images / name).chmod(0o644)

    for number in range(20):
        register(f"image{number}")
        registry.find(f"image{number}")
        (images / f"image{number}").unlink()
    assert len(registry._entries) == 20
    registry.sweep()
    assert not registry._entries

    register("idle", idle_timeout_seconds=100)
    image = registry.find("idle")
    with image.turn(writing=False):
        image.last_used -= 200
        assert registry.find("idle") is image  # whoever is at it keeps it in service
    image.last_used -= 200
    registry.sweep()
    with pytest.raises(NoSuchImage, match="expired"):
        registry.find("idle")
    register("idle", idle_timeout_seconds=99)
    assert registry.find("idle") is not image

    monkeypatch.setattr(registry_module, "MAX_IMAGES", 1)
    register("more")
    with pytest.raises(Busy):
        registry.find("more")
    registry.close()


# 15: no timeouts, no limits that hold, no orderly end


def test_defect_15_limits_hold_for_each_image_and_say_when_to_come_back(house: House) -> None:
    house.register("narrow", backend="hexz", snapshot="big", max_readers=1)
    assert house.json("OPTIONS", "/narrow")["max_readers"] == 1
    with Client(house.address) as stalled:
        stalled.send(request("GET", "/images/narrow"))
        while len(stalled.rest) < 1000:
            stalled._more()
        busy = house.ask("GET", "/narrow")
        assert error_of(busy) == (503, "too many parallel reads") and busy[1]["retry-after"].isdigit()
        # Others are not kept waiting, and this image still says what it is.
        assert house.ask("GET", "/big")[0] == 200 and house.ask("OPTIONS", "/narrow")[0] == 200
    deadline = time.monotonic() + DEADLINE_S
    while house.ask("GET", "/narrow")[0] != 200:
        assert time.monotonic() < deadline


def test_defect_15_two_extents_at_once_are_no_conflict(house: House) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(house.ask("GET", "/big/extents")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8


def test_defect_15_an_end_lets_downloads_finish(tmp_path: Path, snapshots: Path) -> None:
    content = (snapshots / "big.raw").read_bytes()
    with House(tmp_path, snapshots / "big.hxz") as house:
        connection = http.client.HTTPConnection(*house.address, timeout=60)
        connection.request("GET", "/images/big")
        answer = connection.getresponse()
        begin = answer.read(100_000)
        house.server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE_S
        with pytest.raises(OSError):
            while True:
                assert time.monotonic() < deadline
                house.ask("OPTIONS", "/big")
        assert begin + answer.read() == content
        connection.close()
        assert house.server.process.wait(DEADLINE_S) == 0


def test_a_file_that_is_gone_or_is_no_raw_image_is_told(house: House) -> None:
    path = raw_image(house, "gone")
    path.unlink()
    assert error_of(house.ask("GET", "/gone")) == (404, "the image's file is missing")
    path.write_bytes(b"QFI\xfb" + bytes(1000))
    code, reason = error_of(house.ask("GET", "/gone"))
    assert code == 500 and "export it with qemu-nbd" in reason
    path.unlink()
    os.mkfifo(path)
    assert error_of(house.ask("GET", "/gone")) == (500, "not a regular file")


def test_overlays_say_why_they_cannot_be_opened(house: House) -> None:
    path = house.files / "lost"
    house.register("lost", backend="overlay", snapshot="old", file=str(path), idle_timeout_seconds=8)
    assert house.ask("PATCH", "/lost", b"x", {"Range": "bytes=0-0"})[0] == 200
    house.register("again", backend="overlay", snapshot="old", file=str(path))
    busy = house.ask("GET", "/again")
    assert error_of(busy) == (503, "another process has this overlay open") and busy[1]["retry-after"] == "1"
    house.register("lost", backend="overlay", snapshot="big", file=str(path))
    deadline = time.monotonic() + DEADLINE_S
    while (answer := house.ask("GET", "/lost"))[0] != 500:  # as it was, until the session of before is idle
        assert time.monotonic() < deadline
    assert error_of(answer) == (500, "this overlay was made over other bytes")
    house.register("none", backend="overlay", snapshot="nothing", file=str(house.files / "none"))
    assert house.ask("GET", "/none")[0] == 404
    house.register("small", backend="overlay", snapshot="old", file=str(house.files / "small"), quota=131072)
    assert house.ask("PUT", "/small", samples.image(SIZE, seed=70))[0] == 507
