"""The stores that take too long for the usual suite: ``make check-stores``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hexz.errors import OriginChanged
from hexz.storage.remote import RemoteSettings
from hexz.storage.remote.settings import DEADLINE_S
from tests.remote.clusters import STORAGE, Cluster, ceph, swift
from tests.remote.reading import opened, read
from tests.remote.stores import BUCKET, Store, azurite
from tests.remote.test_stores import another, ask
from tests.remote.test_stores_read import settings_of
from tests.remote.test_vectors import ALL, Address, compare_served, keys, reach, samples

__all__ = ["keys", "reach", "samples"]  # fixtures

pytestmark = pytest.mark.timeout(600)
CLUSTERS: dict[str, Callable[[Path], AbstractContextManager[Cluster]]] = {"swift": swift, "ceph": ceph}
PART_BYTES = 64 << 10


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request: pytest.FixtureRequest, still_folder: Path) -> Iterator[Cluster]:
    with CLUSTERS[request.param](still_folder) as running:
        yield running


def parts(store: Store, data: bytes, name: str = "snap.hxz") -> Iterator[bool]:
    """Whether each part, read alone, is right."""
    client = store.boto3()
    for start in range(0, len(data), PART_BYTES):
        span = f"bytes={start}-{start + PART_BYTES - 1}"
        yield client.get_object(Bucket=BUCKET, Key=name, Range=span)["Body"].read() == data[start : start + PART_BYTES]


@pytest.fixture(scope="module")
def image(disk_image: Path) -> bytes:
    return disk_image.read_bytes()


@pytest.fixture(scope="module")
def data(still_folder: Path) -> bytes:
    return (still_folder / "snap.hxz").read_bytes()


def test_a_cluster_gives_the_bytes_and_knows_what_was_replaced(cluster: Cluster, data: bytes) -> None:
    store, client = cluster.store, cluster.store.boto3()
    assert all(parts(store, data))
    store.put("other.hxz", data)
    etag = ask(store.presigned("other.hxz"), {"Range": "bytes=-99"}).headers["ETag"]
    asked = {"Bucket": BUCKET, "Key": "other.hxz", "Range": "bytes=0-9", "IfMatch": etag}
    assert client.get_object(**asked)["Body"].read() == data[:10]
    store.put("other.hxz", another(data))
    with pytest.raises(client.exceptions.ClientError, match=r"PreconditionFailed|412"):
        client.get_object(**asked)


@pytest.mark.parametrize("name", STORAGE)
def test_a_cluster_does_without_one_that_was_killed(cluster: Cluster, name: str, data: bytes) -> None:
    reading = parts(cluster.store, data)
    assert next(reading)
    cluster.kill(name)
    assert not cluster.alive(name)
    assert all(reading)
    cluster.start(name)
    assert cluster.alive(name) and all(parts(cluster.store, data))


def test_a_cluster_gets_over_one_that_is_frozen(cluster: Cluster, data: bytes) -> None:
    reading = parts(cluster.store, data)
    assert next(reading)
    cluster.freeze("object1")
    try:
        assert all(reading)
    finally:
        cluster.thaw("object1")
    assert all(parts(cluster.store, data)) and cluster.memory().keys() >= set(STORAGE)


def patient(store: Store, folder: Path) -> RemoteSettings:
    return settings_of(store, folder)._replace(deadline_s=DEADLINE_S, speculation=0.0)


def test_a_snapshot_is_read_while_servers_die_and_freeze(cluster: Cluster, image: bytes, tmp_path: Path) -> None:
    store = cluster.store
    with opened(store.s3_uri("snap.hxz"), patient(store, tmp_path)) as snapshot:
        third = len(image) // 3 // PART_BYTES * PART_BYTES
        for begin, harm, heal in (
            (0, None, None),
            (third, cluster.kill, cluster.start),
            (2 * third, cluster.freeze, cluster.thaw),
        ):
            if harm is not None:
                harm("object1")
            try:
                for start in range(begin, begin + third, PART_BYTES):
                    assert read(snapshot, start, PART_BYTES) == image[start : start + PART_BYTES]
            finally:
                if heal is not None:
                    heal("object1")


def test_a_snapshot_that_is_replaced_in_a_cluster_is_an_error_for_good(
    cluster: Cluster, data: bytes, image: bytes, tmp_path: Path
) -> None:
    store = cluster.store
    store.put("later.hxz", data)
    with opened(store.s3_uri("later.hxz"), patient(store, tmp_path)) as snapshot:
        assert read(snapshot, 0, PART_BYTES) == image[:PART_BYTES]
        store.put("later.hxz", another(data))
        for _ in range(2):
            with pytest.raises(OriginChanged):
                read(snapshot, len(image) // 2, 4 << 20)
        assert snapshot.changed


def test_every_sample_is_served_over_http_and_nbd(
    reach: tuple[Address, RemoteSettings], keys: Path, tmp_path: Path
) -> None:
    assert compare_served(ALL, reach, keys, tmp_path) >= len(ALL)


def test_a_snapshot_is_read_from_azurite(folder: Path, image: bytes) -> None:
    with azurite(folder) as store, opened(store.url("snap.hxz")) as snapshot:
        for start in range(0, len(image), 1 << 20):
            assert read(snapshot, start, 1 << 20) == image[start : start + (1 << 20)]


def test_azurite_knows_no_suffixes(folder: Path) -> None:
    data = (folder / "snap.hxz").read_bytes()
    with azurite(folder) as store:
        answer = ask(store.url("snap.hxz"), {"Range": "bytes=1000-70000"})
        assert (answer.status, answer.body) == (206, data[1000:70_001])
        assert answer.headers["Content-Range"] == f"bytes 1000-70000/{len(data)}"
        assert ask(store.url("snap.hxz"), {"Range": "bytes=-99"}).status == 500
        store.put("snap.hxz", another(data))
        refused = ask(store.url("snap.hxz"), {"Range": "bytes=0-9", "If-Match": answer.headers["ETag"]})
        assert refused.status == 412
