"""Writable images under a live upgrade go to the successor at once; neither readers nor writers see an error."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hexz.tools.pack import pack
from tests import samples
from tests.control.clients import Supervisor
from tests.control.test_upgrade import Chain
from tests.control.upgrades import replace_under_load
from tests.http.serving import Client, request

SIZE = 2 << 20
OLD = samples.image(SIZE, seed=78)


@pytest.mark.parametrize("stalled", [False, True])
def test_readers_and_a_writer_of_an_overlay_see_no_replacement(tmp_path: Path, stalled: bool) -> None:
    seen = replace_under_load(tmp_path, 3, 1, stalled, 20)
    assert not seen.errors and seen.read and seen.written
    # Who does not read holds up the old process for all of its 20 s, and nobody else.
    assert seen.longest_s < 15


def test_a_write_that_is_on_its_way_is_sent_again_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    images, files = tmp_path / "images", tmp_path / "files"
    images.mkdir(mode=0o755)
    files.mkdir(mode=0o755)
    (tmp_path / "old.raw").write_bytes(OLD)
    pack(str(tmp_path / "old.raw"), str(tmp_path / "old.hxz"))
    (images / "over").write_text(json.dumps({"backend": "overlay", "snapshot": "old", "file": str(files / "over")}))
    (images / "over").chmod(0o644)
    supervisor = Supervisor(tmp_path / "supervisor.sock")
    own = ("--images-dir", images, "--images-allow", files)
    chain = Chain(tmp_path, supervisor, "--http-port", 0, tmp_path / "old.hxz", own=own)
    host, _, port = chain.urls["http"].rstrip("/").rpartition("/")[2].rpartition(":")
    address = (host, int(port))

    def patch(first: int, data: bytes, sent: int | None = None) -> bytes:
        head = {"Range": f"bytes={first}-{first + len(data) - 1}", "Content-Length": str(len(data))}
        return request("PATCH", "/images/over", head) + data[:sent]

    with Client(address) as kept, Client(address) as slow:
        kept.send(patch(0, b"unflushed"))
        assert kept.receive().status == 200
        slow.send(patch(500_000, b"x" * 500_000, 300_000))
        time.sleep(0.3)  # until it has its turn
        chain.replace(wait=False)
        slow.send(b"x" * 200_000)
        answer = slow.receive()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        kept.send(patch(9, b" and after"))
        assert kept.receive().status == 200
        kept.send(request("GET", "/images/over"))
        content = kept.receive().body
        assert content[:400_000] == b"unflushed and after" + OLD[19:400_000]
        # Of what came of the other one whole blocks may be there.
        assert all(
            content[at : at + 65536] in (OLD[at : at + 65536], _written(at)) for at in range(6 * 65536, SIZE, 65536)
        )
        with Client(address) as again:
            again.send(patch(500_000, b"x" * 500_000))
            assert again.receive().status == 200
    chain.stop()
    supervisor.close()


def _written(at: int) -> bytes:
    changed = bytearray(OLD)
    changed[500_000:1_000_000] = b"x" * 500_000
    return bytes(changed[at : at + 65536])
