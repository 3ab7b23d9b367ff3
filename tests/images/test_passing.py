"""Long reads of large images go past the cache: the same bytes, and what others read stays in it."""

from __future__ import annotations

import contextlib
import hashlib
import random
from pathlib import Path

import pytest

from hexz.catalog import Catalog
from hexz.errors import BlockError
from hexz.images.hexz import LONG, PLACES, HexzBackend, HexzSession
from hexz.snapshot import new_context, open_snapshot
from hexz.snapshot.uncached import PIECE, read_uncached
from hexz.tools.pack import pack
from tests import samples, vectors
from tests.images.house import House

SIZE = (3 << 20) + 777


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw image; its snapshots are beside it."""
    folder = tmp_path_factory.mktemp("passing")
    raw, newer = folder / "raw", folder / "newer"
    data = bytearray(samples.image(SIZE, seed=80))
    raw.write_bytes(data)
    for size in (512, 5000, 65536, 1 << 20):
        pack(str(raw), str(folder / f"{size}.hxz"), block_size=size, compression="zstd" if size == 5000 else "lz4")
    data[70_000:900_000] = samples.image(830_000, seed=81)
    newer.write_bytes(data + b"a tail")
    pack(str(newer), str(folder / "thin.hxz"), parent=str(folder / "65536.hxz"))
    return raw


@pytest.mark.parametrize("name", ["512", "5000", "65536", "1048576", "thin"])
def test_pieces_are_the_stream(image: Path, name: str) -> None:
    content = image.with_name("newer" if name == "thin" else "raw").read_bytes()
    source = random.Random(5)
    with open_snapshot(str(image.with_name(f"{name}.hxz")), new_context(64 << 20)) as snapshot:
        stream = snapshot.disk
        assert stream is not None and stream.size == len(content)
        cache = snapshot.context.blocks
        for number in range(6):
            offset = source.randrange(len(content)) if number else 0
            length = source.randrange(1, len(content) - offset + 1) if number else len(content)
            pieces = [b"".join(views) for views in read_uncached(stream, offset, length)]
            assert b"".join(pieces) == content[offset : offset + length]
            assert max(map(len, pieces)) <= 2 * PIECE
            if number == 0 and name not in ("1048576", "thin"):
                assert cache.counts()[:2] == (0, 0)  # no block, no byte
            # Some blocks are cached now, and the next time they come from there.
            stream.read(offset, min(length, 100_000))


@pytest.mark.parametrize("name", sorted(vectors.load()))
def test_pieces_of_files_of_every_release_are_what_was_packed(name: str) -> None:
    vector = vectors.load()[name]
    password = vectors.password(vector)
    folder = str(vectors.path(name).parent)  # some are plain text over parents that are not
    context = new_context(8 << 20, password.encode() if password else None, (folder,))
    with open_snapshot(str(vectors.path(name)), context) as snapshot:
        for stream_name, facts in vectors.expected(vector).items():
            stream = snapshot.streams[stream_name]
            if facts["size"] > 64 << 20 or vector["expect"] == "unresolvable-parent-block":
                continue
            digest = hashlib.sha256()
            for views in read_uncached(stream, 0, stream.size):
                digest.update(b"".join(views))
            assert digest.hexdigest() == facts["sha256"]
    context.workers.stop()


def test_a_damaged_block_is_an_error_at_its_place(image: Path) -> None:
    damaged = image.with_name("damaged.hxz")
    data = bytearray(image.with_name("65536.hxz").read_bytes())
    data[700_000] ^= 1
    damaged.write_bytes(data)
    content = image.read_bytes()
    with open_snapshot(str(damaged), new_context(1 << 20)) as snapshot:
        assert snapshot.disk is not None
        got = b""
        with pytest.raises(BlockError) as raised:
            for views in read_uncached(snapshot.disk, 0, SIZE):
                got += b"".join(views)
    assert content.startswith(got) and raised.value.position - PIECE <= len(got) <= raised.value.position


def test_only_long_reads_of_large_images_pass_the_cache_and_not_too_many_at_once(image: Path) -> None:
    for budget, length, passing in ((64 << 20, SIZE, False), (4 << 20, SIZE, True), (4 << 20, LONG - 1, False)):
        catalog = Catalog(new_context(budget))
        catalog.add("image", str(image.with_name("65536.hxz")))
        with contextlib.closing(HexzBackend(lambda: catalog.stream("image")).open()) as session:  # noqa: B023
            assert isinstance(session, HexzSession)
            with session.passing(length) as answer:
                assert answer is passing
            with contextlib.ExitStack() as stack:
                while PLACES.acquire(blocking=False):
                    stack.callback(PLACES.release)
                assert not stack.enter_context(session.passing(length))


def test_a_server_with_a_small_cache_sends_the_whole_image(image: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    with House(tmp_path, "--cache-size", "1M", image.with_name("65536.hxz"), image.with_name("5000.hxz")) as house:
        for name in ("65536", "5000"):
            assert house.ask("GET", f"/{name}")[2] == content
            for start, end in ((0, 2 << 20), (12_345, SIZE - 1), (SIZE - 10, SIZE - 1)):
                place = {"Range": f"bytes={start}-{end}"}
                status, _, body = house.ask("GET", f"/{name}", None, place)
                assert (status, body) == (206, content[start : end + 1])
            many = house.ask("GET", f"/{name}", None, {"Range": f"bytes=5-{2 << 20},{2500000}-{SIZE - 1}"})
            assert many[0] == 206 and content[5 : (2 << 20) + 1] in many[2] and content[2500000:] in many[2]
