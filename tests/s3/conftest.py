"""A daemon with keys and one without, shared by the tests that only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CORPUS
from tests.peers import Server
from tests.s3.serving import Endpoint, write_keys


@pytest.fixture(scope="session")
def disk(disk_image: Path) -> bytes:
    return disk_image.read_bytes()


@pytest.fixture(scope="session")
def endpoint(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    keys = write_keys(tmp_path_factory.mktemp("keys"))
    sources = (snapshot_file, f"dir={CORPUS / '0.8.0-zstd-dir.hxz'}", f"An odd_name={snapshot_file}")
    with Server("--s3-port", 0, "--s3-keys-file", keys, "--s3-domain", "localhost", *sources) as server:
        yield Endpoint(server.urls["s3"].replace("s3:", "http:").rstrip("/"))
