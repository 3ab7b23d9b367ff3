"""Blocks decoded in one call are the blocks decoded one by one, or nothing at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.format.codec import Codec, Encoder, Span
from hexz.format.errors import BlockDamage
from hexz.format.header import Compression

LENGTHS = (64 << 10, 256 << 10, 4096, 65535)
FRAMED = {Compression.LZ4: (64 << 10, 256 << 10), Compression.ZSTD: LENGTHS}
DICTIONARY = bytes(range(256)) * 64


def content(seed: int, length: int) -> bytes:
    """Noise and repetition, half and half."""
    source = random.Random(seed)
    return (source.randbytes(length // 2) + bytes([seed % 256]) * length)[:length]


def run_of(blocks: list[bytes]) -> tuple[memoryview, list[Span]]:
    """Stored blocks one behind the other, with gaps between."""
    spans, stored = [], b""
    for number, block in enumerate(blocks):
        stored += b"gap" * (number % 2)
        spans.append((len(stored), len(block)))
        stored += block
    return memoryview(stored), spans


def one_by_one(codec: Codec, stored: memoryview, spans: list[Span], length: int) -> list[bytes] | None:
    try:
        return [codec.decode(stored[at : at + size], length) for at, size in spans]
    except BlockDamage:
        return None


@pytest.mark.parametrize("compression", [Compression.LZ4, Compression.ZSTD])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dictionary", [None, DICTIONARY])
def test_a_run_is_its_blocks(compression: Compression, length: int, dictionary: bytes | None) -> None:
    if dictionary is not None and compression is Compression.LZ4:
        dictionary = None
    blocks = [content(seed, length) for seed in range(8)]
    encoder = Encoder(compression, dictionary=dictionary)
    stored, spans = run_of([encoder.encode(block) for block in blocks])
    codec = Codec(compression, dictionary)
    plain = codec.decode_run(stored, spans, length)
    assert (plain is not None) is (length in FRAMED[compression])
    fewer = codec.decode_run(stored, spans[:7], length)
    assert (fewer is not None) is (compression is Compression.LZ4 and length in FRAMED[compression])
    assert plain is None or [bytes(block) for block in plain] == blocks


@given(st.data())
def test_a_damaged_run_is_its_blocks_or_nothing(data: st.DataObject) -> None:
    """Whatever bytes are changed, and also where blocks are shorter or longer than they should be."""
    compression = data.draw(st.sampled_from([Compression.LZ4, Compression.ZSTD]))
    length = 64 << 10
    lengths = data.draw(
        st.lists(st.sampled_from([length, length, length, length - 1, length + 1, 5]), min_size=1, max_size=9)
    )
    encoder = Encoder(compression)
    encoded = [bytearray(encoder.encode(content(seed, size))) for seed, size in enumerate(lengths)]
    for block in encoded:
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(block) - 1) | st.integers(0, min(20, len(block) - 1)))
            block[place] = data.draw(st.integers(0, 255))
        if compression is Compression.LZ4 and data.draw(st.booleans()):
            block[:4] = length.to_bytes(4, "little")  # believed only where it is so
    stored, spans = run_of([bytes(block) for block in encoded])
    codec = Codec(compression)
    plain = codec.decode_run(stored, spans, length)
    if plain is not None:
        assert [bytes(block) for block in plain] == one_by_one(codec, stored, spans, length)
