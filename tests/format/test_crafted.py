"""The files that the tests of hostile ones begin with are good: every layout is read, byte for byte."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import pytest

from tests.crafted import LAYOUTS, Craft, Record, disk, opened


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
