"""Fetching ahead of all readers: recorded by a daemon, fetched by hand, at a daemon's start, and whole."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hexz.catalog.warming import fillings
from hexz.errors import ConfigError, UsageError
from hexz.format.prefetch import PrefetchList, parse_prefetch
from hexz.snapshot import new_context, open_snapshot
from hexz.snapshot.firstreads import FirstReads
from hexz.storage.remote import RemoteSettings
from hexz.storage.sealed import NO_POLICY
from hexz.tools.pack import pack
from hexz.tools.prefetch import read_lists
from hexz.tools.warm import warm
from hexz.units import format_size
from tests import samples
from tests.peers import ROOT, Server, fetch, run
from tests.remote.proxy import Proxy
from tests.remote.stores import nginx
from tests.waiting import until

SIZE = 12 << 20
WANTED = [(9 << 20, 8192), (1 << 20, 4096), (5 << 20, 70000), (6 << 20, 12345)]
MIB = 1 << 20


@pytest.fixture
def image() -> bytes:
    return samples.image(SIZE, seed=31)


@pytest.fixture
def origin(tmp_path: Path, image: bytes) -> Iterator[Proxy]:
    """A web server with a snapshot, and the proxy before it, which counts."""
    folder = tmp_path / "www"
    folder.mkdir()
    (tmp_path / "raw").write_bytes(image)
    pack(str(tmp_path / "raw"), str(folder / "snap.hxz"), block_size=16 << 10)
    with nginx(folder) as store, Proxy(store.base) as proxy:
        yield proxy


def read(server: Server, image: bytes) -> None:
    for offset, length in WANTED:
        answer = fetch(f"{server.http}/disk", headers={"Range": f"bytes={offset}-{offset + length - 1}"})
        assert answer == (206, image[offset : offset + length])


def figure(server: Server, name: str) -> float:
    families = text_string_to_metric_families(fetch(f"{server.http}/metrics")[1].decode())
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def recorded(origin: Proxy, image: bytes, out: Path) -> int:
    """Bytes of what a daemon read, which are in the list `out` now."""
    with Server("--http-port", 0, origin.url("snap.hxz")) as server:
        read(server, image)
        assert (
            "spans"
            in run(sys.executable, "-m", "hexz", "record", f"{server.http}/snapshots/snap", out, cwd=ROOT).stdout
        )
    (wanted,) = parse_prefetch(out.read_text())
    return sum(end - start for start, end in wanted.spans)


def test_what_was_read_once_is_fetched_ahead_the_next_time(origin: Proxy, image: bytes, tmp_path: Path) -> None:
    listed = recorded(origin, image, tmp_path / "list")
    assert 10_000 < listed < MIB
    words = ["warm", origin.url("snap.hxz"), tmp_path / "cache", "--prefetch", tmp_path / "list"]
    done = run(sys.executable, "-m", "hexz", *words, cwd=ROOT)
    assert done.stdout == f"{origin.url('snap.hxz')}: {format_size(listed)} of {format_size(listed)}\n"
    origin.quiet()
    origin.forget()
    with Server("--http-port", 0, "--disk-cache", tmp_path / "cache", origin.url("snap.hxz")) as server:
        read(server, image)
        assert figure(server, "hexz_remote_fetched_bytes_total") == 0
        origin.quiet()
        assert origin.counts.requests == 1  # which version it is
        origin.down()
        read(server, image)


def test_the_control_socket_gives_the_list_too(origin: Proxy, image: bytes, tmp_path: Path) -> None:
    control = tmp_path / "control"
    with Server("--http-port", 0, "--control", control, origin.url("snap.hxz")) as server:
        read(server, image)
        words = ["curl", "-s", "--unix-socket", control, "http://localhost/snapshots/snap/prefetch"]
        assert run(*words).stdout == fetch(f"{server.http}/snapshots/snap/prefetch")[1].decode()


def test_a_local_file_has_no_list(snapshot_file: Path) -> None:
    with Server("--http-port", 0, snapshot_file) as server:
        assert fetch(f"{server.http}/snapshots/snap/prefetch")[0] == 404


def test_a_daemon_fetches_what_lists_name_when_it_starts(origin: Proxy, image: bytes, tmp_path: Path) -> None:
    listed = recorded(origin, image, tmp_path / "list")
    with Server("--http-port", 0, "--prefetch", tmp_path / "list", origin.url("snap.hxz")) as server:
        until(lambda: figure(server, "hexz_remote_listed_done_bytes") >= listed)
        origin.quiet()
        before = origin.forget().requests
        assert before < 20
        read(server, image)
        assert origin.counts.requests == 0
        facts = json.loads(fetch(f"{server.http}/info")[1])["remote"]
        assert facts["failures"] == 0 and 0 < facts["percent_held"] < 100


def test_whole_files_fill_the_disk_cache(origin: Proxy, image: bytes, tmp_path: Path) -> None:
    cache = ["--disk-cache", tmp_path / "cache"]
    with Server("--http-port", 0, "--fill", *cache, origin.url("snap.hxz")) as server:
        size = figure(server, "hexz_remote_size_bytes")
        until(lambda: figure(server, "hexz_remote_held_bytes") >= size - 4096)  # all but the header, which is in memory
        origin.quiet()
        assert origin.counts.fetched_bytes("/snap.hxz") < size * 1.01
        origin.down()
        assert fetch(f"{server.http}/disk") == (200, image)


def test_a_list_of_another_file_or_none_at_all_is_refused(origin: Proxy, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(f"hexz-prefetch 1\nfile 1000 {'0' * 32}\n1 2\n")
    size = 64 << 20
    with pytest.raises(UsageError, match="none of the lists is of this snapshot"):
        warm(origin.url("snap.hxz"), [str(wrong)], False, str(tmp_path / "cache"), size, 0, None, (), NO_POLICY)
    with pytest.raises(UsageError, match="only snapshots on servers"):
        warm(str(tmp_path / "www" / "snap.hxz"), [], True, str(tmp_path / "cache"), size, 0, None, (), NO_POLICY)
    wrong.write_text("nothing")
    with pytest.raises(ConfigError, match="line 1"):
        read_lists([str(wrong)])
    for words, said in (
        (["--fill", "http://127.0.0.1:1/snap.hxz"], "--disk-cache"),
        (["--disk-cache", "cache", "--disk-cache-size", "1M", "http://127.0.0.1:1/x"], "at least 64M"),
    ):
        done = run(sys.executable, ROOT / "hexz_serve.py", *words, cwd=tmp_path, check=False)
        assert done.returncode == 2 and said in done.stderr


def test_no_faster_than_is_allowed(origin: Proxy) -> None:
    context = new_context(64 << 20, remote=RemoteSettings())
    with open_snapshot(origin.url("snap.hxz"), context) as snapshot:
        file = snapshot.file
        lists = [PrefetchList(file.storage.size, file.fingerprint, [(MIB, 2 * MIB)])]
        (work,) = fillings(snapshot, lists, False, rate=4 * MIB)
        began = time.monotonic()
        work.run()
        assert time.monotonic() - began >= 0.24
        assert (work.done, work.failed) == (MIB, 0)
    context.remote.close()


def test_what_cannot_be_had_is_counted_and_holds_nothing_up(origin: Proxy) -> None:
    context = new_context(64 << 20, remote=RemoteSettings(deadline_s=0.3))
    with open_snapshot(origin.url("snap.hxz"), context) as snapshot:
        lists = [PrefetchList(snapshot.storage.size, snapshot.file.fingerprint, [(0, 4 * MIB)])]
        (work,) = fillings(snapshot, lists, False, 0)
        origin.down()
        work.run()
        assert work.done == 4 * MIB and work.failed
    context.remote.close()


def test_what_was_read_first_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hexz.snapshot.firstreads.MAX_RECORDED", 8)
    first = FirstReads()
    for _ in range(100):
        first.note(10, 5)
        first.note(0, 2)
    assert first.spans() == [(10, 15), (0, 2)]
    for start in range(100):
        first.note(start, 1)
    assert first.spans()[:3] == [(10, 15), (0, 2), (0, 1)] and len(first.spans()) <= 8
