"""The control API on its unix socket: every route, wrong bodies, mounts and what they change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.corpus.http_cases import HOST, PROBE, request
from tests.corpus.talk import END, Case, Step

FOLDER: list[Path] = []
"""Where the run's files are; set before the conversations begin."""
GETS = [
    "/api/v1/daemon",
    "/api/v2/daemon",
    "/api/v1/daemon/events",
    "/api/v1/daemon/events?since=0",
    "/api/v1/daemon/events?since=x",
    "/api/v1/daemon/backend",
    "/api/v1/daemon/backend?mountpoint=/snap",
    "/api/v1/mount",
    "/api/v1/metrics",
    "/api/v1/metrics?id=/snap",
    "/api/v1/metrics?id=/nothing",
    "/api/v1/metrics/files",
    "/api/v1/metrics/files?id=/snap",
    "/api/v1/metrics/files?latest=true",
    "/api/v1/metrics/pattern",
    "/api/v1/metrics/pattern?top=1",
    "/api/v1/metrics/backend",
    "/api/v1/metrics/blobcache",
    "/api/v1/metrics/inflight",
    "/api/v1/metrics/inflight?min_age_ms=x",
    "/api/v1/config",
    "/api/v1/config?id=/nothing",
    "/api/v2/blobs",
    "/api/v2/blobs?domain_id=d",
    "/healthz",
    "/readyz",
    "/nothing",
    "/",
    "/api",
    "/api/v3/daemon",
    "/disk",
]
WRONG = [
    "POST|/api/v1/daemon",
    "PUT|/api/v1/daemon",
    "DELETE|/api/v1/daemon",
    "TRACE|/api/v1/daemon",
    "OPTIONS|/api/v1/daemon",
    "HEAD|/api/v1/daemon",
    "PUT|/api/v1/daemon/start",
    "PUT|/api/v1/daemon/fuse/sendfd",
    "PUT|/api/v1/daemon/fuse/takeover",
    "DELETE|/api/v1/mount",
    "DELETE|/api/v1/mount?mountpoint=/nothing",
    "DELETE|/api/v2/blobs",
    "DELETE|/api/v2/blobs?domain_id=d",
    "DELETE|/api/v2/blobs?blob_id=b",
    "POST|/api/v1/mount?mountpoint=/x",
    "PUT|/nothing",
    "BREW|/api/v1/mount",
    "PUT|/api/v1/config",
    "POST|/healthz",
    "DELETE|/api/v1/mount?mountpoint=/snap&drain_timeout=x",
]
BODIES = [
    b"{}",
    b"junk",
    b"[]",
    b'{"source": 1, "config": ""}',
    b'{"source": "", "config": ""}',
    b'{"source": "/nothing", "config": ""}',
    b'{"source": "/nothing", "config": "", "fs_type": "tape"}',
    b'{"source": "/etc/hostname", "config": ""}',
    b'{"source": "/nothing", "config": "{x"}',
    b'{"source": "/nothing", "config": "", "prefetch_files": 1}',
    b"\xff",
    b"{" * 200,
    b'{"source": "/nothing", "config": "", "a": ' + b"1" * 5000 + b"}",
]
SETTINGS = [b'{"log_level": "info"}', b'{"log_level": "loud"}', b"{}", b'{"log_level": 1}']
CONFIGS = [
    b'{"registry_auth": "secret"}',
    b'{"proxy_url": "http://user:pass@host/"}',
    b'{"unknown": "x"}',
    b'{"proxy_url": 1}',
    b"x",
]


def sent(method: str, target: str, body: bytes) -> bytes:
    """A request with a body."""
    return request(method, target, HOST, f"Content-Length: {len(body)}") + body


def mount(method: str, mountpoint: str, name: str, config: str = "") -> Callable[[], bytes]:
    """Makes a request to mount a snapshot of the run's folder."""

    def make() -> bytes:
        source = FOLDER[0] / "snapshots" / f"{name}.hxz"
        return sent(
            method,
            f"/api/v1/mount?mountpoint={mountpoint}",
            json.dumps({"source": str(source), "config": config}).encode(),
        )

    return make


def cases() -> Iterator[Case]:
    """Every conversation, in an order that later ones depend on."""

    def case(name: str, *data: bytes | Callable[[], bytes]) -> Case:
        return Case(f"control {name}", "control.unix", (*(Step(one) for one in data), Step(PROBE), Step(b"", END)))

    for target in GETS:
        yield case(f"GET {target}", request("GET", target, HOST))
    for wrong in WRONG:
        method, target = wrong.split("|")
        yield case(f"{method} {target}", request(method, target, HOST))
        yield case(f"{method} {target} with a body", sent(method, target, b"{}"))
    for number, body in enumerate(BODIES):
        for method in ("POST", "PUT"):
            yield case(f"mount {method} {number}", sent(method, "/api/v1/mount?mountpoint=/x", body))
    for number, body in enumerate(SETTINGS):
        yield case(f"settings {number}", sent("PUT", "/api/v1/daemon", body))
    for number, body in enumerate(CONFIGS):
        yield case(f"config {number}", sent("PUT", "/api/v1/config", body), request("GET", "/api/v1/config", HOST))
    yield case("no mountpoint", sent("POST", "/api/v1/mount", b"{}"))
    state = request("GET", "/api/v1/daemon", HOST)
    for name, data in {
        "mount": mount("POST", "/more", "big"),
        "mount again": mount("POST", "/more", "big"),
        "mount another there": mount("POST", "/more", "archive"),
        "mount damaged": mount("POST", "/damaged", "damaged"),
        "mount thin": mount("POST", "/thin", "thin"),
        "mount nothing": mount("POST", "/n", "nothing"),
        "remount": mount("PUT", "/more", "archive"),
        "remount strictly": mount("PUT", "/more&strict=true", "pages"),
        "remount nothing": mount("PUT", "/none", "big"),
        "odd mountpoint": mount("POST", "/a%2Fb", "big"),
        "empty mountpoint": mount("POST", "", "big"),
        "options": mount("POST", "/opt", "big", '{"hexz": {"x": 1}}'),
        "options wrong": mount("POST", "/opt2", "big", '{"hexz": 1}'),
        "name": mount("POST", "/opt3", "big", '{"hexz": {"name": "called"}}'),
    }.items():
        yield case(name, data, state)
    for number, target in enumerate(
        ("/snapshots", "/snapshots/more/info", "/snapshots/thin/extents", "/snapshots/called/info", "/more.hxz")
    ):
        yield Case(
            f"control http after mounts {number}",
            "control.http",
            (
                Step(request("GET", target, HOST)),
                Step(request("GET", "/snapshots/more/disk", HOST, "Range: bytes=0-9")),
            ),
        )
    for number, mountpoint in enumerate(("/more", "/more", "/thin", "/snap", "/opt", "/nothing")):
        gone = request("DELETE", f"/api/v1/mount?mountpoint={mountpoint}&drain_timeout=5", HOST)
        yield case(f"umount {number} {mountpoint}", gone, state)
    yield Case(
        "control http after umounts",
        "control.http",
        tuple(
            Step(request("GET", target, HOST)) for target in ("/snapshots", "/snapshots/more/disk", "/disk", "/readyz")
        ),
    )
    yield case("events at the end", request("GET", "/api/v1/daemon/events", HOST))
    yield Case("control metrics", "control.unix", (Step(request("GET", "/metrics", HOST)),), figures=True)
    yield case("start", sent("PUT", "/api/v1/daemon/start", b""))
    # The status alone: how far the end has come when the answer is written is not always the same.
    yield Case("control exit", "control.unix", (Step(request("PUT", "/api/v1/daemon/exit", HOST), "take 12"),))
