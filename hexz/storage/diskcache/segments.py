"""The files of the disk cache: segments, of which each has its own map.

A segment begins with a head (`HEAD_SIZE` bytes): a magic, its number, how much it can take, the SHA-256 of the identity
of the file whose bytes it has, the identity's text as far as it fits, for people, and a CRC-32 of all that.  Slots
follow, `RECORD_SIZE` bytes each: where a piece belongs, its length, its place, and a CRC-32.  Then the pieces, cut into
grains with a CRC-32 before each.  All numbers are little endian.

A record's CRC begins with that of the head, which is also mixed into a grain's, together with its offset in the file:
bytes of another segment, another file or another place are taken for damaged, whoever put them there.  A segment only
grows at its end, and its length is set when it is made, so that no file system allocates more than was written.  A
slot that was not written, or only in part, is none.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from hexz.format.codec import crc32
from hexz.storage.diskcache.pieces import CELL, GRAIN, STRIDE, KeptPiece, stored_length

__all__ = [
    "HEAD_SIZE",
    "RECORD_SIZE",
    "Layout",
    "SegmentHead",
    "build_head",
    "build_piece",
    "build_record",
    "digest_of",
    "parse_head",
    "read_piece",
    "scan_slots",
    "segment_name",
    "write_all",
]

MAGIC = b"hexzseg1"
HEAD_SIZE = 1024
_HEAD = struct.Struct("<8sQII32s")
_RECORD = struct.Struct("<QII")
_CRC = struct.Struct("<I")
RECORD_SIZE = _RECORD.size + _CRC.size
PAGE = 4096
MAX_SLOTS = 1 << 17
MAX_CAPACITY = 1 << 30
MAX_OFFSET = 1 << 62
"""What no head and no record may exceed."""


class Layout(NamedTuple):
    """How many slots a segment has, and bytes for pieces."""

    slots: int
    capacity: int

    @property
    def begin(self) -> int:
        """Where the first piece lies."""
        return -(-(HEAD_SIZE + self.slots * RECORD_SIZE) // PAGE) * PAGE

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self.begin + self.capacity


def segment_name(number: int) -> str:
    """The name of the file of segment `number`."""
    return f"{number:016x}"


class SegmentHead(NamedTuple):
    """What a head says; `seed` is its CRC-32."""

    layout: Layout
    seed: int


def digest_of(identity: str) -> bytes:
    """What stands for an identity."""
    return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()


def build_head(identity: str, number: int, layout: Layout) -> bytes:
    """The head of a new segment."""
    fields = _HEAD.pack(MAGIC, number, layout.slots, layout.capacity, digest_of(identity))
    room = HEAD_SIZE - _HEAD.size - _CRC.size
    body = fields + identity.encode("utf-8", "replace")[:room].ljust(room, b"\0")
    return body + _CRC.pack(zlib.crc32(body))


def parse_head(data: bytes, digest: bytes, number: int) -> SegmentHead | None:
    """The head of segment `number` of the identity with this digest; None if it is none of that."""
    if len(data) != HEAD_SIZE:
        return None
    magic, found, slots, capacity, whose = _HEAD.unpack_from(data)
    (seed,) = _CRC.unpack_from(data, HEAD_SIZE - _CRC.size)
    if zlib.crc32(data[: -_CRC.size]) != seed or (magic, found, whose) != (MAGIC, number, digest):
        return None
    if not 0 < slots <= MAX_SLOTS or not 0 < capacity <= MAX_CAPACITY:
        return None
    return SegmentHead(Layout(slots, capacity), seed)


def build_record(start: int, length: int, place: int, seed: int) -> bytes:
    """What a slot says of a piece."""
    body = _RECORD.pack(start, length, place)
    return body + _CRC.pack(zlib.crc32(body, seed))


def build_piece(start: int, data: memoryview, seed: int) -> bytes:
    """A piece that begins at `start` of its file, as it is stored."""
    parts: list[bytes | memoryview] = []
    for at in range(0, len(data), GRAIN):
        grain = data[at : at + GRAIN]
        parts += (_CRC.pack(crc32(grain) ^ _seed_at(start + at, seed)), grain)
    return b"".join(parts)


def _seed_at(offset: int, seed: int) -> int:
    """What is mixed into the CRC of a grain at this offset (a multiplicative hash, by the golden ratio)."""
    return seed ^ ((offset * 0x9E3779B97F4A7C15 >> 32) & 0xFFFFFFFF)


def read_piece(
    descriptor: int, seed: int, piece: KeptPiece, start: int, end: int
) -> tuple[list[memoryview], list[tuple[int, int]]]:
    """What a piece has of the span, in parts, and where its grains are damaged; then the parts are of no use.

    Raises: OSError.
    """
    first = max(start - piece.start, 0) // GRAIN
    begin, stop = piece.start + first * GRAIN, min(end, piece.end)
    last = -(-(stop - piece.start) // GRAIN)
    whole = min(piece.start + last * GRAIN, piece.end) - begin
    data = memoryview(os.pread(descriptor, stored_length(whole), piece.place + first * STRIDE))
    parts, damaged = [], []
    crc_of = _CRC.unpack_from
    for at in range(0, whole, GRAIN):
        offset, place = begin + at, at // GRAIN * STRIDE
        length = min(GRAIN, whole - at)
        grain = data[place + 4 : place + 4 + length]
        if len(grain) != length or crc32(grain) ^ _seed_at(offset, seed) != crc_of(data, place)[0]:
            damaged.append((offset, offset + length))
        elif offset < start or offset + length > stop:
            parts.append(grain[max(start - offset, 0) : stop - offset])
        else:
            parts.append(grain)
    return parts, damaged


def scan_slots(descriptor: int, head: SegmentHead) -> Iterator[tuple[int, int, int, int]]:
    """Every record that is whole and possible: number of the slot, start, length and place.

    Where a page's worth of slots is empty, nothing is looked for behind it.  Raises: OSError.
    """
    layout, seed = head
    at_once = PAGE // RECORD_SIZE
    for first in range(0, layout.slots, at_once):
        count = min(at_once, layout.slots - first)
        data = os.pread(descriptor, count * RECORD_SIZE, HEAD_SIZE + first * RECORD_SIZE)
        if not data.strip(b"\0"):
            return
        for number in range(len(data) // RECORD_SIZE):
            at = number * RECORD_SIZE
            start, length, place = _RECORD.unpack_from(data, at)
            if zlib.crc32(data[at : at + _RECORD.size], seed) != _CRC.unpack_from(data, at + _RECORD.size)[0]:
                continue
            if start > MAX_OFFSET or not 0 < length <= CELL - start % CELL:
                continue
            if layout.begin <= place and place + stored_length(length) <= layout.length:
                yield first + number, start, length, place


def write_all(descriptor: int, data: bytes, position: int) -> None:
    """Write all of `data`.  Raises: OSError."""
    done = os.pwrite(descriptor, data, position)
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], position + done)
