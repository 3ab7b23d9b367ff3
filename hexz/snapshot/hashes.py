"""The data blocks of one file by their recorded hashes: how a thin snapshot finds what it has by content."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Collection
from typing import NamedTuple

from hexz.errors import CorruptSnapshot, SnapshotTooLarge
from hexz.format.digest import NO_HASH
from hexz.format.index import MAX_PAGE_ENTRIES, Page
from hexz.snapshot.pages import PageCache, PageTable
from hexz.units import format_size

__all__ = ["HashIndex", "FoundBlock"]

MAX_HASHED_PAGES = (1 << 32) // MAX_PAGE_ENTRIES
"""Pages of one file that can be searched by hash: a place in them fits 32 bits (4 billion blocks)."""

HASHED_ENTRY = 52
PLACE_SIZE = 8
_SALT = os.urandom(16)
MOST_BITS = 12
"""The places of a file's blocks lie in at most 2^12 arrays."""


class FoundBlock(NamedTuple):
    """A block that was found: the pages of its stream, its logical position and length in bytes."""

    pages: PageTable
    position: int
    length: int


class HashIndex:
    """The data blocks of one file by hash: sorted arrays of (32 bits of key, place), 8 bytes a block.

    The key is a hash of the recorded one that is salted anew in each process, also where PYTHONHASHSEED makes the
    interpreter's own foreseeable: no file can be made whose different hashes have equal keys, through which a search
    would have to walk.
    """

    def __init__(self, path: str, tables: Collection[PageTable], cache: PageCache) -> None:
        """Read every index page of the streams of the file at `path`.

        Raises: CorruptSnapshot, StorageError; SnapshotTooLarge when `cache` has no room for `cost` bytes.
        """
        pages = sum(len(table.records) for table in tables)
        if pages > MAX_HASHED_PAGES:
            raise CorruptSnapshot(path, f"{pages} index pages: too many to be searched by a thin child")
        blocks = sum(sum(table.records.lengths) // HASHED_ENTRY for table in tables)
        self.cost = blocks * PLACE_SIZE
        if not cache.has_room(self.cost):
            needed = format_size(self.cost)
            reason = f"to find its blocks by their hashes needs {needed} of memory: give a larger --cache-size"
            raise SnapshotTooLarge(path, reason)
        self._numbering: list[tuple[PageTable, int]] = []  # (pages of a stream, number of the first)
        # Each array has the keys that begin with the same bits, few enough to be sorted as a list that is soon gone.
        bits = min(pages.bit_length(), MOST_BITS)
        self._shift = shift = 64 - bits
        self._sorted = [array("Q") for _ in range(1 << bits)]
        append = [keys.append for keys in self._sorted]
        first = 0
        for table in tables:
            self._numbering.append((table, first))
            for number, page in enumerate(table.each(), first):
                for key in _page_keys(page, number):
                    append[key >> shift](key)
            first += len(table.records)
        for at, keys in enumerate(self._sorted):
            self._sorted[at] = array("Q", sorted(keys))

    def find(self, digest: bytes) -> FoundBlock | None:
        """The block whose recorded hash is `digest`, or None."""
        key = _key(digest)
        keys = self._sorted[key << 32 >> self._shift]
        at = bisect_left(keys, key << 32)
        while at < len(keys) and keys[at] >> 32 == key:
            number, entry = divmod(keys[at] & 0xFFFF_FFFF, MAX_PAGE_ENTRIES)
            table, first = next(item for item in reversed(self._numbering) if item[1] <= number)
            page = table.at(table.starts[number - first]).page
            if page.start != table.starts[number - first] or page.count <= entry:
                page = table.read(number - first)
            if page.hash(entry) == digest:
                return FoundBlock(table, page.block_start(entry), page.logical[entry])
            at += 1
        return None


def _key(digest: bytes) -> int:
    return hash(_SALT + digest) & 0xFFFF_FFFF


def _page_keys(page: Page, number: int) -> list[int]:
    base = number * MAX_PAGE_ENTRIES
    return [
        _key(digest) << 32 | base + entry
        for entry, (digest, stored) in enumerate(zip(page.hashes(), page.stored))
        if stored and digest != NO_HASH
    ]
