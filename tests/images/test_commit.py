"""`commit`: an overlay that a server wrote becomes a thin snapshot, which we and released readers read back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hexz.images.overlay.journal import Head
from hexz.images.overlay.recovery import JOURNAL_SUFFIX
from hexz.images.overlay.store import OverlayStore
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.pack import pack
from tests import samples
from tests.images.house import House
from tests.peers import ROOT, run
from tests.releases.test_wheels import call, hashes

BLOCK = 65536
SIZE = 400_000 + 77
"""As long as the image whose spans `hashes` are of."""
HEXZ = (sys.executable, "-m", "hexz")


@pytest.fixture
def base(tmp_path: Path) -> bytes:
    """A snapshot with disk and memory; the disk's bytes."""
    disk = samples.image(SIZE, seed=21)
    (tmp_path / "base.raw").write_bytes(disk)
    (tmp_path / "memory.raw").write_bytes(samples.image(90_000, seed=22))
    pack(str(tmp_path / "base.raw"), str(tmp_path / "base.hxz"), memory=str(tmp_path / "memory.raw"))
    return disk


def write_over_http(tmp_path: Path, snapshot: str, changes: list[tuple[int, bytes]]) -> Path:
    """The overlay over `snapshot` that a server made of `changes`, and then let go of."""
    (tmp_path / f"house-{snapshot}").mkdir()
    with House(tmp_path / f"house-{snapshot}", tmp_path / f"{snapshot}.hxz") as house:
        overlay = house.files / f"over-{snapshot}"
        house.register("over", backend="overlay", snapshot=snapshot, file=str(overlay))
        for offset, data in changes:
            place = {"Range": f"bytes={offset}-{offset + len(data) - 1}"}
            house.json("PATCH", "/over", data, place)
        house.json("PATCH", "/over", b'{"op":"zero","offset":131072,"size":65536}')
        refused = run(*HEXZ, "commit", overlay, tmp_path / "early.hxz", check=False, cwd=ROOT)
        assert refused.returncode == 75 and "another process has this overlay open" in refused.stderr
    assert not (tmp_path / "early.hxz").exists()
    return overlay


def applied(image: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(image)
    for offset, data in changes:
        changed[offset : offset + len(data)] = data
    changed[131072:196608] = bytes(65536)
    return bytes(changed)


def contents(path: Path) -> tuple[bytes, bytes, bool]:
    """Disk, memory and whether it is thin."""
    with open_snapshot(str(path), new_context(4 << 20)) as snapshot:
        assert snapshot.disk is not None and snapshot.memory is not None
        disk = b"".join(snapshot.disk.read(0, snapshot.disk.size))
        return disk, b"".join(snapshot.memory.read(0, snapshot.memory.size)), snapshot.thin


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_an_overlay_becomes_a_thin_child_that_everybody_reads(tmp_path: Path, base: bytes, compression: str) -> None:
    # In the middle of a block, over a border, the short last block, and a block that stays what it was.
    changes = [
        (100, b"new"),
        (BLOCK * 4 - 10, samples.image(5000, 23)),
        (SIZE - 5, b"tail!"),
        (BLOCK, base[BLOCK:][:9]),
    ]
    overlay = write_over_http(tmp_path, "base", changes)
    child = tmp_path / "child.hxz"
    said = run(*HEXZ, "commit", "--compression", compression, overlay, child, cwd=ROOT).stdout
    # Blocks 0, 3, 4 and 6 were changed, 2 was zeroed, 1 is as it was; memory's two are the parent's.
    assert "4 stored, 1 zero, 4 in the parent" in said
    expected = applied(base, changes)
    assert contents(child) == (expected, (tmp_path / "memory.raw").read_bytes(), True)
    run(*HEXZ, "verify", child, cwd=ROOT)
    spans = [("read", {"path": "child.hxz", "spans": SPANS})]
    for version in ("0.5.2", "0.5.5", "0.6.0", "0.7.0"):
        (answer,) = call(version, spans, tmp_path)
        assert answer == hashes(expected), version


SPANS = [[0, 1], [4095, 2], [65_530, 70_000], [SIZE - 3, 3], [123_457, 200_001]]


def test_generations_of_overlays_are_committed_one_over_the_other(tmp_path: Path, base: bytes) -> None:
    first, second = [(0, b"one")], [(BLOCK * 5, b"two")]
    run(*HEXZ, "commit", write_over_http(tmp_path, "base", first), tmp_path / "child.hxz", cwd=ROOT)
    run(*HEXZ, "commit", write_over_http(tmp_path, "child", second), tmp_path / "grandchild.hxz", cwd=ROOT)
    assert contents(tmp_path / "grandchild.hxz")[0] == applied(applied(base, first), second)


def test_an_overlay_is_committed_only_over_what_it_was_made_over(tmp_path: Path, base: bytes) -> None:
    with open_snapshot(str(tmp_path / "base.hxz"), new_context(1 << 20)) as snapshot:
        disk = snapshot.disk
        assert disk is not None
        head = Head(disk.size, BLOCK, disk.etag, str(tmp_path / "base.hxz"), "disk")
        store = OverlayStore(str(tmp_path / "over"), head, disk.read)
        store.write(3, memoryview(b"abc"))
        store.close()
    (tmp_path / "base.hxz").rename(tmp_path / "moved.hxz")
    pack(str(tmp_path / "memory.raw"), str(tmp_path / "other.hxz"))
    commit = (*HEXZ, "commit", tmp_path / "over")
    for arguments, status, reason in (
        ((tmp_path / "out.hxz",), 66, "base.hxz"),
        ((tmp_path / "out.hxz", "--parent", tmp_path / "other.hxz"), 2, "is not the snapshot that"),
        ((tmp_path / "moved.hxz", "--parent", tmp_path / "moved.hxz"), 2, "moved.hxz"),
        ((tmp_path / "over", "--parent", tmp_path / "moved.hxz"), 2, "over"),
        ((tmp_path / "out.hxz", "--parent", tmp_path / "moved.hxz", "--level", "99"), 2, "level 99"),
    ):
        done = run(*commit, *arguments, check=False, cwd=ROOT)
        assert (done.returncode, reason in done.stderr) == (status, True), done.stderr
        assert done.stderr.count("\n") == 1
    done = run(*HEXZ, "commit", tmp_path / "nothing", tmp_path / "out.hxz", check=False, cwd=ROOT)
    assert done.returncode == 66 and "no overlay" in done.stderr
    assert not (tmp_path / "out.hxz").exists()
    run(*commit, tmp_path / "out.hxz", "--parent", tmp_path / "moved.hxz", cwd=ROOT)
    assert contents(tmp_path / "out.hxz")[0] == base[:3] + b"abc" + base[6:]
    # A damaged journal is no overlay.
    journal = tmp_path / f"over{JOURNAL_SUFFIX}"
    journal.write_bytes(b"x" + journal.read_bytes()[1:])
    done = run(*commit, tmp_path / "late.hxz", "--parent", tmp_path / "moved.hxz", check=False, cwd=ROOT)
    assert done.returncode == 65 and "damaged" in done.stderr
