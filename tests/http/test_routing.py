"""Who answers what: the images application at and below ``/images``, the catalog's everywhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexz.catalog import Catalog
from hexz.images.registry import Registry
from hexz.servers.http.routing import Router
from hexz.servers.http.snapshots import CatalogApplication
from hexz.servers.images.application import PREFIX, ImagesApplication
from hexz.snapshot import new_context
from tests.http.serving import serving

JSON, TEXT = "application/json", "text/plain; charset=utf-8"
PATHS = {
    "/images": (404, JSON),
    "/images/": (404, JSON),
    "/images?limit=1": (404, JSON),
    "/images/nothing": (404, JSON),
    "/images/nothing/extents": (404, JSON),
    "/images/snap/checksum/algorithms": (200, JSON),
    "/images/snap": (200, "application/octet-stream"),
    "/imagesx": (404, TEXT),
    "/image": (404, TEXT),
    "/Images/snap": (404, TEXT),
    "//images/snap": (404, TEXT),
    "/snapshots/images/disk": (404, TEXT),
    "/disk": (200, "application/octet-stream"),
    "/healthz": (200, JSON),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_first_segment_says_who_answers(path: str, snapshot_file: Path) -> None:
    catalog = Catalog(new_context(64 << 20))
    catalog.add("snap", str(snapshot_file))
    router = Router({PREFIX: ImagesApplication(Registry(catalog))}, CatalogApplication(catalog))
    with serving({}, application=router) as server:
        reply = server.ask("GET", path)
    catalog.close()
    status, kind = PATHS[path]
    assert (reply.status, reply.headers["content-type"]) == (status, kind)
    assert (b'"error"' in reply.body) is (status == 404 and kind == JSON)
