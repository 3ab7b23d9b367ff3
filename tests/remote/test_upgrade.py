"""A daemon that reads from a server is replaced by another: clients notice nothing; the disk cache follows later."""

from __future__ import annotations

from pathlib import Path

from tests.control.clients import Supervisor
from tests.control.test_upgrade import Chain
from tests.peers import fetch
from tests.remote.stores import nginx


def test_the_successor_reads_from_the_same_server(tmp_path: Path, folder: Path, disk_image: Path) -> None:
    supervisor = Supervisor(tmp_path / "supervisor.sock")
    own = ("--http-port", 0, "--disk-cache", tmp_path / "cache")
    try:
        with nginx(folder) as store:
            chain = Chain(tmp_path, supervisor, store.url("snap.hxz"), own=own)
            url = chain.urls["http"].rstrip("/")
            image = disk_image.read_bytes()
            for without in (True, False):  # the first one's folder is free when the second one is replaced
                assert fetch(f"{url}/disk") == (200, image)
                chain.replace()
                assert ("no disk cache until the next start" in chain.now.stderr()) is without
            assert fetch(f"{url}/disk") == (200, image)
            chain.now.stop()
    finally:
        supervisor.close()
