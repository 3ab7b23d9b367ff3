"""Every sample file gives its expected bytes from a server as it does from its file: over HTTP, and signed from S3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hexz.errors import BlockError
from hexz.snapshot import OpenContext, Snapshot, new_context, open_snapshot
from hexz.storage.remote import RemoteSettings, StoreNames
from tests import vectors
from tests.peers import Server, fetch, need_libnbd, run, write_secret
from tests.releases.test_vectors import NBD_SCRIPT
from tests.remote.stores import ACCESS_KEY, BUCKET, REGION, SECRET, nginx, rclone

ALL = sorted(vectors.load())
PIECE = 1 << 20
STORES = ("nginx", "rclone")
SERVED = sorted(ALL, key=lambda name: hashlib.sha256(name.encode()).digest())[:12]
"""Some of them, which a daemon serves."""

Address = Callable[[str], str]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET}\n"
    return write_secret(tmp_path_factory.mktemp("keys") / "keys", text)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them in one folder."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ALL:
        (folder / name).symlink_to(vectors.path(name))
    return folder


@pytest.fixture(scope="module", params=STORES)
def reach(request: pytest.FixtureRequest, samples: Path, keys: Path) -> Iterator[tuple[Address, RemoteSettings]]:
    """Where each is, and how that is reached."""
    with (nginx if request.param == "nginx" else rclone)(samples) as store:
        if request.param == "nginx":
            folder = f"{store.base}/"
            yield store.url, RemoteSettings(parent_urls=(folder,))
        else:
            stores = StoreNames(store.endpoint, REGION)
            folder = f"s3://{BUCKET}/"
            yield store.s3_uri, RemoteSettings(stores, str(keys), parent_urls=(folder,))


@pytest.fixture(scope="module")
def contexts(reach: tuple[Address, RemoteSettings]) -> Iterator[Callable[[str | None], OpenContext]]:
    """A context for each password."""
    made: dict[str | None, OpenContext] = {}

    def context(password: str | None) -> OpenContext:
        if password not in made:
            secret = password.encode() if password else None
            made[password] = new_context(16 << 20, secret, workers=1, remote=reach[1])
        return made[password]

    yield context
    for one in made.values():
        one.lanes.stop()
        one.remote.close()


def is_file(data: bytes, facts: dict[str, Any]) -> bool:
    return len(data) == facts["size"] and hashlib.sha256(data).hexdigest() == facts["sha256"]


def whole(snapshot: Snapshot, name: str) -> bytes:
    stream = snapshot.streams[name]
    pieces = [stream.read(at, min(PIECE, stream.size - at)) for at in range(0, stream.size, PIECE)]
    return b"".join(view for piece in pieces for view in piece)


@pytest.mark.parametrize("name", ALL)
def test_from_a_server(
    name: str, reach: tuple[Address, RemoteSettings], contexts: Callable[[str | None], OpenContext]
) -> None:
    vector = vectors.load()[name]
    with open_snapshot(reach[0](name), contexts(vectors.password(vector))) as snapshot:
        if vector["expect"] == "unresolvable-parent-block":
            with pytest.raises(BlockError, match="is in no parent"):
                whole(snapshot, "disk")
            return
        assert {stream for stream, one in snapshot.streams.items() if one.size} == set(vectors.expected(vector))
        streams = {stream: whole(snapshot, stream) for stream in vectors.expected(vector)}
        for stream, facts in vectors.expected(vector).items():
            assert is_file(streams[stream], facts)
            for offset, length, sha256 in vectors.spans(facts):
                part = b"".join(snapshot.streams[stream].read(offset, length))
                assert hashlib.sha256(part).hexdigest() == sha256
        listed = vectors.archived(vector)
        if listed is not None:
            assert snapshot.files is not None and sorted(file.path for file in snapshot.files) == sorted(listed)
            for file in snapshot.files:
                data = streams[file.stream][file.offset : file.offset + file.size] if file.size else b""
                assert is_file(data, listed[file.path]), file.path


def test_served_from_a_server_over_http_and_nbd(
    reach: tuple[Address, RemoteSettings], keys: Path, tmp_path: Path
) -> None:
    compare_served(SERVED, reach, keys, tmp_path)


def compare_served(names: list[str], reach: tuple[Address, RemoteSettings], keys: Path, tmp_path: Path) -> int:
    """A daemon for each password serves these samples; every byte of them is compared; how many exports there were."""
    by_password: dict[str | None, list[str]] = {}
    for name in names:
        by_password.setdefault(vectors.password(vectors.load()[name]), []).append(name)
    return sum(compare_group(group, word, reach, keys, tmp_path) for word, group in by_password.items())


def compare_group(
    names: list[str], password: str | None, reach: tuple[Address, RemoteSettings], keys: Path, tmp_path: Path
) -> int:
    address, settings = reach
    options: list[object] = ["--http-port", 0, "--nbd-port", 0, "--parent-url", settings.parent_urls[0]]
    if password is not None:
        options += ["--password-file", write_secret(tmp_path / "password", password)]
    if settings.stores.endpoint:
        options += ["--s3-endpoint", settings.stores.endpoint, "--s3-credentials-file", keys]
    jobs = []
    with Server(*options, *map(address, names)) as server:
        for name in names:
            vector = vectors.load()[name]
            base = f"{server.http}/snapshots/{quote(name[:-4])}"
            fails = vector["expect"] == "unresolvable-parent-block"
            for stream, facts in vectors.expected(vector).items():
                status, body = fetch(f"{base}/{stream}")
                assert (status == 500) if fails else (status == 200 and is_file(body, facts)), (name, stream)
                export = quote(name[:-4] if stream == "disk" else f"{name[:-4]}/{stream}")
                jobs.append({"export": export, "fails": fails and stream == "disk", "size": facts["size"],
                             "sha256": facts["sha256"], "spans": vectors.spans(facts)})  # fmt: skip
            for path, facts in (vectors.archived(vector) or {}).items():
                status, body = fetch(f"{base}/files/{quote(path)}")
                assert status == 200 and is_file(body, facts), (name, path)
        listed = tmp_path / "jobs.json"
        listed.write_text(json.dumps(jobs))
        assert run(need_libnbd(), "-c", NBD_SCRIPT, server.nbd, listed).stdout.strip() == f"{len(jobs)} exports"
    return len(jobs)
