"""Seals beside snapshots on servers: looked for where they are demanded or can be checked with a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.errors import SealDamaged, SealKeyNeeded, SealMismatch, SealMissing
from hexz.format.seal import seal_key
from hexz.snapshot import new_context, open_snapshot
from hexz.storage.sealed import SealPolicy
from hexz.tools.pack import pack
from hexz.tools.seal import seal
from tests import samples
from tests.remote.stores import Store, nginx

SIZE = 3 << 20
KEY = seal_key(b"a secret that is long enough")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    (tmp_path / "raw").write_bytes(samples.image(SIZE, seed=5))
    pack(str(tmp_path / "raw"), str(path / "snap.hxz"), block_size=16 << 10)
    return path


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with nginx(folder) as store:
        yield store


def read(store: Store, policy: SealPolicy) -> tuple[bytes, str | None]:
    context = new_context(1 << 20, seals=policy)
    try:
        with open_snapshot(store.url("snap.hxz"), context) as snapshot:
            assert snapshot.disk is not None
            facts = snapshot.storage.seal
            parts = [b"".join(snapshot.disk.read(at, 1 << 20)) for at in range(0, SIZE, 1 << 20)]
            return b"".join(parts), facts.kind if facts is not None else None
    finally:
        context.remote.close()


def test_what_is_read_of_a_server_is_checked_against_its_seal(store: Store, folder: Path, tmp_path: Path) -> None:
    raw = (tmp_path / "raw").read_bytes()
    with pytest.raises(SealMissing, match=r"has no seal \(snap\.hxz\.sum\)"):
        read(store, SealPolicy(required=True))
    seal(str(folder / "snap.hxz"), None)
    assert read(store, SealPolicy()) == (raw, None)
    assert read(store, SealPolicy(required=True)) == (raw, "plain")
    with pytest.raises(SealKeyNeeded):
        read(store, SealPolicy(KEY, required=True))
    seal(str(folder / "snap.hxz"), KEY)
    assert read(store, SealPolicy(KEY)) == (raw, "keyed")
    with pytest.raises(SealDamaged, match="made with another key"):
        read(store, SealPolicy(seal_key(b"some other secret of a length")))


def test_a_byte_that_was_changed_on_the_server_is_found(store: Store, folder: Path) -> None:
    seal(str(folder / "snap.hxz"), KEY)
    stored = bytearray((folder / "snap.hxz").read_bytes())
    stored[len(stored) // 2] ^= 1
    store.put("snap.hxz", bytes(stored))
    with pytest.raises(SealMismatch):
        read(store, SealPolicy(KEY, required=True))
