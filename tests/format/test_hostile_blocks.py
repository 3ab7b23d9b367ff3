"""Blocks and dictionaries that are bombs, lie elsewhere or are none: the right bytes or an error, and no others."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import zstandard

from hexz.errors import BlockError, HexzError
from tests.crafted import PARENT, Craft, disk, opened, refused

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
