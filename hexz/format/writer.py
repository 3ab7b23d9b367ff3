"""Write a snapshot in layout B52, which every release from 0.5.2 to 0.8.2 opens (format.md section 16).

The caller compresses (several threads can) and gives blocks in order; the writer
places them, keeps the index, and writes the header last, so that a torn file has
no magic.  The standard library has no BLAKE3: the hash fields stay zero, which
every reader accepts.
"""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

from hexz.format.header import HEADER_SIZE, Compression, Header, Section, Variant, build_header
from hexz.format.index import (
    MAX_PAGE_ENTRIES,
    PARENT_OFFSET,
    BlockEntry,
    PageRecord,
    build_master_index,
    build_page,
)

__all__ = ["MAX_REMEMBERED", "StoredBlock", "SnapshotWriter"]

MAX_REMEMBERED = 1 << 19
"""Stored blocks remembered for deduplication, about 130 MB; beyond it the older half is forgotten."""
NO_HASH = bytes(32)


class StoredBlock(NamedTuple):
    """Where a block was stored: bytes, and the CRC-32 of the stored bytes."""

    offset: int
    length: int
    crc: int


class SnapshotWriter:
    """One snapshot being written to `file`, empty, seekable and readable; not safe to share between threads.

    Call `begin` for each stream (disk first), `data`, `zero` and `parent` for its
    blocks in order, and `finish` at the end.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: Compression,
        block_size: int,
        dictionary: bytes | None = None,
        parents: tuple[str, ...] = (),
    ) -> None:
        """`block_size` is the nominal logical size in bytes; `parents` are the paths to store."""
        self._file = file
        self._compression = compression
        self._block_size = block_size
        self._parents = parents
        self._position = 0
        self._write(bytes(HEADER_SIZE))
        self._dictionary: Section | None = None
        if dictionary:
            self._dictionary = Section(self._position, len(dictionary))
            self._write(dictionary)
        self._pages: dict[str, list[PageRecord]] = {"disk": [], "memory": []}
        self._sizes = {"disk": 0, "memory": 0}
        self._stream = "disk"
        self._entries: list[BlockEntry] = []
        self._blocks = 0
        self._page_start = 0
        self._recent: dict[int, StoredBlock] = {}
        self._older: dict[int, StoredBlock] = {}

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._position += len(data)

    def begin(self, stream: str) -> None:
        """The blocks that follow belong to ``disk`` or ``memory``."""
        self._end_page()
        self._stream = stream
        self._page_start = self._sizes[stream]

    def find(self, key: int) -> StoredBlock | None:
        """Where the last block stored under `key` lies, if it is remembered.  May be asked from any thread."""
        return self._recent.get(key) or self._older.get(key)

    def stored(self, place: StoredBlock) -> bytes:
        """The stored bytes of an earlier block, read back from the file."""
        self._file.seek(place.offset)
        data = self._file.read(place.length)
        self._file.seek(self._position)
        return data

    def repeat(self, place: StoredBlock, logical_length: int) -> None:
        """Add a block as a reference to an equal one that is stored already."""
        self._add(BlockEntry(place.offset, place.length, logical_length, place.crc, NO_HASH))

    def data(self, stored: bytes, crc: int, logical_length: int, key: int | None = None) -> None:
        """Store a compressed block of `logical_length` bytes with its CRC-32, to be found under `key` if given."""
        place = StoredBlock(self._position, len(stored), crc)
        self._write(stored)
        self._add(BlockEntry(place.offset, place.length, logical_length, place.crc, NO_HASH))
        if key is not None:
            if len(self._recent) >= MAX_REMEMBERED // 2:
                self._older, self._recent = self._recent, {}
            self._recent[key] = place

    def zero(self, logical_length: int) -> None:
        """Add a block of zeros; nothing is stored."""
        self._add(BlockEntry(0, 0, logical_length, 0, NO_HASH))

    def parent(self, logical_length: int) -> None:
        """Add a block that the parent has at the same place; nothing is stored."""
        self._add(BlockEntry(PARENT_OFFSET, 0, logical_length, 0, NO_HASH))

    def _add(self, entry: BlockEntry) -> None:
        self._entries.append(entry)
        self._sizes[self._stream] += entry.logical_length
        if len(self._entries) == MAX_PAGE_ENTRIES:
            self._end_page()

    def _end_page(self) -> None:
        if not self._entries:
            return
        page = build_page(self._entries)
        record = PageRecord(self._position, len(page), self._blocks, self._page_start)
        self._pages[self._stream].append(record)
        self._write(page)
        self._blocks += len(self._entries)
        self._page_start = self._sizes[self._stream]
        self._entries = []

    def finish(self, metadata: bytes = b"") -> int:
        """Write the index, the metadata and at last the header; the file's size in bytes.

        Raises: HeaderError when the parents' paths do not fit the header.
        """
        self._end_page()
        index_offset = self._position
        main, aux = self._pages["disk"], self._pages["memory"]
        self._write(build_master_index(main, aux, self._sizes["disk"], self._sizes["memory"]))
        place = Section(self._position, len(metadata)) if metadata else None
        self._write(metadata)
        size = self._position
        header = Header(
            Variant.BC, self._block_size, index_offset, self._parents, self._dictionary, place, None, None,
            self._compression, bool(main), bool(aux), False, None,
        )  # fmt: skip
        self._file.seek(0)
        self._file.write(build_header(header))
        return size
