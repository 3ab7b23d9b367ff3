"""Daemons with a control socket, and snapshots to mount."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.tools.pack import pack
from tests import samples
from tests.control.clients import Controlled


@pytest.fixture
def daemon(tmp_path: Path, snapshot_file: Path) -> Iterator[Controlled]:
    """A daemon that serves ``snap`` over HTTP and NBD."""
    with Controlled(tmp_path / "api.sock", "--http-port", 0, "--nbd-port", 0, snapshot_file) as server:
        yield server


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes]]:
    """Four small snapshots with their disks' bytes."""
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(4):
        content = samples.image((300 << 10) + number * 4096, seed=number + 10)
        raw = folder / f"{number}.raw"
        raw.write_bytes(content)
        pack(str(raw), str(folder / f"{number}.hxz"))
        made.append((folder / f"{number}.hxz", content))
    return made


@pytest.fixture
def other(tmp_path: Path, images: list[tuple[Path, bytes]]) -> Path:
    """A snapshot of one's own."""
    return Path(shutil.copy(images[0][0], tmp_path / "other.hxz"))
