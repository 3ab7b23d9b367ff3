"""A server with the sample snapshot and a folder archive, shared by the tests that only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CORPUS
from tests.http.serving import Client, Serving, serving


@pytest.fixture(scope="session")
def disk(disk_image: Path) -> bytes:
    return disk_image.read_bytes()


@pytest.fixture(scope="session")
def server(snapshot_file: Path) -> Iterator[Serving]:
    with serving({"snap": snapshot_file, "dir": CORPUS / "0.8.0-zstd-dir.hxz", "sp ace": snapshot_file}) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[Client]:
    with server.client() as connected:
        yield connected
