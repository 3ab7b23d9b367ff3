"""What the parent entries of a thin snapshot mean, and where their bytes are (format.md section 8).

The writers used one kind of entry for two things.  *Same place*: the bytes are at
the same position of the parent's stream of the same name.  *Same content*: the
block with this hash is somewhere in the ancestors.  Which one a file means is
decided for the whole file, from all its entries, the first time that it matters.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hexz.errors import BlockError, CorruptSnapshot, SnapshotTooLarge
from hexz.format.index import MAX_PAGE_ENTRIES, Page
from hexz.units import format_size

if TYPE_CHECKING:
    from hexz.snapshot.snapshot import Snapshot
    from hexz.snapshot.stream import Stream

__all__ = ["HashIndex", "Lineage"]

NO_HASH = bytes(32)
MAX_HASHED_PAGES = (1 << 32) // MAX_PAGE_ENTRIES
"""Pages of one file that can be searched by hash: a place in them fits 32 bits (4 billion blocks)."""

HASHED_ENTRY = 52
PLACE_SIZE = 8
_SALT = os.urandom(16)
MOST_BITS = 12
"""The places of a file's blocks lie in at most 2^12 arrays."""


class FoundBlock(NamedTuple):
    """A stored block: its stream, logical position and length in bytes."""

    stream: Stream
    position: int
    length: int


class HashIndex:
    """The data blocks of one file by hash: sorted arrays of (32 bits of key, place), 8 bytes a block.

    The key is a hash of the recorded one that is salted anew in each process, also where PYTHONHASHSEED makes the
    interpreter's own foreseeable: no file can be made whose different hashes have equal keys, through which a search
    would have to walk.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        """Read every index page of `snapshot`.

        Raises: CorruptSnapshot, StorageError; SnapshotTooLarge when there is no room for `cost` bytes.
        """
        pages = sum(len(stream.pages.records) for stream in snapshot.streams.values())
        if pages > MAX_HASHED_PAGES:
            raise CorruptSnapshot(snapshot.path, f"{pages} index pages: too many to be searched by a thin child")
        blocks = sum(sum(stream.pages.records.lengths) // HASHED_ENTRY for stream in snapshot.streams.values())
        self.cost = blocks * PLACE_SIZE
        if not snapshot.context.pages.has_room(self.cost):
            needed = format_size(self.cost)
            reason = f"to find its blocks by their hashes needs {needed} of memory: give a larger --cache-size"
            raise SnapshotTooLarge(snapshot.path, reason)
        self._numbering: list[tuple[Stream, int]] = []  # (stream, number of its first page)
        # Each array has the keys that begin with the same bits, few enough to be sorted as a list that is soon gone.
        bits = min(pages.bit_length(), MOST_BITS)
        self._shift = shift = 64 - bits
        self._sorted = [array("Q") for _ in range(1 << bits)]
        append = [keys.append for keys in self._sorted]
        first = 0
        for stream in snapshot.streams.values():
            self._numbering.append((stream, first))
            for number, page in enumerate(stream.pages.each(), first):
                for key in _page_keys(page, number):
                    append[key >> shift](key)
            first += len(stream.pages.records)
        for at, keys in enumerate(self._sorted):
            self._sorted[at] = array("Q", sorted(keys))

    def find(self, digest: bytes) -> FoundBlock | None:
        """The block whose recorded hash is `digest`, or None."""
        key = _key(digest)
        keys = self._sorted[key << 32 >> self._shift]
        at = bisect_left(keys, key << 32)
        while at < len(keys) and keys[at] >> 32 == key:
            number, entry = divmod(keys[at] & 0xFFFF_FFFF, MAX_PAGE_ENTRIES)
            stream, first = next(item for item in reversed(self._numbering) if item[1] <= number)
            page = stream.pages.at(stream.pages.starts[number - first]).page
            if page.start != stream.pages.starts[number - first] or page.count <= entry:
                page = stream.pages.read(number - first)
            if page.hash(entry) == digest:
                return FoundBlock(stream, page.block_start(entry), page.logical[entry])
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


class Lineage:
    """The parents of one snapshot, as its parent entries need them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()  # guards the settling only; readers look at _same_place_file
        self._same_place_file: bool | None = None  # written once

    @property
    def settled(self) -> bool:
        """Whether `is_same_place` answers without reading the index."""
        return self._same_place_file is not None

    def is_same_place(self) -> bool:
        """The file's parent entries mean positions, not contents.  The first call reads whole indexes.

        Raises: CorruptSnapshot, StorageError.
        """
        if self._same_place_file is None:
            settled = self._decide()
            with self._lock:
                self._same_place_file = settled
        return self._same_place_file

    def _decide(self) -> bool:
        # Rule 2 of format.md section 8.  What has a parent's blocks where the parent has them reads alike either way,
        # unless the parent's blocks begin elsewhere than the child's: hence the last test.
        alike = True
        for stream in self._snapshot.streams.values():
            on_grid, inherits = True, False
            for page in stream.pages.each():
                on_grid = on_grid and _on_grid(page, self._snapshot.header.block_size, stream.size)
                if page.only_data():
                    continue
                for entry in range(page.count):
                    if page.in_parent(entry):
                        if self._says_same_place(page, entry):
                            return True
                        inherits = True
                        alike = alike and self._parent_has(stream.name, page.block_start(entry), page.hash(entry))
            alike = alike and (on_grid or not inherits)
        return alike

    def _says_same_place(self, page: Page, entry: int) -> bool:
        if page.entry_size != 52:
            return True
        digest = page.hash(entry)
        if digest == NO_HASH:
            return True
        place = self._find(digest)
        return place is not None and place.length != page.logical[entry]

    def _parent_has(self, stream: str, position: int, digest: bytes) -> bool:
        """The entry that covers `position` in the parent which would supply it there is recorded with this hash."""
        for parent in self._snapshot.parents:
            supplier = parent.streams.get(stream)
            if supplier is not None and position < supplier.size:
                if not supplier.pages.records:
                    return False
                page = supplier.pages.at(position).page
                return page.hash(page.find(position)) == digest
        return False

    def _find(self, digest: bytes) -> FoundBlock | None:
        for ancestor in self._snapshot.ancestors():
            place = ancestor.hash_index().find(digest)
            if place is not None:
                return place
        return None

    def source(self, stream: str, position: int, length: int, digest: bytes) -> tuple[Stream, int] | None:
        """Where the parent entry at `position` reads: a stream and a position in it; None for the same place.

        Raises: BlockError when the content is nowhere in the ancestors.
        """
        if self.is_same_place():
            return None
        place = self._find(digest)
        if place is not None:
            return place.stream, place.position
        # A parent may itself only refer to the content, under its own rules: its entry here then says so.
        for parent in self._snapshot.parents:
            inherited = parent.streams.get(stream)
            if inherited is None or not position < inherited.size or not inherited.pages.records:
                continue
            page = inherited.pages.at(position).page
            entry = page.find(position)
            if page.in_parent(entry) and page.hash(entry) == digest and page.logical[entry] == length:
                return inherited, page.block_start(entry)
        raise BlockError(
            self._snapshot.path, stream, position, 0, f"its content {digest.hex()[:16]}... is in no parent"
        )

    def ends_known(self, stream: str, end: int, wait: bool) -> bool:
        """Whether the size of every parent's stream of this name that ends before `end` has been confirmed.

        Past such an end there are other parents, or zeros: a wrong size would be wrong bytes.  With `wait` what
        is not confirmed yet is confirmed now.
        Raises: CorruptSnapshot, StorageError, only with `wait`.
        """
        for parent in self._snapshot.parents:
            supplier = parent.streams.get(stream)
            if supplier is not None and supplier.size < end and not supplier.size_known(wait):
                return False
        return True

    def same_place(self, stream: str, offset: int, length: int) -> Iterator[tuple[Stream | None, int, int]]:
        """The span cut by who supplies it: (stream of a parent, or None for zeros; position; bytes).

        The first parent whose stream of this name reaches a position supplies it.
        Raises: BlockError when the file names no parent at all, though its index wants one.
        """
        if not self._snapshot.parents and self._snapshot.streams[stream].pages.records:
            raise BlockError(self._snapshot.path, stream, offset, 0, "it lies in a parent, and the file names none")
        end = offset + length
        while offset < end:
            for parent in self._snapshot.parents:
                supplier = parent.streams.get(stream)
                if supplier is not None and supplier.size > offset:
                    stop = min(end, supplier.size)
                    yield supplier, offset, stop - offset
                    break
            else:
                stop = end
                yield None, offset, stop - offset
            offset = stop


def _on_grid(page: Page, block_size: int, size: int) -> bool:
    """Every block of the page has `block_size` bytes, but for a shorter one at the stream's end at `size`."""
    return page.logical.count(block_size) == page.count or all(
        length == block_size or (length < block_size and page.block_start(number) + length == size)
        for number, length in enumerate(page.logical)
    )
