"""A snapshot read from real stores and through real caches, before and after it is replaced: never mixed bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import urllib.request
from pathlib import Path

import pytest

from hexz.catalog import Catalog, Source
from hexz.errors import (
    NotASnapshot,
    OriginChanged,
    OriginError,
    OriginUnavailable,
    SnapshotNotFound,
    SnapshotUnreadable,
)
from hexz.snapshot import new_context
from hexz.storage.remote import RemoteSettings, StoreNames
from hexz.tools.pack import pack
from tests import samples
from tests.peers import fetch, write_secret
from tests.remote.reading import PIECE, opened, read
from tests.remote.stores import SPEAK_S3, STORES, Store, nginx
from tests.waiting import until

MIXES = {"nginx slice", "varnish"}
"""Caches that go on with the old one for a while, or have some of each."""
STEP = 400_000


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, bytes]]:
    """Two snapshots of the same size of image, as (image, file)."""
    folder = tmp_path_factory.mktemp("versions")
    made = []
    for seed in (11, 12):
        image = samples.image(6 << 20, seed)
        (folder / "raw").write_bytes(image)
        pack(str(folder / "raw"), str(folder / "packed"))
        made.append((image, (folder / "packed").read_bytes()))
    return made


@pytest.fixture
def replaceable(tmp_path: Path, versions: list[tuple[bytes, bytes]]) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "snap.hxz").write_bytes(versions[0][1])
    return folder


def settings_of(store: Store, folder: Path) -> RemoteSettings:
    keys = f"[default]\naws_access_key_id = {store.access_key}\naws_secret_access_key = {store.secret}\n"
    path = write_secret(folder / "keys", keys)
    return RemoteSettings(StoreNames(store.endpoint, store.region), str(path), deadline_s=4)


def replace(store: Store, packed: bytes) -> None:
    """Put another one there, so that the store gives it from now on."""
    url = store.url("snap.hxz")
    before = etag(url) if store.public else None
    store.put("snap.hxz", packed)
    if store.kind == "hexz-serve":
        os.kill(store.pid, signal.SIGHUP)
        until(lambda: etag(url) != before)


def etag(url: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as answer:
        return str(answer.headers["ETag"])


def address_of(store: Store) -> str:
    return store.url("snap.hxz") if store.public else store.s3_uri("snap.hxz")


@pytest.mark.parametrize("kind", STORES)
def test_a_store_is_read_and_what_is_replaced_is_never_mixed(
    kind: str, replaceable: Path, tmp_path: Path, versions: list[tuple[bytes, bytes]]
) -> None:
    (old, _), (new, packed) = versions
    with STORES[kind](replaceable) as store:
        catalog = Catalog(new_context(4 << 20, workers=1, remote=settings_of(store, tmp_path)))
        sources = [Source("snap", address_of(store))]
        try:
            catalog.open_all(sources)
            with catalog.lease("snap") as snapshot:
                for offset in range(0, len(old), STEP):
                    assert read(snapshot, offset, PIECE) == old[offset : offset + PIECE]
            replace(store, packed)
            told = 0
            with catalog.lease("snap") as snapshot:
                for offset in range(STEP // 2, len(old), STEP // 2):
                    try:
                        assert read(snapshot, offset, PIECE) == old[offset : offset + PIECE]
                    except OriginChanged:
                        told += 1
                    catalog.context.blocks.clear()
                if told:
                    assert catalog.changed == 1
                    with pytest.raises(OriginChanged):
                        read(snapshot, 0, len(old))
                assert told or kind in MIXES
            # Reload until the caches have come to terms with it; what is opened is one or the other.
            done = catalog.sync(lambda: sources)
            if kind not in MIXES:
                assert done.replaced == ["snap"] and not done.failed and not catalog.changed
            with catalog.lease("snap") as snapshot:
                got = {}
                for offset in range(0, len(new), STEP):
                    with contextlib.suppress(OriginError):
                        got[offset] = read(snapshot, offset, PIECE)
                fits = [all(image[at : at + PIECE] == data for at, data in got.items()) for image in (old, new)]
                assert fits[1] or (fits[0] and kind in MIXES)
                assert len(got) == len(range(0, len(new), STEP)) or kind in MIXES
        finally:
            catalog.close()
            catalog.context.lanes.stop()
            catalog.context.remote.close()


@pytest.mark.parametrize("kind", SPEAK_S3)
def test_a_store_that_speaks_s3(
    kind: str, replaceable: Path, tmp_path: Path, versions: list[tuple[bytes, bytes]]
) -> None:
    image = versions[0][0]
    with STORES[kind](replaceable) as store:
        settings = settings_of(store, tmp_path)
        for address in (store.s3_uri("snap.hxz"), store.presigned("snap.hxz")):
            with opened(address, settings) as snapshot:
                assert read(snapshot, 0, len(image)) == image
                assert "Signature" not in snapshot.path
        with pytest.raises(SnapshotNotFound, match="does not have it"), opened(store.s3_uri("gone.hxz"), settings):
            pass
        if kind != "moto":  # which checks none
            wrong = write_secret(tmp_path / "wrong", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n")
            refused = settings._replace(credentials_file=str(wrong))
            with pytest.raises(SnapshotUnreadable, match="does not give it"), opened(store.s3_uri("snap.hxz"), refused):
                pass


def test_a_cache_that_gives_the_whole_is_no_store(still_folder: Path, tmp_path: Path) -> None:
    """Once HAProxy has the whole it gives nothing else."""
    shutil.copy(still_folder / "snap.hxz", tmp_path / "snap.hxz")
    with STORES["haproxy"](tmp_path) as store:
        with opened(store.url("snap.hxz")) as snapshot:
            fetch_whole(store)
            with pytest.raises(OriginError, match="cannot be read from"):
                read(snapshot, 1 << 20, PIECE)
        with pytest.raises(OriginUnavailable, match="cannot be read from"), opened(store.url("snap.hxz")):
            pass


def fetch_whole(store: Store) -> None:
    assert fetch(store.url("snap.hxz"))[0] == 200


def test_a_store_without_etags(still_folder: Path, disk_image: Path) -> None:
    image = disk_image.read_bytes()
    with nginx(still_folder, "etag off;") as store:
        with pytest.raises(SnapshotUnreadable, match="--remote-trust-times"), opened(store.url("snap.hxz")):
            pass
        with opened(store.url("snap.hxz"), RemoteSettings(trust_times=True)) as snapshot:
            assert read(snapshot, 0, len(image)) == image


def test_an_empty_object(tmp_path: Path) -> None:
    (tmp_path / "snap.hxz").write_bytes(b"")
    with STORES["nginx"](tmp_path) as store, pytest.raises(NotASnapshot, match="empty"), opened(store.url("snap.hxz")):
        pass
