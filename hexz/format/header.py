"""The 4096-byte header: parse both variants strictly, and build the one we write.

Every released file says version 1, so the variant is not announced: A holds one
optional parent, B and C hold a list, C ends in an optional CDC triple.  B is C
with the triple left out, and the padding makes a C parser read B unchanged
(format.md sections 1 and 3).  `header_candidates` returns each reading that is
possible by the header's bytes; the master index decides between them
(`hexz.format.index.index_fits`).
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import NamedTuple

from hexz.format.errors import HeaderError

__all__ = [
    "HEADER_SIZE",
    "MAGIC",
    "MAX_PARENTS",
    "CdcParameters",
    "Compression",
    "Encryption",
    "Header",
    "Section",
    "Variant",
    "build_header",
    "header_candidates",
]

MAGIC = b"HEXZ"
VERSION = 1
HEADER_SIZE = 4096
MAX_PARENTS = 512
MAX_DICTIONARY = 112_640

_FIXED = struct.Struct("<4sIIQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Variant(Enum):
    """Which header fields a file has (format.md section 1)."""

    A = "A"
    BC = "BC"


class Compression(Enum):
    """The codec of every block in a file; the value is the number on disk."""

    LZ4 = 0
    ZSTD = 1


class Section(NamedTuple):
    """A run of bytes of the file: offset and length in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


class Encryption(NamedTuple):
    """Parameters of PBKDF2-HMAC-SHA256 (format.md section 6)."""

    salt: bytes
    iterations: int


class CdcParameters(NamedTuple):
    """Content-defined chunking as recorded by 0.8: log2 of the average, minimum and maximum in bytes."""

    average_log2: int
    minimum: int
    maximum: int


class Header(NamedTuple):
    """The header's fields; offsets and lengths in bytes."""

    variant: Variant
    block_size: int
    index_offset: int
    parents: tuple[str, ...]
    dictionary: Section | None
    metadata: Section | None
    signature: Section | None
    encryption: Encryption | None
    compression: Compression
    has_main: bool
    has_aux: bool
    variable_blocks: bool
    cdc: CdcParameters | None


class _Fields:
    """A cursor over the header's fields; every read is checked against the end."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self._data):
            raise HeaderError("a header field runs past the header")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def flag(self, what: str) -> bool:
        value = self.take(1)[0]
        if value > 1:
            raise HeaderError(f"the header's {what} is {value}, not 0 or 1")
        return value == 1

    def text(self) -> str:
        length = self.u64()
        if length > len(self._data):
            raise HeaderError("a parent path runs past the header")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise HeaderError("a parent path is not UTF-8") from None

    def piece(self, what: str) -> Section | None:
        offset = self.u64() if self.flag(what) else None
        length = self.u32() if self.flag(what) else None
        if offset is None and length is None:
            return None
        if offset is None or length is None:
            raise HeaderError(f"the header gives only half of the {what}'s place")
        return Section(offset, length)


def header_candidates(region: bytes, file_size: int) -> list[Header]:
    """Each reading of the first 4096 bytes that breaks no rule of format.md section 3.

    Rule 5 needs the index.  `file_size` is in bytes.  The list has one or two headers.
    Raises: HeaderError when nothing fits; its text is that of the likelier reading.
    """
    if region[:4] != MAGIC:
        if not region:
            raise HeaderError("not a hexz snapshot: the file is empty")
        if not any(region) and len(region) == HEADER_SIZE:
            raise HeaderError("the header is all zeros: the snapshot was not finished when it was written")
        raise HeaderError("not a hexz snapshot (no HEXZ magic)")
    if len(region) < HEADER_SIZE:
        raise HeaderError(f"truncated: only {len(region)} bytes are left of a header of {HEADER_SIZE}")
    version = _U32.unpack_from(region, 4)[0]
    if version != VERSION:
        raise HeaderError(f"format version {version} is unknown: this reader knows version {VERSION}")
    found = []
    first_error: HeaderError | None = None
    for variant in (Variant.BC, Variant.A):
        try:
            found.append(_parse(region, file_size, variant))
        except HeaderError as error:
            first_error = first_error or error
    if not found:
        assert first_error is not None
        raise first_error
    return found


def _parse(region: bytes, file_size: int, variant: Variant) -> Header:
    _, _, block_size, index_offset = _FIXED.unpack_from(region)
    fields = _Fields(region[:HEADER_SIZE], _FIXED.size)
    if variant is Variant.A:
        parents: tuple[str, ...] = (fields.text(),) if fields.flag("parent tag") else ()
    else:
        count = fields.u64()
        if count > MAX_PARENTS:
            raise HeaderError(f"the header names {count} parents: at most {MAX_PARENTS} are possible")
        parents = tuple(fields.text() for _ in range(count))
    dictionary = fields.piece("dictionary")
    metadata = fields.piece("metadata")
    signature = fields.piece("signature")
    encryption = Encryption(fields.take(16), fields.u32()) if fields.flag("encryption tag") else None
    codec = fields.u32()
    if codec > 1:
        raise HeaderError(f"compression {codec} is unknown: 0 is LZ4, 1 is Zstandard")
    has_main, has_aux, variable = (
        fields.flag("disk flag"),
        fields.flag("memory flag"),
        fields.flag("block flag"),
    )
    cdc = None
    if variant is Variant.BC and fields.flag("CDC tag"):
        cdc = CdcParameters(fields.u32(), fields.u32(), fields.u32())
    if any(region[fields.position : HEADER_SIZE]):
        raise HeaderError("the header has bytes after its last field")
    _check_places(file_size, index_offset, dictionary, metadata, signature)
    if dictionary is not None and dictionary.length == 0:
        dictionary = None
    return Header(
        variant, block_size, index_offset, parents, dictionary, metadata, signature, encryption,
        Compression(codec), has_main, has_aux, variable, cdc,
    )  # fmt: skip


def _check_places(
    file_size: int,
    index_offset: int,
    dictionary: Section | None,
    metadata: Section | None,
    signature: Section | None,
) -> None:
    if not HEADER_SIZE <= index_offset < file_size:
        what = "truncated" if index_offset >= file_size else "damaged"
        raise HeaderError(f"{what}: the index is said to be at {index_offset}, outside the file of {file_size} bytes")
    for what, piece in (("dictionary", dictionary), ("metadata", metadata), ("signature", signature)):
        if piece is not None and (piece.offset < HEADER_SIZE or piece.end > file_size):
            raise HeaderError(f"the {what} is said to be at {piece.offset}+{piece.length}, outside the file")
    if dictionary is not None and dictionary.length > MAX_DICTIONARY:
        raise HeaderError(f"the dictionary has {dictionary.length} bytes: at most {MAX_DICTIONARY} are possible")


def build_header(header: Header) -> bytes:
    """The 4096 bytes of a header in layout B or C (C only if it has CDC parameters).

    Raises: HeaderError when the parents' paths do not fit.
    """
    parts = [
        _FIXED.pack(MAGIC, VERSION, header.block_size, header.index_offset),
        _U64.pack(len(header.parents)),
    ]
    for parent in header.parents:
        path = parent.encode("utf-8")
        parts += [_U64.pack(len(path)), path]
    for piece in (header.dictionary, header.metadata, header.signature):
        parts.append(b"\0\0" if piece is None else struct.pack("<BQBI", 1, piece.offset, 1, piece.length))
    encryption = header.encryption
    parts.append(b"\0" if encryption is None else b"\1" + encryption.salt + _U32.pack(encryption.iterations))
    parts.append(_U32.pack(header.compression.value))
    parts.append(bytes((header.has_main, header.has_aux, header.variable_blocks)))
    if header.cdc is not None:
        parts.append(struct.pack("<BIII", 1, *header.cdc))
    packed = b"".join(parts)
    if len(packed) > HEADER_SIZE:
        raise HeaderError(f"the parents' paths need {len(packed)} bytes: the header has {HEADER_SIZE}")
    return packed.ljust(HEADER_SIZE, b"\0")
