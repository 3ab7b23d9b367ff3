"""The reader against plain bytes: any image, block size, codec, chain and range; any damage; many threads."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.errors import BlockError, HexzError, StorageError
from hexz.format.codec import Codec
from hexz.snapshot import Snapshot, Stream, new_context, open_snapshot
from hexz.snapshot.stored import StoredFile
from hexz.tools.pack import pack
from tests import samples

STRESS_S = 8.0


def disk_of(snapshot: Snapshot) -> Stream:
    assert snapshot.disk is not None
    return snapshot.disk


def opened(path: Path, cache: int = 4 << 20, workers: int = 0) -> Snapshot:
    return open_snapshot(str(path), new_context(cache, workers=workers))


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Runs of zeros, of one byte, and of noise."""
    parts = draw(
        st.lists(st.tuples(st.sampled_from("z1n"), st.integers(1, 9000), st.integers(0, 255)), min_size=0, max_size=12)
    )
    kinds = {
        "z": lambda size, seed: bytes(size),
        "1": lambda size, seed: bytes([seed]) * size,
        "n": lambda size, seed: random.Random(seed).randbytes(size),
    }
    return b"".join(kinds[kind](size, seed) for kind, size, seed in parts)


@given(
    st.lists(images(), min_size=1, max_size=3),
    st.sampled_from((512, 1000, 4096, 65536)),
    st.sampled_from(("lz4", "zstd")),
    st.data(),
)
def test_chains_read_like_plain_bytes(
    tmp_path_factory: pytest.TempPathFactory, chain: list[bytes], block_size: int, codec: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    parent = None
    for number, image in enumerate(chain):
        raw, packed = folder / f"{number}.raw", folder / f"{number}.hxz"
        raw.write_bytes(image)
        pack(str(raw), str(packed), compression=codec, block_size=block_size, parent=parent, workers=1)
        parent = str(packed)
    cache = data.draw(st.sampled_from((1000, 70_000, 4 << 20)), label="cache")
    with opened(folder / f"{len(chain) - 1}.hxz", cache) as snapshot:
        image = chain[-1]
        if not image:
            assert snapshot.disk is None or snapshot.disk.size == 0
            return
        stream = disk_of(snapshot)
        assert stream.size == len(image)
        for _ in range(8):
            offset = data.draw(st.integers(0, len(image) - 1))
            length = data.draw(st.integers(1, len(image) - offset))
            assert b"".join(stream.read(offset, length)) == image[offset : offset + length]
            cached = stream.read_cached(offset, length)
            assert cached is None or b"".join(cached) == image[offset : offset + length]
            assert snapshot.context.blocks.counts().held <= cache
            for extent in stream.flat_extents(offset, length):
                if extent.kind == "zero":
                    assert not any(image[extent.start : extent.start + extent.length])


@given(st.integers(0, 2**32), st.sampled_from(("lz4", "zstd")))
def test_a_flipped_bit_is_an_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, seed: int, codec: str) -> None:
    source = random.Random(seed)
    image = samples.image(40_000, seed=3)
    folder = tmp_path_factory.mktemp("damage")
    (folder / "raw").write_bytes(image)
    packed = folder / "s.hxz"
    pack(str(folder / "raw"), str(packed), compression=codec, block_size=4096, workers=1)
    damaged = bytearray(packed.read_bytes())
    # Not the header's block size: any value is allowed there, and it decides nothing.
    where = source.choice([*range(8), *range(12, 60), *range(4096, len(damaged))])
    damaged[where] ^= 1 << source.randrange(8)
    packed.write_bytes(damaged)
    try:
        with opened(packed) as snapshot:
            stream = disk_of(snapshot)
            # A bit of the size itself makes terabytes of it, which are refused block by block.
            for offset in range(0, min(stream.size, 4 * len(image)), 4096):
                try:
                    got = b"".join(stream.read(offset, min(4096, stream.size - offset)))
                except HexzError:
                    continue
                assert got == image[offset : offset + 4096]
    except (HexzError, AssertionError) as error:
        # A flag bit can take the stream away; what is left never has other bytes.
        assert isinstance(error, HexzError) or "snapshot.disk" in str(error) or "disk_of" in str(error.__traceback__)


def test_damage_of_one_block_leaves_the_others(tmp_path: Path) -> None:
    image = samples.image(300_000)
    (tmp_path / "raw").write_bytes(image)
    packed = tmp_path / "s.hxz"
    pack(str(tmp_path / "raw"), str(packed), block_size=65536)
    with opened(packed) as snapshot:
        page = disk_of(snapshot).pages.read(0)
        number = next(n for n in range(page.count) if page.stored[n])
        at, start, length = page.stored_offset(number), page.block_start(number), page.logical[number]
    content = bytearray(packed.read_bytes())
    content[at + 3] ^= 0x40
    packed.write_bytes(content)
    with opened(packed) as snapshot:
        stream = disk_of(snapshot)
        with pytest.raises(BlockError, match=f"disk block at {start} .stored at {at}.: CRC-32 mismatch"):
            stream.read(start, 10)
        rest = start + length
        assert b"".join(stream.read(rest, len(image) - rest)) == image[rest:]


def test_a_truncated_file_is_an_input_output_error(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(samples.image(500_000))
    packed = tmp_path / "s.hxz"
    pack(str(tmp_path / "raw"), str(packed))
    with opened(packed) as snapshot:
        with packed.open("r+b") as file:
            file.truncate(4200)
        with pytest.raises(StorageError, match="truncated"):
            disk_of(snapshot).read(0, 400_000)


def test_many_threads_get_right_bytes_from_a_bounded_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = samples.image(16 << 20, seed=5)
    (tmp_path / "raw").write_bytes(image)
    packed = tmp_path / "s.hxz"
    pack(str(tmp_path / "raw"), str(packed), block_size=16384)
    cache = 4 << 20
    context = new_context(cache, workers=2)
    decoded: deque[int] = deque()
    original = StoredFile.decode

    def counting(self: StoredFile, stored: bytes, logical: int, crc: int, number: int) -> bytes:
        decoded.append(number)
        return original(self, stored, logical, crc, number)

    monkeypatch.setattr(StoredFile, "decode", counting)
    with open_snapshot(str(packed), context) as snapshot:
        stream = disk_of(snapshot)
        wrong: list[object] = []
        start = threading.Barrier(64)
        deadline = time.monotonic() + STRESS_S

        def reader(seed: int) -> None:
            source = random.Random(seed)
            start.wait()
            while time.monotonic() < deadline and not wrong:
                offset = source.randrange(len(image))
                length = min(source.choice((1, 512, 4096, 70_000, 300_000)), len(image) - offset)
                try:
                    if b"".join(stream.read(offset, length)) != image[offset : offset + length]:
                        wrong.append((offset, length))
                except Exception as error:
                    wrong.append(error)
                if context.blocks.counts().held > cache:
                    wrong.append("over budget")

        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        context.workers.stop()
        counts = context.blocks.counts()
        # Every decompression put one block in, and every block that is out again was evicted: none was made twice.
        assert len(decoded) == counts.loads == counts.blocks + counts.evictions


def test_concurrent_misses_decompress_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(random.Random(1).randbytes(65536))
    packed = tmp_path / "s.hxz"
    pack(str(tmp_path / "raw"), str(packed), block_size=65536)
    calls: list[int] = []
    entered, go_on = threading.Event(), threading.Event()
    original = Codec.decode

    def slow(self: Codec, stored: bytes, logical: int) -> bytes:
        calls.append(1)
        entered.set()
        assert go_on.wait(20)
        return original(self, stored, logical)

    monkeypatch.setattr(Codec, "decode", slow)
    with opened(packed) as snapshot:
        stream = disk_of(snapshot)
        results: list[bytes] = []
        threads = [threading.Thread(target=lambda: results.append(b"".join(stream.read(5, 10)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert entered.wait(20)
        while snapshot.context.blocks.counts().waits < 7:
            time.sleep(0.001)
        go_on.set()
        for thread in threads:
            thread.join()
        assert len(calls) == 1 and len(set(results)) == 1 and len(results) == 8
