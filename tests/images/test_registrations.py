"""Registrations say what is meant and nothing else, and their files stay where they may be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hexz.errors import ConfigError
from hexz.protocol.images import is_image_id, parse_registration
from hexz.tools.pack import pack
from tests import samples
from tests.http.serving import Client, request
from tests.images.house import House

OLD = samples.image(300_000, seed=50)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("registrations")
    (folder / "old.raw").write_bytes(OLD)
    pack(str(folder / "old.raw"), str(folder / "old.hxz"))
    with House(folder, folder / "old.hxz") as made:
        yield made


GOOD: dict[str, dict[str, Any]] = {
    "nbd": {"socket": "/s"},
    "file": {"file": "/f"},
    "hexz": {"snapshot": "s"},
    "overlay": {"file": "/f", "snapshot": "s"},
}
MORE: dict[str, Any] = {
    "socket": "/s", "host": "h", "port": 1, "export": "e", "export_bitmap": "b", "file": "/f", "snapshot": "s",
    "stream": "disk", "quota": 1, "max_writers": 1, "max_readers": 1, "token": "0123456789abcdef",
    "idle_timeout_seconds": 1, "mode": "ro",
}  # fmt: skip
MEANT = {
    "nbd": {"socket", "export", "export_bitmap", "max_writers"},
    "file": {"file", "quota", "max_writers"},
    "hexz": {"snapshot", "stream"},
    "overlay": {"file", "snapshot", "stream", "quota", "max_writers"},
}


@pytest.mark.parametrize("backend", GOOD)
def test_a_key_that_means_nothing_for_a_backend_is_refused(backend: str) -> None:
    for key, value in MORE.items():
        data = json.dumps({"backend": backend, **GOOD[backend], key: value}).encode()
        if key in MEANT[backend] | {"max_readers", "token", "idle_timeout_seconds", "mode"}:
            assert not parse_registration(data).unknown
        elif not (backend == "nbd" and key in ("host", "port")):
            with pytest.raises(ConfigError, match=f"{key} means nothing for backend {backend}"):
                parse_registration(data)
    if backend == "hexz":
        with pytest.raises(ConfigError, match="not possible for backend hexz"):
            parse_registration(b'{"backend":"hexz","snapshot":"s","mode":"rw"}')


@pytest.mark.parametrize("key", ["token", "file", "snapshot"])
def test_text_that_is_none_is_refused(house: House, key: str) -> None:
    path = house.images / "odd"
    path.write_text(json.dumps({"backend": "overlay", "file": "/f", "snapshot": "old", key: "/\ud800"}))
    path.chmod(0o644)
    assert house.ask("GET", "/odd", None, {"X-Image-Token": "x"})[0] == 500
    assert f"{key} is no text" in house.server.stderr() and "Traceback" not in house.server.stderr()


def test_one_registration_is_one_image(house: House) -> None:
    keys = {"backend": "overlay", "snapshot": "old", "file": str(house.files / "one")}
    (house.images / "one.json").write_text(json.dumps(keys))
    (house.images / "one.json").chmod(0o644)
    (house.images / "two.json.json").write_text("{}")
    for path in ("/one.json", "/two.json", "/two.json.json"):
        assert house.ask("GET", path)[0] == 404, path
    assert house.ask("GET", "/one")[2] == OLD
    assert house.ask("PATCH", "/one", b"x", {"Range": "bytes=0-0"})[0] == 200
    assert not is_image_id("one.json") and is_image_id("one.jso") and is_image_id("json")


def test_a_file_is_replaced_by_no_more_than_its_quota_or_than_fits(house: House) -> None:
    path = house.files / "raw"
    path.write_bytes(b"old")
    house.register("raw", backend="file", file=str(path), quota=1000)
    for length, expected in ((1001, 507), (1000, 200)):
        answer = house.ask("PUT", "/raw", b"n" * length)
        assert answer[0] == expected
        assert path.read_bytes() == (b"old" if expected == 507 else b"n" * length)
    house.register("raw", backend="file", file=str(path))
    with Client(house.address) as client:  # refused before its first byte
        client.send(request("PUT", "/images/raw", {"Content-Length": str(1 << 50), "Expect": "100-continue"}))
        assert client.receive().status == 507
    assert os.listdir(house.files).count("raw") == 1 and path.read_bytes() == b"n" * 1000


def test_no_folder_that_becomes_a_link_leads_out_of_the_allowed_one(house: House, tmp_path: Path) -> None:
    inside, secret = house.files / "deep" / "er", tmp_path / "secret"
    inside.mkdir(parents=True)
    secret.mkdir()
    for folder, content in ((inside, b"harmless"), (secret, b"of another")):
        (folder / "raw").write_bytes(content)
    house.register("raw", backend="file", file=str(inside / "raw"))
    house.register("over", backend="overlay", snapshot="old", file=str(inside / "over"))
    assert house.ask("GET", "/raw")[2] == b"harmless"
    with Client(house.address) as slow:
        slow.send(request("PUT", "/images/raw", {"Content-Length": "8", "Expect": "100-continue"}))
        assert slow.receive().status == 100
        slow.send(b"half")
        (house.files / "deep").rename(house.files / "moved")
        (house.files / "deep").symlink_to(tmp_path)
        (tmp_path / "er").symlink_to(secret)
        slow.send(b"half")
        assert slow.receive().status == 200
    assert (house.files / "moved" / "er" / "raw").read_bytes() == b"halfhalf"
    for method, path in (("GET", "/raw"), ("PUT", "/raw"), ("GET", "/over"), ("OPTIONS", "/over")):
        assert house.ask(method, path, b"overwritten" if method == "PUT" else None)[0] == 500, (method, path)
    assert (secret / "raw").read_bytes() == b"of another" and os.listdir(secret) == ["raw"]
    # The file itself.
    (house.files / "deep").unlink()
    (house.files / "moved").rename(house.files / "deep")
    assert house.ask("GET", "/raw")[2] == b"halfhalf"
    (inside / "raw").unlink()
    (inside / "raw").symlink_to(secret / "raw")
    assert house.ask("GET", "/raw")[0] == 500
    (inside / "over.map").symlink_to(secret / "raw")
    assert house.ask("GET", "/over")[0] == 500
    (inside / "over.map").unlink()
    os.mkfifo(inside / "over.map")
    for _ in range(3):
        assert house.ask("GET", "/over")[0] == 500
