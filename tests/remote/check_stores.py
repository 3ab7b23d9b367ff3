"""The stores that take too long for the usual suite: ``make check-stores``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.remote.clusters import STORAGE, Cluster, ceph, swift
from tests.remote.stores import BUCKET, Store, azurite
from tests.remote.test_stores import another, ask

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
