"""Everything that the encoding allows and a reader must survive: one test for each way to hurt it.

Whatever a file says, what comes back is its right bytes or a HexzError, soon, and in little memory.
"""

from __future__ import annotations

import json
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from hexz.errors import BlockError, CorruptSnapshot, HexzError, ParentMissing, SnapshotTooLarge, StorageError
from hexz.snapshot import OpenContext, Snapshot, Stream, new_context, open_snapshot, opening
from tests.bounds import little_memory
from tests.crafted import PARENT, Craft, Record

LAYOUTS = ["A20", "A52", "B52", "C52"]


def small() -> OpenContext:
    return new_context(1 << 20)


@contextmanager
def opened(craft: Craft, folder: Path, context: OpenContext | None = None) -> Iterator[Snapshot]:
    with little_memory(), open_snapshot(str(craft.write(folder / "t.hxz")), context or small()) as snapshot:
        yield snapshot


def disk(snapshot: Snapshot) -> Stream:
    return snapshot.streams["disk"]


def refused(craft: Craft, folder: Path, words: str = "") -> None:
    """The file is refused when it is opened, or when any of it is read."""
    began = time.monotonic()
    with pytest.raises(HexzError, match=words or None):
        with opened(craft, folder) as snapshot:
            for stream in snapshot.streams.values():
                stream.read(0, min(stream.size, 1 << 20))
    assert time.monotonic() - began < 5


# Stream size up to 2^64; entries of 4 GiB.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_of_4_gib_of_zeros(tmp_path: Path, layout: str) -> None:
    craft = Craft(layout)
    for _ in range(3):
        for _ in range(4096):
            craft.zero(0xFFFF_FFFF)
        craft.page()
    with opened(craft, tmp_path) as snapshot:
        stream = disk(snapshot)
        assert stream.size == 3 * 4096 * 0xFFFF_FFFF
        assert [*stream.extents(0, stream.size)] == [(0, stream.size, "zero")]
        for offset in (0, 0xFFFF_FFFE, stream.size // 2, stream.size - 3):
            assert b"".join(stream.read(offset, 3)) == b"\0\0\0"
        assert sum(map(len, stream.read(12345, 1 << 30))) == 1 << 30


@pytest.mark.parametrize("size", [1, 1 << 63, (1 << 64) - 1])
def test_a_stream_of_any_size_without_pages(tmp_path: Path, size: int) -> None:
    craft = Craft()
    craft.sizes["main"] = size
    with opened(craft, tmp_path) as snapshot:
        stream = disk(snapshot)
        assert stream.size == size
        assert b"".join(stream.read(size - 1, 1)) == b"\0"
        assert [*stream.flat_extents(0, size)] == [(0, size, "zero")]


# Counts up to 2^64.


@pytest.mark.parametrize("count", [3, 1 << 20, 1 << 59, (1 << 64) - 1])
@pytest.mark.parametrize("stream", ["main", "aux"])
def test_more_pages_than_there_are_bytes(tmp_path: Path, stream: str, count: int) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page(stream)
    craft.page_counts[stream] = count
    refused(craft, tmp_path)


@pytest.mark.parametrize("count", [1, 513, 1 << 32, (1 << 64) - 1])
def test_more_parents_than_there_are_bytes(tmp_path: Path, count: int) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.parent_count = count
    refused(craft, tmp_path)


@pytest.mark.parametrize("length", [5000, 1 << 40, (1 << 64) - 1])
def test_a_parents_path_longer_than_the_header(tmp_path: Path, length: int) -> None:
    for layout in ("A52", "B52"):
        craft = Craft(layout)
        craft.parents = ["parent.hxz"]
        craft.data(b"x" * 100)
        craft.page()
        data = bytearray(craft.finish())
        struct.pack_into("<Q", data, 21 if layout[0] == "A" else 28, length)
        (tmp_path / "t.hxz").write_bytes(data)
        with pytest.raises(HexzError), little_memory():
            open_snapshot(str(tmp_path / "t.hxz"), small())


@pytest.mark.parametrize("count", [0, 2, 4097, 1 << 32, (1 << 64) - 1])
def test_a_page_that_claims_another_number_of_blocks(tmp_path: Path, count: int) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    record = craft.page()
    struct.pack_into("<Q", craft.body, record.offset - 4096, count)
    refused(craft, tmp_path)


# Page lengths and places.


@pytest.mark.parametrize("length", [0, 7, 8, 27, 59, 61, 8 + 52 * 4097, 0xFFFF_FFFF])
def test_page_lengths_that_no_page_has(tmp_path: Path, length: int) -> None:
    craft = Craft()
    craft.store(bytes(300_000))
    craft.data(b"x" * 100)
    record = craft.page()
    craft.pages["main"] = [record._replace(length=length)]
    refused(craft, tmp_path)


def test_a_full_page_and_one_entry_more(tmp_path: Path) -> None:
    for entries in (4096, 4097):
        craft = Craft()
        for _ in range(entries):
            craft.zero(1)
        craft.page()
        if entries == 4096:
            with opened(craft, tmp_path) as snapshot:
                assert b"".join(disk(snapshot).read(0, 4096)) == bytes(4096)
        else:
            refused(craft, tmp_path, "impossible length")


@pytest.mark.parametrize("copies", [2, 1000])
def test_many_records_that_name_one_page(tmp_path: Path, copies: int) -> None:
    craft = Craft()
    for _ in range(4096):
        craft.zero(0)
    record = craft.page()
    craft.store(bytes(1 << 20))
    craft.pages["main"] = [record] * copies
    refused(craft, tmp_path, "overlap")


def test_one_page_for_both_streams(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.pages["aux"] = [craft.page()]
    craft.sizes["aux"] = 100
    craft.store(bytes(1000))
    refused(craft, tmp_path, "overlap")


@pytest.mark.parametrize("offset", [0, 4095, 5000, 1 << 40, (1 << 64) - 1])
def test_pages_outside_the_block_area(tmp_path: Path, offset: int) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.pages["main"] = [craft.page()._replace(offset=offset)]
    refused(craft, tmp_path)


# A master index larger than memory.


def test_a_master_index_that_fills_a_huge_file(tmp_path: Path) -> None:
    path = Craft().write(tmp_path / "t.hxz")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(struct.pack("<Q", (1 << 36) // 28))
        file.truncate(1 << 37)
    with little_memory(), pytest.raises(CorruptSnapshot):
        open_snapshot(str(path), small())


# Positions that do not add up.


def wrong_size(by: int) -> Callable[[Craft], None]:
    def change(craft: Craft) -> None:
        craft.sizes["main"] = (craft.sizes["main"] + by) % (1 << 64)

    return change


def wrong_position(page: int, to: int) -> Callable[[Craft], None]:
    def change(craft: Craft) -> None:
        craft.pages["main"][page] = craft.pages["main"][page]._replace(position=to)

    return change


def swapped(craft: Craft) -> None:
    craft.pages["main"].reverse()


POSITIONS = {
    "size one more": wrong_size(1),
    "size one less": wrong_size(-1),
    "size below the first page's end": wrong_size(-250),
    "size huge": wrong_size((1 << 64) - 301),
    "first page later": wrong_position(0, 1),
    "second page earlier": wrong_position(1, 99),
    "second page later": wrong_position(1, 101),
    "second page at 0": wrong_position(1, 0),
    "last page at the end of numbers": wrong_position(2, (1 << 64) - 1),
    "last page before the second": wrong_position(2, 50),
    "order reversed": swapped,
}


@pytest.mark.parametrize("what", POSITIONS)
@pytest.mark.parametrize("layout", ["A20", "B52"])
def test_positions_that_do_not_add_up(tmp_path: Path, layout: str, what: str) -> None:
    craft = Craft(layout)
    for letter in (b"a", b"b", b"c"):
        craft.data(letter * 100)
        craft.page()
    POSITIONS[what](craft)
    expected = b"a" * 100 + b"b" * 100 + b"c" * 100
    served = 0
    try:
        with opened(craft, tmp_path) as snapshot:
            stream = disk(snapshot)
            for offset in range(0, 300, 50):
                try:
                    assert b"".join(stream.read(offset, 50)) == expected[offset : offset + 50]
                    served += 1
                except HexzError:
                    pass
    except HexzError:
        return
    assert served < 6


def test_lengths_whose_sum_overflows(tmp_path: Path) -> None:
    craft = Craft()
    for _ in range(4096):
        craft.zero(0xFFFF_FFFF)
    record = craft.page()
    craft.pages["main"] = [record._replace(position=0)]
    craft.sizes["main"] = (4096 * 0xFFFF_FFFF) % (1 << 32)
    refused(craft, tmp_path)


@pytest.mark.parametrize("number", [1, (1 << 64) - 4096, (1 << 64) - 1])
def test_block_numbers_that_do_not_begin_at_0(tmp_path: Path, number: int) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.pages["main"] = [craft.page()._replace(first_block=number)]
    refused(craft, tmp_path)


# Bombs.


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("logical", [(64 << 20) + 1, 1 << 31, 0xFFFF_FFFF])
def test_a_tiny_block_that_claims_to_be_huge(tmp_path: Path, compression: str, logical: int) -> None:
    craft = Craft(compression=compression)
    craft.raw(struct.pack("<I", logical) + craft.encode(b"x" * 100)[4:], logical)
    craft.page()
    refused(craft, tmp_path, "accepted")


def test_the_largest_block_is_read(tmp_path: Path) -> None:
    craft = Craft(compression="zstd")
    craft.data(bytes(64 << 20))
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        assert b"".join(disk(snapshot).read((64 << 20) - 5, 5)) == bytes(5)


def test_an_lz4_prefix_that_differs_from_the_index(tmp_path: Path) -> None:
    for prefix in (0, 99, 101, 1 << 31, 0xFFFF_FFFF):
        craft = Craft()
        craft.raw(struct.pack("<I", prefix) + craft.encode(b"x" * 100)[4:], 100)
        craft.page()
        refused(craft, tmp_path, "LZ4 block claims")


def zstd_frame(window_log: int | None, content_size: int | None, content: bytes) -> bytes:
    """A frame of one raw block with the header fields wanted (RFC 8878 section 3.1.1)."""
    single = window_log is None
    descriptor = (0xC0 if content_size is not None else 0) | (0x20 if single else 0)
    head = b"\x28\xb5\x2f\xfd" + bytes([descriptor])
    if window_log is not None:
        head += bytes([(window_log - 10) << 3])
    if content_size is not None:
        head += struct.pack("<Q", content_size)
    return head + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_a_zstd_frame_built_by_hand_is_read(tmp_path: Path) -> None:
    craft = Craft(compression="zstd")
    craft.raw(zstd_frame(20, None, b"y" * 100), 100)
    craft.raw(zstd_frame(None, 100, b"z" * 100), 100)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        assert b"".join(disk(snapshot).read(0, 200)) == b"y" * 100 + b"z" * 100


@pytest.mark.parametrize(
    "frame",
    [
        zstd_frame(None, 1 << 40, b"y" * 100),
        zstd_frame(None, (1 << 64) - 3, b"y" * 100),
        zstd_frame(None, 101, b"y" * 100),
        zstd_frame(None, 99, b"y" * 99),
        zstd_frame(20, None, b"y" * 99),
        zstd_frame(20, None, b"y" * 101),
        zstd_frame(20, None, b"y" * 100)[:-1],
        zstd_frame(20, None, b""),
        zstd_frame(41, None, b"y" * 100),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(32 << 20)),
        zstandard.ZstdCompressor().compress(bytes(32 << 20)),
        b"\x50\x2a\x4d\x18\xff\xff\xff\x7f",
        b"\x28\xb5\x2f\xfd",
        b"\0",
    ],
    ids=range(14),
)
def test_zstd_frames_that_are_not_the_block(tmp_path: Path, frame: bytes) -> None:
    craft = Craft(compression="zstd")
    craft.raw(frame, 100)
    craft.page()
    refused(craft, tmp_path, "Zstandard")


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("difference", [-1, 1, 3000])
def test_blocks_that_decode_to_another_length(tmp_path: Path, compression: str, difference: int) -> None:
    craft = Craft(compression=compression)
    stored = craft.encode(b"w" * (100 + difference))
    craft.raw(struct.pack("<I", 100) + stored[4:] if compression == "lz4" else stored, 100)
    craft.data(b"good" * 25)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        with pytest.raises(BlockError):
            disk(snapshot).read(0, 200)
        assert b"".join(disk(snapshot).read(100, 100)) == b"good" * 25


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_bytes_after_a_block_are_never_output(tmp_path: Path, compression: str) -> None:
    craft = Craft(compression=compression)
    stored = craft.encode(b"w" * 100)
    for extra in (b"\0", b"trailing", stored, bytes(1000)):
        craft.raw(stored + extra, 100)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        for number in range(4):
            try:
                assert b"".join(disk(snapshot).read(number * 100, 100)) == b"w" * 100
            except BlockError:
                pass


# Stored ranges.


@pytest.mark.parametrize(
    "offset, length",
    [(0, 10), (4095, 10), (1, 0), (4096, 1 << 20), (1 << 40, 10), (PARENT, 10), (PARENT - 1, 10), (PARENT - 1, 0),
     (0xFFFF_FFFF, 0), (0xFFFF_FFFF << 32, 0)],
)  # fmt: skip
def test_stored_ranges_outside_the_block_area(tmp_path: Path, offset: int, length: int) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.entry(offset, length, 100)
    craft.page()
    refused(craft, tmp_path)


def test_a_block_over_the_index_is_refused(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    index_length = 8 * 4 + 28
    craft.entry(craft.end + 60 + 8, index_length, 100)
    craft.page()
    refused(craft, tmp_path)


# Entries of no length.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_of_no_length_are_skipped(tmp_path: Path, layout: str) -> None:
    craft = Craft(layout)
    for _ in range(4096):
        craft.zero(0)
    craft.page()
    for _ in range(1000):
        craft.zero(0)
    craft.data(b"some bytes")
    for _ in range(1000):
        craft.zero(0)
    craft.zero(6)
    craft.page()
    for _ in range(4096):
        craft.zero(0)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        stream = disk(snapshot)
        assert stream.size == 16
        assert b"".join(stream.read(0, 16)) == b"some bytes" + bytes(6)
        assert b"".join(stream.read_cached(0, 16) or []) == b"some bytes" + bytes(6)
        assert [*stream.extents(0, 16)] == [(0, 10, "data"), (10, 6, "zero")]
        stream.prefetch(0, 16)


def test_a_stream_of_nothing_but_such_entries(tmp_path: Path) -> None:
    craft = Craft()
    for _ in range(4096):
        craft.zero(0)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        assert disk(snapshot).size == 0
        assert [*disk(snapshot).extents(0, 0)] == []


# Parents.


def child_of(folder: Path, name: str, *parents: str, layout: str = "B52") -> Path:
    craft = Craft(layout)
    craft.parents = list(parents)
    if parents:
        craft.parent(100)
    else:
        craft.data(b"p" * 100)
    craft.page()
    return craft.write(folder / name)


def test_a_file_that_is_its_own_parent(tmp_path: Path) -> None:
    for layout in ("A52", "B52"):
        path = child_of(tmp_path, "self.hxz", "self.hxz", layout=layout)
        with little_memory(), pytest.raises(CorruptSnapshot, match="circle"):
            open_snapshot(str(path), small())


def test_parents_in_a_circle(tmp_path: Path) -> None:
    for number in range(5):
        path = child_of(tmp_path, f"{number}.hxz", f"{(number + 1) % 5}.hxz")
    with little_memory(), pytest.raises(CorruptSnapshot, match="circle"):
        open_snapshot(str(path), small())


@pytest.mark.parametrize("generations, right", [(64, True), (65, False), (400, False)])
def test_chains_of_parents_have_an_end(tmp_path: Path, generations: int, right: bool) -> None:
    path = child_of(tmp_path, "0.hxz")
    for number in range(1, generations):
        path = child_of(tmp_path, f"{number}.hxz", f"{number - 1}.hxz")
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        with little_memory(), open_snapshot(str(path), small()) as snapshot:
            assert right
            assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
    except CorruptSnapshot:
        assert not right
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_family_that_doubles_in_every_generation(tmp_path: Path) -> None:
    path = child_of(tmp_path, "0.hxz")
    for number in range(1, 40):
        path = child_of(tmp_path, f"{number}.hxz", *[f"{number - 1}.hxz"] * 2)
    began = time.monotonic()
    with little_memory(), open_snapshot(str(path), small()) as snapshot:
        assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
    assert time.monotonic() - began < 5


def test_a_family_that_is_too_large(tmp_path: Path) -> None:
    for number in range(300):
        child_of(tmp_path, str(number))
    halves = [child_of(tmp_path, f"h{start}", *map(str, range(start, start + 150))).name for start in (0, 150)]
    path = child_of(tmp_path, "child.hxz", *halves)
    descriptors = len(os.listdir("/proc/self/fd"))
    with little_memory(), pytest.raises(CorruptSnapshot, match="too many parents"):
        open_snapshot(str(path), small())
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    "stored",
    ["../secret.hxz", "inner/../../secret.hxz", "{outside}/secret.hxz", "http://127.0.0.1:1/secret.hxz", "/dev/zero",
     "file:///etc/passwd", "pipe", "folder", "link.hxz", "/", "", ".", "..", "\0", "x" * 300, "a\nb"],
)  # fmt: skip
def test_parents_are_looked_for_in_allowed_folders_only(tmp_path: Path, stored: str) -> None:
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    os.mkfifo(inside / "pipe")
    child_of(tmp_path, "secret.hxz")
    (inside / "link.hxz").symlink_to(tmp_path / "secret.hxz")
    path = child_of(inside, "child.hxz", stored.replace("{outside}", str(tmp_path)))
    with little_memory(), pytest.raises(ParentMissing) as caught:
        open_snapshot(str(path), small())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stored", ["/gone/base.hxz", "../elsewhere/base.hxz", "base.hxz", "sub/base.hxz"])
def test_parents_are_found_beside_the_child_and_in_named_folders(tmp_path: Path, stored: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    child_of(tmp_path / "a", "base.hxz")
    for folder, dirs in (("a", ()), ("b", (str(tmp_path / "a"),))):
        path = child_of(tmp_path / folder, "child.hxz", stored)
        with open_snapshot(str(path), new_context(1 << 20, parent_dirs=dirs)) as snapshot:
            assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("digest", [bytes(32), b"h" * 32])
def test_a_parent_entry_without_a_parent_is_an_error(tmp_path: Path, layout: str, digest: bytes) -> None:
    craft = Craft(layout)
    craft.data(b"x" * 100)
    craft.parent(100, digest)
    craft.page()
    refused(craft, tmp_path)


def test_content_that_no_parent_has_is_an_error(tmp_path: Path) -> None:
    base = Craft()
    base.data(b"p" * 100, b"1" * 32)
    base.page()
    base.write(tmp_path / "base.hxz")
    craft = Craft()
    craft.parents = ["base.hxz"]
    craft.parent(100, b"1" * 32)
    craft.parent(100, b"2" * 32)
    craft.page()
    with opened(craft, tmp_path) as snapshot:
        assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100
        with pytest.raises(BlockError, match="in no parent"):
            disk(snapshot).read(100, 100)


# Keys.


def test_key_rounds_that_would_take_hours(tmp_path: Path) -> None:
    for iterations in (0, 10_000_001, 0xFFFF_FFFF):
        craft = Craft()
        craft.data(b"x" * 100)
        craft.page()
        craft.encryption = b"s" * 16, iterations
        began = time.monotonic()
        with pytest.raises(CorruptSnapshot, match="rounds"), opened(craft, tmp_path, new_context(password=b"secret")):
            pass
        assert time.monotonic() - began < 5


def test_a_family_has_one_budget_of_key_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file may ask for ten million, and there may be 256 of them: that would take minutes."""
    monkeypatch.setattr(opening, "MAX_ROUNDS", 100)
    names = []
    for number, rounds in enumerate((40, 30, 20)):
        craft = Craft()
        craft.encrypt(b"secret", bytes([number]) * 16, rounds)
        craft.data(b"b" * 4096)
        craft.page()
        names.append(craft.write(tmp_path / f"{number}.hxz").name)
    for rounds, good in ((10, True), (11, False)):
        child = Craft()
        child.parents = names
        child.encrypt(b"secret", b"child's own salt", rounds)
        child.parent(4096)
        child.page()
        path = str(child.write(tmp_path / "child.hxz"))
        if not good:
            with pytest.raises(CorruptSnapshot, match="rounds"):
                open_snapshot(path, new_context(1 << 20, b"secret", workers=0))
            continue
        with open_snapshot(path, new_context(1 << 20, b"secret", (str(tmp_path),), workers=0)) as snapshot:
            assert b"".join(snapshot.streams["disk"].read(0, 4096)) == b"b" * 4096


def test_blocks_moved_within_an_encrypted_file_are_refused(tmp_path: Path) -> None:
    craft = Craft()
    craft.encrypt(b"secret")
    craft.data(b"a" * 100)
    craft.data(b"b" * 100)
    craft.entries[0], craft.entries[1] = craft.entries[1], craft.entries[0]
    craft.page()
    craft.data(b"c" * 100)
    craft.page()
    with pytest.raises(HexzError), opened(craft, tmp_path, new_context(password=b"secret")) as snapshot:
        disk(snapshot).read(0, 200)


# Dictionaries.


@pytest.mark.parametrize("dictionary", [b"\x37\xa4\x30\xec", b"\x37\xa4\x30\xec" + bytes(2000), b"x" * 7, bytes(9)])
def test_dictionaries_that_are_none(tmp_path: Path, dictionary: bytes) -> None:
    craft = Craft(compression="zstd")
    craft.dictionary = craft.store(dictionary), len(dictionary)
    craft.data(b"words " * 100)
    craft.page()
    try:
        with opened(craft, tmp_path) as snapshot:
            assert b"".join(disk(snapshot).read(0, 600)) == b"words " * 100
    except HexzError:
        pass


@pytest.mark.parametrize("place", [(0, 10), (4096, 0xFFFF_FFFF), (1 << 60, 10), (None, 10), (4096, None)])
def test_dictionaries_outside_the_file(tmp_path: Path, place: tuple[int | None, int | None]) -> None:
    craft = Craft(compression="zstd")
    craft.dictionary = place
    craft.data(b"words " * 100)
    craft.page()
    refused(craft, tmp_path)


# The file changes while it is served.


def change_nothing_but_length(path: Path) -> None:
    os.truncate(path, 6000)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(random.Random(1).randbytes(path.stat().st_size))


@pytest.mark.parametrize("change", [change_nothing_but_length, overwrite])
def test_a_file_that_changes_under_the_reader(tmp_path: Path, change: Callable[[Path], None]) -> None:
    craft = Craft()
    blocks = [random.Random(seed).randbytes(1000) for seed in range(20)]
    for block in blocks:
        craft.data(block)
        craft.page()
    path = craft.write(tmp_path / "t.hxz")
    failures = 0
    with open_snapshot(str(path), small()) as snapshot:
        assert b"".join(disk(snapshot).read(0, 1000)) == blocks[0]
        change(path)
        for number, block in enumerate(blocks):
            try:
                assert b"".join(disk(snapshot).read(number * 1000, 1000)) == block
            except (BlockError, StorageError, CorruptSnapshot):
                failures += 1
    assert failures >= 15


def test_a_file_replaced_by_a_new_one_is_read_as_it_was(tmp_path: Path) -> None:
    path = child_of(tmp_path, "t.hxz")
    with open_snapshot(str(path), small()) as snapshot:
        child_of(tmp_path, "new.hxz", "t.hxz")
        os.replace(tmp_path / "new.hxz", path)
        assert b"".join(disk(snapshot).read(0, 100)) == b"p" * 100


# Metadata.


def test_metadata_larger_than_accepted(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata_place = 4096, 0xFFFF_FFFF
    path = craft.write(tmp_path / "t.hxz")
    os.truncate(path, 1 << 33)
    with little_memory(), open_snapshot(str(path), small()) as snapshot:
        assert b"".join(disk(snapshot).read(0, 100)) == b"x" * 100
        assert not snapshot.lists_files
        assert snapshot.info()["metadata_bytes"] == 0xFFFF_FFFF
        assert "metadata" in snapshot.oddities[0]
        for read in (lambda: snapshot.files, lambda: snapshot.metadata):
            with pytest.raises(SnapshotTooLarge, match="metadata"):
                read()


@pytest.mark.parametrize(
    "metadata",
    [b"\xff\xfe not json", b"[" * 200_000, b'{"files":' * 100_000, b"null", b"3", b'"text"', b"{}", b'{"files": null}',
     b"1" * 100_000, b'{"files": '],
)  # fmt: skip
def test_metadata_that_is_no_manifest(tmp_path: Path, metadata: bytes) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata = metadata
    with opened(craft, tmp_path) as snapshot:
        assert snapshot.files is None
        assert json.dumps(snapshot.info())
        assert b"".join(disk(snapshot).read(0, 100)) == b"x" * 100


@pytest.mark.parametrize(
    "files",
    ["text", 3, {}, [3], [{}], [{"path": "a"}], [{"path": "", "offset": 0, "size": 1}],
     [{"path": "a", "offset": 0, "size": 101}], [{"path": "a", "offset": 1e3, "size": 1}],
     [{"path": "a", "offset": -1, "size": 1}], [{"path": ["a"], "offset": 0, "size": 1}],
     [{"path": "a", "offset": 0, "size": 10**400}], [{"path": "..", "offset": 0, "size": 1}]],
)  # fmt: skip
def test_manifests_that_lie(tmp_path: Path, files: object) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata = json.dumps({"files": files}).encode()
    with opened(craft, tmp_path) as snapshot:
        assert json.dumps(snapshot.info())
        assert b"".join(disk(snapshot).read(0, 100)) == b"x" * 100
        assert snapshot.files is None
        assert snapshot.oddities


# What is right is read: the builder of this module makes good files too.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_good_files_of_every_layout(tmp_path: Path, layout: str, compression: str) -> None:
    craft = Craft(layout, compression)
    parts = [random.Random(seed).randbytes(seed * 37 % 9000 + 1) for seed in range(50)]
    for number, part in enumerate(parts):
        craft.data(part)
        if number % 7 == 0:
            craft.page()
    craft.zero(12345)
    craft.page()
    craft.data(b"memory")
    craft.page("aux")
    with opened(craft, tmp_path) as snapshot:
        assert snapshot.layout == layout
        expected = b"".join(parts) + bytes(12345)
        assert b"".join(disk(snapshot).read(0, len(expected))) == expected
        assert b"".join(snapshot.streams["memory"].read(0, 6)) == b"memory"


def test_a_record_is_what_the_format_says() -> None:
    assert len(struct.pack("<QIQQ", *Record(1, 2, 3, 4))) == 28
    assert zlib.crc32(b"123456789") == 0xCBF43926
