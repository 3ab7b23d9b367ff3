"""No memory for a block says nothing against it: the cache gives some back, or the client is told to come later."""

from __future__ import annotations

import http.client
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import zstandard

from hexz.cache import BlockCache
from hexz.cache import blocks as cache_blocks
from hexz.format.codec import Codec
from hexz.format.header import Compression
from hexz.protocol.nbd import constants as c
from hexz.snapshot import new_context, open_snapshot
from hexz.snapshot.pages import PageTable
from hexz.tools.pack import pack
from tests import samples
from tests.images.house import House
from tests.nbd import wire
from tests.peers import ROOT, Server
from tests.waiting import until

BLOCK = 16 << 20
SCRIPT = f"""
import resource, sys
from hexz.errors import Overloaded
from hexz.snapshot import new_context, open_snapshot

def limit(spare):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + spare, resource.RLIM_INFINITY))

context = new_context(256 << 20, workers=0)  # nothing is loaded ahead, which would count too
with open_snapshot(sys.argv[1], context) as snapshot:
    disk = snapshot.disk
    limit(2 << 20)
    try:
        disk.read(0, 4)
    except Overloaded as error:
        print(error.http_status, error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for number in range(6):
        print(bytes(disk.read(number * {BLOCK}, 1)[0]).decode(), end="")
    held = context.blocks.counts().held
    limit(2 << 20)
    print(bytes(disk.read(6 * {BLOCK}, 4)[0]), context.blocks.counts().held <= held)
"""


def packed(folder: Path, compression: str = "lz4") -> Path:
    """Eight blocks, of one letter each."""
    raw = folder / "raw"
    raw.write_bytes(b"".join(bytes([65 + number]) * BLOCK for number in range(8)))
    pack(str(raw), str(folder / "a.hxz"), compression=compression, block_size=BLOCK)
    raw.unlink()
    return folder / "a.hxz"


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_block_for_which_there_is_no_memory_is_not_damaged(tmp_path: Path, compression: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(packed(tmp_path, compression))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout == "503 out of memory: ask again later\nABCDEFb'GGGG' True\n"


SPARE = 8 << 20
"""What a daemon may take beyond what it has: enough for threads, too little for a block."""


@contextmanager
def short_of_memory(server: Server) -> Iterator[None]:
    """The daemon may have hardly more address space than it has now."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0])
    before = resource.prlimit(server.process.pid, resource.RLIMIT_AS, (pages * 4096 + SPARE, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, before)


def asked(url: str, path: str, block: int) -> http.client.HTTPResponse:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    connection.request("GET", path, headers={"Range": f"bytes={block * BLOCK}-{block * BLOCK + 3}"})
    return connection.getresponse()


def test_clients_of_every_protocol_are_told_to_come_later_and_then_get_their_bytes(tmp_path: Path) -> None:
    house = House(tmp_path, "--nbd-port", 0, "--s3-port", 0, packed(tmp_path))
    with house.server as server:
        house.register("image", backend="hexz", snapshot="a")
        places = [(server.http, "/disk"), (server.http, "/images/image"), (server.urls["s3"], "/a/disk")]
        with wire.Client(("127.0.0.1", server.nbd_port)) as client:
            client.go()
            with short_of_memory(server):
                assert client.request(c.CMD_READ, 0, 4).error == c.NBD_ENOMEM
                for url, path in places:
                    answer = asked(url, path, 0)
                    assert (answer.status, answer.headers["Retry-After"]) == (503, "1"), path
                    assert b"out of memory" in answer.read()
            assert client.read(0, 4) == b"AAAA"
            assert [asked(url, path, 1).read() for url, path in places] == [b"BBBB"] * len(places)
            # What the cache holds by now is given back where it is needed.
            assert [client.read(number * BLOCK, 4) for number in range(2, 5)] == [b"CCCC", b"DDDD", b"EEEE"]
            with short_of_memory(server):
                assert client.read(5 * BLOCK, 4) == b"FFFF"
                assert [asked(url, path, 6).read() for url, path in places] == [b"GGGG"] * len(places)
        assert "damaged" not in server.stderr()


def test_zstds_own_want_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def decompress(self, stored: bytes, max_output_size: int) -> bytes:
            raise zstandard.ZstdError("decompression error: Allocation error : not enough memory")

    codec = Codec(Compression.ZSTD)
    monkeypatch.setattr(codec, "_decompressor", Exhausted)
    with pytest.raises(MemoryError):
        codec.decode(zstandard.compress(b"12345"), 5)


def small(folder: Path) -> tuple[Path, bytes]:
    image = samples.image(1 << 20, seed=12)
    (folder / "raw").write_bytes(image)
    pack(str(folder / "raw"), str(folder / "small.hxz"), block_size=64 << 10)
    return folder / "small.hxz", image


@contextmanager
def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int = 0) -> Iterator[None]:
    """For one call, the one behind `after` others, there is no memory."""
    whole, calls = getattr(owner, name), 0

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise MemoryError
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield
        assert calls > after


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (PageTable, "read", 0),
        (cache_blocks, "Loading", 0),
        (cache_blocks, "Loading", 2),
        (cache_blocks, "Block", 0),
        (cache_blocks, "Block", 2),
        (BlockCache, "_keep", 0),
        (BlockCache, "_keep", 2),
    ],
)
def test_wherever_memory_is_missing_the_read_is_tried_again_and_nobody_waits_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int
) -> None:
    path, image = small(tmp_path)
    with open_snapshot(str(path), new_context(1 << 20, workers=0)) as snapshot:
        with fails_once(monkeypatch, owner, name, after):
            assert b"".join(snapshot.disk.read(0, 256 << 10)) == image[: 256 << 10]
        read: list[bytes] = []
        other = threading.Thread(target=lambda: read.append(b"".join(snapshot.disk.read(0, len(image)))), daemon=True)
        other.start()
        other.join(60)
        assert read == [image]


def test_after_a_shortage_nothing_is_loaded_ahead_for_a_moment(tmp_path: Path) -> None:
    """What is given back is for who waits."""
    path, _ = small(tmp_path)
    context = new_context(1 << 20, workers=1)
    with open_snapshot(str(path), context) as snapshot:

        def loaded_ahead() -> int:
            snapshot.disk.prefetch(0, 256 << 10)
            context.workers.stop()  # when they are done
            return context.blocks.counts().blocks

        context.blocks.shrink()
        assert loaded_ahead() == 0
        assert context.blocks.is_short_of_memory()
        until(lambda: not context.blocks.is_short_of_memory())
        assert loaded_ahead() == 4
