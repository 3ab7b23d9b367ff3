"""The journal of an overlay's map: bytes in, values out.

A journal is a head of 4096 bytes (one line of JSON, then spaces, then a CRC-32)
and records of 28 bytes, only ever appended:

======  =====  ==================================================================
offset  bytes  field (little-endian)
======  =====  ==================================================================
0       8      first block; in a mark: how many records came before it
8       8      first slot, or 2^64-1 for blocks that read as zeros
16      4      number of blocks; 0 makes the record a mark
20      4      CRC-32 of the slots' bytes (0 for zeros and marks)
24      4      CRC-32 of the 24 bytes before, begun with that of the head
======  =====  ==================================================================

A mark says that everything before it, data and map, was on the disk when it was
appended.  Records behind the last mark count only if their data's CRC holds,
which makes each of them happen as a whole or not at all, even if the machine
loses power.  The first record that is damaged ends the journal: that is where a
writer was killed.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, NamedTuple

from hexz.errors import JsonError
from hexz.images.errors import JournalError
from hexz.images.overlay.blockmap import BlockRun
from hexz.jsontext import load_json

__all__ = ["HEAD_SIZE", "RECORD_SIZE", "Head", "Record", "build_head", "parse_head", "parse_records"]

HEAD_SIZE = 4096
RECORD_SIZE = 28
FORMAT = 1
SMALLEST_BLOCK = 512
LARGEST_BLOCK = 1 << 20
MAX_BLOCKS = (1 << 32) - 1
"""Blocks of an image: a record's count has to reach over all of them."""
_RECORD = struct.Struct("<QQIII")
_BODY = struct.Struct("<QQII")
_CRC = struct.Struct("<I")


class Head(NamedTuple):
    """What an overlay lies over.  Sizes in bytes; `etag` identifies the stream's bytes, `snapshot` is its path."""

    size: int
    block_size: int
    etag: str
    snapshot: str
    stream: str

    @property
    def blocks(self) -> int:
        """Blocks of the image; the last one may be short."""
        return -(-self.size // self.block_size)


class Record(NamedTuple):
    """Blocks that were written, with the CRC-32 of their bytes; a mark has no blocks."""

    run: BlockRun
    crc: int

    @property
    def is_mark(self) -> bool:
        """Everything before it is on the disk."""
        return self.run.length == 0


def build_head(head: Head) -> bytes:
    """The head's 4096 bytes.

    Raises: JournalError when the snapshot's path is too long for it.
    """
    text = json.dumps({"hexz-overlay": FORMAT, **head._asdict()}).encode() + b"\n"
    if len(text) > HEAD_SIZE - 4:
        raise JournalError("the snapshot's path is too long for an overlay")
    body = text.ljust(HEAD_SIZE - 4)
    return body + _CRC.pack(zlib.crc32(body))


def parse_head(data: bytes) -> Head:
    """The head at the beginning of `data`.

    Raises: JournalError.
    """
    if len(data) < HEAD_SIZE or zlib.crc32(data[: HEAD_SIZE - 4]) != _CRC.unpack_from(data, HEAD_SIZE - 4)[0]:
        raise JournalError("not an overlay's journal, or its head is damaged")
    try:
        fields: Any = load_json(data[: HEAD_SIZE - 4])
        version = fields.pop("hexz-overlay")
        head = Head(**fields)
    except (JsonError, TypeError, AttributeError, KeyError):
        raise JournalError("the head is not what an overlay begins with") from None
    if version != FORMAT:
        raise JournalError(f"overlay format {version!r} is unknown: this reader knows {FORMAT}")
    whole = type(head.size) is int and type(head.block_size) is int
    if not whole or not all(isinstance(text, str) for text in (head.etag, head.snapshot, head.stream)):
        raise JournalError("the head has a field of the wrong type")
    block = head.block_size
    if not SMALLEST_BLOCK <= block <= LARGEST_BLOCK or block & (block - 1) or head.size < 0:
        raise JournalError("the head has an impossible size")
    if head.blocks > MAX_BLOCKS:
        raise JournalError("the image has more blocks than an overlay can have")
    return head


def build_record(run: BlockRun, crc: int, seed: int) -> bytes:
    """One record's bytes; `seed` is `record_seed` of the head."""
    body = _BODY.pack(run.start, run.slot, run.length, crc)
    return body + _CRC.pack(zlib.crc32(body, seed))


def build_mark(before: int, seed: int) -> bytes:
    """A mark behind `before` records."""
    return build_record(BlockRun(before, 0, 0), 0, seed)


def record_seed(head: bytes) -> int:
    """What the CRCs of a journal with these head bytes begin with: records of another overlay do not pass."""
    return zlib.crc32(head[:HEAD_SIZE])


def parse_records(data: bytes, head: Head, seed: int, before: int = 0) -> list[Record]:
    """The records at the beginning of `data`, `before` others, that are whole and possible."""
    records: list[Record] = []
    blocks = head.blocks
    for start, slot, count, data_crc, crc in _RECORD.iter_unpack(data[: len(data) // RECORD_SIZE * RECORD_SIZE]):
        body = _BODY.pack(start, slot, count, data_crc)
        possible = start + count <= blocks if count else start == before + len(records)
        if zlib.crc32(body, seed) != crc or not possible:
            break
        records.append(Record(BlockRun(start, count, slot), data_crc))
    return records
