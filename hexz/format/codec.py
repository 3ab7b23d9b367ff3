"""One stored block in, one logical block out, and back (format.md section 5).

Decompression releases the interpreter lock, so threads run it in parallel.  Each release and return costs as much as
a block where threads compete for it, so blocks that lie one behind the other are decoded in one call where that can be.
A `ZstdDecompressor` is not safe to share between threads: each thread has its own.
"""

from __future__ import annotations

import importlib
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Union

import lz4.block
import zstandard

from hexz.format.errors import BlockDamage
from hexz.format.header import Compression

__all__ = ["CRC32_BY", "MAX_FRAME_HEADER", "Codec", "Encoder", "FrameMarks", "crc32", "frame_marks"]

FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
"""How a frame with content begins (RFC 8878 section 3.1.1)."""
MAX_WINDOW = 128 << 20
"""Largest zstd window accepted, bytes: the format's own levels ask for at most this."""

MAX_FRAME_HEADER = 18
"""Longest beginning of a Zstandard frame in front of its blocks, bytes (RFC 8878 sections 3.1.1 and 3.1.1.1)."""

try:
    import lz4.frame
except ImportError:  # which needs more of the standard library than the rest of that package
    LZ4_FRAME_BLOCKS: dict[int, int] = {}
else:
    LZ4_FRAME_BLOCKS = {
        64 << 10: lz4.frame.BLOCKSIZE_MAX64KB,
        256 << 10: lz4.frame.BLOCKSIZE_MAX256KB,
        1 << 20: lz4.frame.BLOCKSIZE_MAX1MB,
        4 << 20: lz4.frame.BLOCKSIZE_MAX4MB,
    }
"""The block sizes of an LZ4 frame, bytes (its format, "BD byte")."""
LEAST_FRAMES = 8
"""Fewer Zstandard frames are decoded one by one: each call for many makes a context of its own."""
_LZ4_SIZE = struct.Struct("<I")
_LZ4_END = bytes(4)

Stored = Union[bytes, memoryview]
Span = tuple[int, int]
"""Where a stored block begins, and its length, bytes."""


def _find_crc32() -> Callable[[Stored], int]:
    """CRC-32 (ISO-HDLC) by the package ``isal``, several times as fast, where that is installed and right."""
    try:
        found: Callable[[Stored], int] = importlib.import_module("isal.isal_zlib").crc32
    except (ImportError, AttributeError):  # or it is a folder of that name
        return zlib.crc32
    return found if found(b"123456789") == zlib.crc32(b"123456789") else zlib.crc32


crc32 = _find_crc32()
CRC32_BY = "zlib" if crc32 is zlib.crc32 else "isal"
"""The package that computes CRC-32s here."""


class FrameMarks(NamedTuple):
    """What a Zstandard frame says of itself (RFC 8878 section 3.1.1.1.1).

    `dictionary_id` is 0 where it names none; `has_checksum`: it ends in a checksum of what it decompresses to.
    """

    dictionary_id: int
    has_checksum: bool


def frame_marks(stored: Stored) -> FrameMarks:
    """The marks in a frame's header.

    Raises: BlockDamage when there is none.
    """
    try:
        parameters = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        raise BlockDamage(f"Zstandard: {error}") from None
    return FrameMarks(parameters.dict_id, parameters.has_checksum)


@lru_cache(maxsize=256)
def _lz4_header(block_size: int, total: int) -> bytes:
    """What an LZ4 frame begins with that holds `total` bytes in blocks of their own."""
    compressor = lz4.frame.LZ4FrameCompressor(block_size=LZ4_FRAME_BLOCKS[block_size], block_linked=False)
    return bytes(compressor.begin(source_size=total))


class Codec:
    """Decodes the blocks of one file; safe to use from several threads."""

    def __init__(self, compression: Compression, dictionary: bytes | None = None) -> None:
        self._is_lz4 = compression is Compression.LZ4
        """Raises: ValueError when the dictionary cannot be one."""
        self._dictionary = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self._local = threading.local()
        if self._dictionary is not None:
            try:
                self._local.zstd = self._decompressor()
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from None

    def _decompressor_here(self) -> zstandard.ZstdDecompressor:
        """This thread's."""
        try:
            decompressor: zstandard.ZstdDecompressor = self._local.zstd
        except AttributeError:
            decompressor = self._local.zstd = self._decompressor()
        return decompressor

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        return zstandard.ZstdDecompressor(dict_data=self._dictionary, max_window_size=MAX_WINDOW)

    def decode(self, stored: Stored, logical_length: int) -> bytes:
        """The block's bytes, exactly `logical_length` of them.

        The caller has checked `logical_length` against the largest block.
        Raises: BlockDamage; MemoryError, which says nothing about the block.
        """
        return self._lz4(stored, logical_length) if self._is_lz4 else self._zstd(stored, logical_length)

    def decode_run(self, stored: memoryview, spans: Sequence[Span], logical_length: int) -> list[memoryview] | None:
        """The blocks at `spans` of `stored`, `logical_length` bytes each, in one call: parts of one piece of memory.

        None where that cannot be: other lengths than the codec's frames know, or a block that is damaged or odd, which
        only `decode` tells apart.  Raises: MemoryError.
        """
        return (self._lz4_run if self._is_lz4 else self._zstd_run)(stored, spans, logical_length)

    def _lz4_run(self, stored: memoryview, spans: Sequence[Span], logical_length: int) -> list[memoryview] | None:
        """A stored block is its plain length and an LZ4 block; in a frame it is its stored length and the same.

        A frame gives each block at most its block size: n of them that are n times that together are that each.
        """
        if logical_length not in LZ4_FRAME_BLOCKS:
            return None
        prefix, pack = _LZ4_SIZE.pack(logical_length), _LZ4_SIZE.pack
        total = len(spans) * logical_length
        parts: list[Stored] = [_lz4_header(logical_length, total)]
        for at, length in spans:
            if stored[at : at + 4] != prefix or not 4 < length <= logical_length + 4:
                return None
            parts.append(pack(length - 4))
            parts.append(stored[at + 4 : at + length])
        parts.append(_LZ4_END)
        try:
            plain = memoryview(lz4.frame.decompress(b"".join(parts)))
        except RuntimeError:  # what is wrong with which block is found out one by one
            return None
        if len(plain) != total:
            return None
        return [plain[at : at + logical_length] for at in range(0, total, logical_length)]

    def _zstd_run(self, stored: memoryview, spans: Sequence[Span], logical_length: int) -> list[memoryview] | None:
        decode_all = getattr(self._decompressor_here(), "multi_decompress_to_buffer", None)
        count = len(spans)
        if decode_all is None or count < LEAST_FRAMES:  # Debian's package has it not
            return None
        sizes = struct.pack(f"={count}Q", *[logical_length] * count)
        try:
            for at, length in spans:
                frame = stored[at : at + length]
                if frame[:4] != FRAME_MAGIC or zstandard.frame_content_size(frame) != logical_length:
                    return None
            frames = zstandard.BufferWithSegments(stored, struct.pack(f"={2 * count}Q", *chain(*spans)))
            plain = decode_all(frames, decompressed_sizes=sizes, threads=1)
        except zstandard.ZstdError:  # the same
            return None
        parts: list[Any] = [plain[number] for number in range(count)]  # of whose buffers the stubs know nothing
        blocks = [memoryview(part) for part in parts]
        return blocks if all(len(block) == logical_length for block in blocks) else None

    def _lz4(self, stored: Stored, logical_length: int) -> bytes:
        prefix = int.from_bytes(stored[:4], "little")
        if len(stored) < 5 or prefix != logical_length:
            raise BlockDamage(f"LZ4 block claims {prefix} bytes, the index {logical_length}")
        try:
            # With its prefix, already checked, the decoder takes the block as it is: no copy of the rest.
            block: bytes = lz4.block.decompress(stored)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise BlockDamage(f"LZ4: {error}") from None
        if len(block) != logical_length:
            raise BlockDamage(f"LZ4 block holds {len(block)} bytes, the index says {logical_length}")
        return block

    def _zstd(self, stored: Stored, logical_length: int) -> bytes:
        decompressor = self._decompressor_here()
        try:
            if stored[:4] != FRAME_MAGIC:
                # Of a skippable frame the decoder would first make room for as much as that says to skip.
                raise BlockDamage("Zstandard: not a frame")
            claimed = zstandard.frame_content_size(stored)
            if claimed > logical_length:
                raise BlockDamage(f"Zstandard frame claims {claimed} bytes, the index says {logical_length}")
            block: bytes = decompressor.decompress(stored, max_output_size=logical_length)
        except zstandard.ZstdError as error:
            if "not enough memory" in str(error):  # zstd's ZSTD_error_memory_allocation
                raise MemoryError from None
            raise BlockDamage(f"Zstandard: {error}") from None
        if len(block) != logical_length:
            raise BlockDamage(f"Zstandard frame holds {len(block)} bytes, the index says {logical_length}")
        return block


class Encoder:
    """Encodes blocks for a new file; one for each thread.

    `level` is the codec's own: for lz4 0 is the fast mode and 1 to 12 the
    high-compression one, for zstd 1 to 22.  The index keeps no check of the plain
    bytes, and a damaged dictionary decodes to wrong ones of the right length: frames
    made with a dictionary carry zstd's own checksum.
    """

    def __init__(self, compression: Compression, level: int | None = None, dictionary: bytes | None = None) -> None:
        self._level = level
        self._zstd: zstandard.ZstdCompressor | None = None
        if compression is Compression.ZSTD:
            trained = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
            self._zstd = zstandard.ZstdCompressor(
                level=3 if level is None else level,
                dict_data=trained,
                write_checksum=trained is not None,
                write_content_size=True,
            )

    def encode(self, block: Stored) -> bytes:
        """The stored form of one block."""
        if self._zstd is not None:
            return bytes(self._zstd.compress(block))
        if self._level:
            return bytes(lz4.block.compress(block, mode="high_compression", compression=self._level, store_size=True))
        return bytes(lz4.block.compress(block, store_size=True))
