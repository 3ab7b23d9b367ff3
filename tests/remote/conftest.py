"""A folder of snapshots for stores to serve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, snapshot_file: Path) -> Path:
    """With snap.hxz; the test may change it."""
    path = tmp_path / "served"
    path.mkdir()
    shutil.copy(snapshot_file, path / "snap.hxz")
    return path


@pytest.fixture(scope="module")
def still_folder(tmp_path_factory: pytest.TempPathFactory, snapshot_file: Path) -> Path:
    """The same, for all tests of a module; none changes it."""
    path = tmp_path_factory.mktemp("still")
    shutil.copy(snapshot_file, path / "snap.hxz")
    return path
