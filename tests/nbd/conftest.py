"""One daemon for all tests that leave it as it was, with a snapshot, a thin child of it, and one that is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hexz.tools.pack import pack
from tests.peers import Server

CHANGED_AT = 1 << 20
CHANGED_BYTES = 100_000
BLOCK = 64 << 10


class Exports(NamedTuple):
    """The files behind the daemon's exports, and their raw bytes."""

    folder: Path
    disk: bytes
    memory: bytes
    child: bytes
    noise: bytes
    damaged_at: int


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, disk_image: Path, memory_image: Path) -> Exports:
    folder = tmp_path_factory.mktemp("exports")
    disk = disk_image.read_bytes()
    child = bytearray(disk)
    for number in range(CHANGED_AT, CHANGED_AT + CHANGED_BYTES):
        child[number] ^= 0x55
    (folder / "child.raw").write_bytes(child)
    pack(str(disk_image), str(folder / "snap.hxz"), memory=str(memory_image), block_size=BLOCK)
    pack(str(folder / "child.raw"), str(folder / "thin.hxz"), parent=str(folder / "snap.hxz"), block_size=BLOCK)
    noise = b"".join(bytes([number]) * 8192 for number in range(64)) + disk[-(1 << 19) :]
    (folder / "noise.raw").write_bytes(noise)
    pack(str(folder / "noise.raw"), str(folder / "damaged.hxz"), compression="zstd", block_size=BLOCK)
    damaged_at = _damage(folder / "damaged.hxz", 2 * BLOCK)
    return Exports(folder, disk, memory_image.read_bytes(), bytes(child), noise, damaged_at)


def _damage(path: Path, position: int) -> int:
    """Flip a bit of the stored block at `position` of the stream; the position."""
    from hexz.snapshot import new_context, open_snapshot

    snapshot = open_snapshot(str(path), new_context(1 << 20))
    stream = snapshot.disk
    assert stream is not None
    page = stream.pages.at(position).page
    stored = page.stored_offset(page.find(position))
    snapshot.close()
    with path.open("r+b") as file:
        file.seek(stored + 3)
        byte = file.read(1)
        file.seek(stored + 3)
        file.write(bytes([byte[0] ^ 0x10]))
    return position


@pytest.fixture(scope="session")
def server(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    socket_path = tmp_path_factory.mktemp("nbd") / "sock"
    files = [exports.folder / f"{name}.hxz" for name in ("snap", "thin", "damaged")]
    with Server(*files, "--nbd-port", 0, "--nbd-socket", socket_path) as running:
        yield running


@pytest.fixture
def address(server: Server) -> tuple[str, int]:
    return ("127.0.0.1", server.nbd_port)
