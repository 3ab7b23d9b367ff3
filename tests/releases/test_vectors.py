"""Every sample file gives its expected bytes: through the reader, the tools, and a running server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from hexz.errors import BlockError
from hexz.format.crypto import signature_valid
from hexz.protocol.s3.keys import bucket_of
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.tools.extract import extract
from hexz.tools.verify import verify
from tests import vectors
from tests.peers import Server, need_libnbd, run, write_secret

ALL = sorted(vectors.load())
PIECE = 100_003


def opened(vector: dict[str, Any], workers: int = 1) -> Snapshot:
    password = vectors.password(vector)
    dirs = (str(vectors.path(vector["file"]).parent),)
    context = new_context(16 << 20, password.encode() if password else None, dirs, workers)
    return open_snapshot(str(vectors.path(vector["file"])), context)


@pytest.mark.parametrize("name", ALL)
def test_reader(name: str) -> None:
    vector = vectors.load()[name]
    with opened(vector) as snapshot:
        if vector["expect"] == "unresolvable-parent-block":
            assert snapshot.disk is not None
            with pytest.raises(BlockError, match="is in no parent"):
                snapshot.disk.read(0, snapshot.disk.size)
            return
        assert {s for s, stream in snapshot.streams.items() if stream.size} == set(vectors.expected(vector))
        for stream_name, facts in vectors.expected(vector).items():
            stream = snapshot.streams[stream_name]
            assert stream.size == facts["size"]
            digest = hashlib.sha256()
            for offset in range(0, stream.size, PIECE):
                for view in stream.read(offset, min(PIECE, stream.size - offset)):
                    digest.update(view)
            assert digest.hexdigest() == facts["sha256"]
            for offset, length, sha256 in vectors.spans(facts):
                assert hashlib.sha256(b"".join(stream.read(offset, length))).hexdigest() == sha256
            for extents in (stream.extents, stream.flat_extents):
                ends = 0
                for extent in extents(0, stream.size):
                    assert extent.start == ends and extent.length > 0
                    ends += extent.length
                assert ends == stream.size
        snapshot.context.workers.stop()


LISTING = [name for name in ALL if vectors.archived(vectors.load()[name]) is not None]


def is_file(data: bytes, facts: dict[str, Any]) -> bool:
    """The bytes are those of a listed file."""
    return len(data) == facts["size"] and hashlib.sha256(data).hexdigest() == facts["sha256"]


@pytest.mark.parametrize("name", LISTING)
def test_listed_files(name: str) -> None:
    vector = vectors.load()[name]
    expected = vectors.archived(vector)
    assert expected is not None
    with opened(vector) as snapshot:
        assert snapshot.files is not None
        assert sorted(file.path for file in snapshot.files) == sorted(expected)
        for file in snapshot.files:
            facts = expected[file.path]
            stream = {"disk": "main", "memory": "aux"}[file.stream]
            assert (file.mode, file.mtime) == (facts.get("mode", 0o100644), facts.get("mtime"))
            assert not file.size or stream == facts.get("stream", "main")
            data = b"".join(snapshot.streams[file.stream].read(file.offset, file.size)) if file.size else b""
            assert is_file(data, facts), file.path


@pytest.mark.parametrize("name", ALL)
def test_extract(name: str, tmp_path: Path) -> None:
    """Each stream to a file, and what is listed to a folder."""
    vector = vectors.load()[name]
    password = vectors.password(vector)
    secret = password.encode() if password else None

    def run_extract(out: str, stream: str | None, undeclared: bool = False) -> Path:
        path = vectors.path(name)
        done = extract(str(path), str(tmp_path / out), stream, secret, (str(path.parent),), undeclared=undeclared)
        assert undeclared or "stored" in vector or not done.left_out
        return tmp_path / out

    if vector["expect"] == "unresolvable-parent-block":
        with pytest.raises(BlockError, match="is in no parent"):
            run_extract("disk", "disk")
        return
    for stream, facts in vectors.expected(vector).items():
        assert is_file(run_extract(stream, stream).read_bytes(), facts), stream
    if "stored" in vector:
        assert is_file(run_extract("stored", None, undeclared=True).read_bytes(), vector["stored"])
    expected = vectors.archived(vector)
    if expected is not None:
        folder = run_extract("folder", None)
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        assert found.keys() == expected.keys()
        assert all(is_file(path.read_bytes(), expected[listed]) for listed, path in found.items())


@pytest.mark.parametrize("name", ALL)
def test_verify(name: str) -> None:
    vector = vectors.load()[name]
    password = vectors.password(vector)
    found: list[str] = []
    path = vectors.path(name)
    verified = verify(str(path), found.append, password.encode() if password else None, (str(path.parent),))
    if vector["expect"] == "unresolvable-parent-block":
        assert verified.damaged and found
        return
    assert not verified.damaged and not found
    assert verified.checked == sum(facts["size"] for facts in vectors.expected(vector).values()) or "stored" in vector
    # A message that looks like a list of files, names that repeat, a size of 0 with blocks behind it.
    files = vector.get("files", vector.get("source_files"))
    repeats = len(files) - len(vectors.archived(vector) or ()) if files is not None else 0
    assert len(verified.oddities) == repeats + ("stored" in vector) + (name == "0.7.0-cli-lz4-commit-thin.hxz")


@pytest.mark.parametrize("name", [name for name in ALL if "signature" in vectors.load()[name]])
def test_signature(name: str) -> None:
    vector = vectors.load()[name]
    with opened(vector) as snapshot:
        place = snapshot.header.signature
        assert place is not None and list(place) == vector["signature"]
        signed = snapshot.read_file(snapshot.header.index_offset, place.offset - snapshot.header.index_offset)
        key = bytes.fromhex(vector["public_key"])
        signature = snapshot.read_file(*place)
        assert signature_valid(key, signature, signed)
        assert not signature_valid(key, signature, signed[:-1] + bytes([signed[-1] ^ 1]))


PASSWORDS = sorted({vectors.password(vectors.load()[name]) or "" for name in ALL})


@pytest.fixture(scope="module", params=PASSWORDS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, list[str]]]:
    """A daemon over all files that need this password (empty: none); thin files find their parents beside them."""
    names = [name for name in ALL if (vectors.password(vectors.load()[name]) or "") == request.param]
    options: list[object] = ["--http-port", 0, "--nbd-port", 0, "--s3-port", 0, "--cache-size", "64M"]
    if request.param:
        secret = tmp_path_factory.mktemp("secret") / "password"
        write_secret(secret, request.param)
        options += ["--password-file", secret]
        # Some are plain text themselves, over parents that are not.
        options += [
            word for folder in {vectors.path(name).parent for name in names} for word in ("--parent-dir", folder)
        ]
    with Server(*options, *map(vectors.path, names)) as running:
        yield running, names


def test_over_http(served: tuple[Server, list[str]]) -> None:
    server, names = served
    with requests.Session() as session:
        for name in names:
            vector = vectors.load()[name]
            base = f"{server.http}/snapshots/{name[:-4]}"
            if vector["expect"] == "unresolvable-parent-block":
                assert session.get(f"{base}/disk").status_code == 500
                continue
            for stream, facts in vectors.expected(vector).items():
                whole = session.get(f"{base}/{stream}")
                assert whole.status_code == 200
                assert hashlib.sha256(whole.content).hexdigest() == facts["sha256"], (name, stream)
                for offset, length, sha256 in vectors.spans(facts):
                    part = session.get(f"{base}/{stream}", headers={"Range": f"bytes={offset}-{offset + length - 1}"})
                    assert part.status_code == 206
                    assert hashlib.sha256(part.content).hexdigest() == sha256, (name, stream, offset)
            if "stored" in vector:
                assert session.get(f"{base}/disk").content == b""
            for path, facts in (vectors.archived(vector) or {}).items():
                file = session.get(f"{base}/files/{quote(path)}")
                assert file.status_code == 200 and is_file(file.content, facts), (name, path)


def test_over_s3(served: tuple[Server, list[str]]) -> None:
    server, names = served
    endpoint = server.urls["s3"].replace("s3:", "http:").rstrip("/")
    with requests.Session() as session:
        for name in names:
            vector = vectors.load()[name]
            bucket = f"{endpoint}/{bucket_of(name[:-4])}"
            if vector["expect"] == "unresolvable-parent-block":
                assert session.get(f"{bucket}/disk").status_code == 500
                continue
            for stream, facts in vectors.expected(vector).items():
                whole = session.get(f"{bucket}/{stream}")
                assert whole.status_code == 200
                assert hashlib.sha256(whole.content).hexdigest() == facts["sha256"], (name, stream)
            for path, facts in (vectors.archived(vector) or {}).items():
                file = session.get(f"{bucket}/files/{quote(path)}")
                assert file.status_code == 200 and is_file(file.content, facts), (name, path)


NBD_SCRIPT = """
import hashlib, json, sys, nbd
uri, jobs = sys.argv[1], json.load(open(sys.argv[2]))
for job in jobs:
    h = nbd.NBD()
    h.connect_uri(uri + job["export"])
    assert h.get_size() == job["size"], job
    if job["fails"]:
        try:
            h.pread(h.get_size(), 0)
        except nbd.Error as error:
            assert error.errno == "EIO", error
        else:
            raise AssertionError(job)
    else:
        whole = b"".join(bytes(h.pread(min(1 << 20, job["size"] - o), o)) for o in range(0, job["size"], 1 << 20))
        assert hashlib.sha256(whole).hexdigest() == job["sha256"], job
        for offset, length, sha256 in job["spans"]:
            assert hashlib.sha256(h.pread(length, offset)).hexdigest() == sha256, (job, offset)
    h.shutdown()
print(len(jobs), "exports")
"""


def test_over_nbd(served: tuple[Server, list[str]], tmp_path: Path) -> None:
    server, names = served
    jobs = []
    for name in names:
        vector = vectors.load()[name]
        for stream, facts in vectors.expected(vector).items():
            export = name[:-4] if stream == "disk" else f"{name[:-4]}/{stream}"
            fails = vector["expect"] == "unresolvable-parent-block" and stream == "disk"
            jobs.append({"export": export.replace("+", "%2B"), "fails": fails, "size": facts["size"],
                         "sha256": facts["sha256"], "spans": vectors.spans(facts)})  # fmt: skip
    listed = tmp_path / "jobs.json"
    listed.write_text(json.dumps(jobs))
    assert run(need_libnbd(), "-c", NBD_SCRIPT, server.nbd, listed).stdout.strip() == f"{len(jobs)} exports"
