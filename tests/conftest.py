"""Shared fixtures: sample images, packed snapshots, and a hypothesis profile that repeats."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests import samples
from tests.peers import MISSING

# Without the phase that explains: before Python 3.12 it traces every line, and a failure is told after an hour.
PHASES = [phase for phase in Phase if phase is not Phase.explain]
settings.register_profile(
    "tests", deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck), phases=PHASES
)
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))

WITHOUT_PEERS: pytest.StashKey[int] = pytest.StashKey()
CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def made_up_hashes() -> Iterator[None]:
    """For files whose entries have made-up hashes: none is checked, as where the package for it is missing."""
    from hexz.snapshot import stored

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "find_hasher", lambda: None)
        yield


@pytest.fixture(scope="session")
def disk_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw image of 8 MiB and an odd tail."""
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    path.write_bytes(samples.image((8 << 20) + 1536))
    return path


@pytest.fixture(scope="session")
def memory_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw memory image of 1 MiB."""
    path = tmp_path_factory.mktemp("raw") / "memory.raw"
    path.write_bytes(samples.image(1 << 20, seed=2))
    return path


@pytest.fixture(scope="session")
def snapshot_file(tmp_path_factory: pytest.TempPathFactory, disk_image: Path, memory_image: Path) -> Path:
    """A snapshot of both images, called snap."""
    from hexz.tools.pack import pack

    path = tmp_path_factory.mktemp("packed") / "snap.hxz"
    pack(str(disk_image), str(path), memory=str(memory_image))
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Count what was skipped for want of a peer."""
    skipped = terminalreporter.stats.get("skipped", [])
    config.stash[WITHOUT_PEERS] = sum(MISSING in str(report.longrepr) for report in skipped)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Say in the last line of all what would run the skipped tests."""
    count = config.stash.get(WITHOUT_PEERS, 0)
    if count:
        print(f"{count} tests were skipped for want of the programs that they talk to: `make peers` installs them")
