"""What the parent entries of a thin snapshot mean, and where their bytes are (format.md section 8).

The writers used one kind of entry for two things.  *Same place*: the bytes are at
the same position of the parent's stream of the same name.  *Same content*: the
block with this hash is somewhere in the ancestors.  Which one a file means is
decided for the whole file, from all its entries, the first time that it matters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

from hexz.cache import Once
from hexz.errors import BlockError
from hexz.format.digest import NO_HASH
from hexz.format.index import Page
from hexz.snapshot.hashes import FoundBlock, HashIndex
from hexz.snapshot.pages import PageCache, PageTable
from hexz.snapshot.stored import StoredFile

__all__ = ["Lineage"]


class Lineage:
    """A file with the page tables of its streams, by their names, and the lineages of its parents.

    `generations` is the length of the longest chain of parents, itself included.
    """

    def __init__(
        self, file: StoredFile, tables: Mapping[str, PageTable], parents: Sequence[Lineage], cache: PageCache
    ) -> None:
        """`cache` has to have room for what is held beside pages."""
        self.file = file
        self.tables = tables
        self.parents = tuple(parents)
        self.generations: int = 1 + max((parent.generations for parent in parents), default=0)
        self._cache = cache
        self._hashes: Once[HashIndex] = Once()
        self._held = 0  # bytes of the hashes, until it is closed
        self._lock = threading.Lock()  # guards the settling only; readers look at _same_place_file
        self._same_place_file: bool | None = None  # written once

    def ancestors(self) -> Iterator[Lineage]:
        """Every parent and their parents, nearest first, each once."""
        seen: set[int] = set()
        level = list(self.parents)
        while level:
            following: list[Lineage] = []
            for one in level:
                if one.file.uid not in seen:
                    seen.add(one.file.uid)
                    yield one
                    following += one.parents
            level = following

    def hash_index(self) -> HashIndex:
        """The file's own data blocks by hash; the first call reads its whole index.

        Raises: CorruptSnapshot, StorageError, SnapshotTooLarge.
        """
        return self._hashes.get(self._make_hash_index)

    def _make_hash_index(self) -> HashIndex:
        index = HashIndex(self.file.path, self.tables.values(), self._cache)
        self._held += index.cost
        self._cache.hold(index.cost)
        return index

    def close(self) -> None:
        """Free the memory of the pages and of the hashes."""
        for table in self.tables.values():
            table.forget()
        self._cache.hold(-self._held)

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
        for table in self.tables.values():
            on_grid, inherits = True, False
            for page in table.each():
                on_grid = on_grid and _on_grid(page, self.file.header.block_size, table.size)
                if page.only_data():
                    continue
                for entry in range(page.count):
                    if page.in_parent(entry):
                        if self._says_same_place(page, entry):
                            return True
                        inherits = True
                        alike = alike and self._parent_has(table.name, page.block_start(entry), page.hash(entry))
            alike = alike and (on_grid or not inherits)
        return alike

    def _says_same_place(self, page: Page, entry: int) -> bool:
        if page.entry_size != 52:
            return True
        digest = page.hash(entry)
        if digest == NO_HASH:
            return True
        found = self._find(digest)
        return found is not None and found.length != page.logical[entry]

    def _parent_has(self, stream: str, position: int, digest: bytes) -> bool:
        """The entry that covers `position` in the parent which would supply it there is recorded with this hash."""
        for parent in self.parents:
            supplier = parent.tables.get(stream)
            if supplier is not None and position < supplier.size:
                if not supplier.records:
                    return False
                page = supplier.at(position).page
                return page.hash(page.find(position)) == digest
        return False

    def _find(self, digest: bytes) -> FoundBlock | None:
        for ancestor in self.ancestors():
            found = ancestor.hash_index().find(digest)
            if found is not None:
                return found
        return None

    def source(self, stream: str, position: int, length: int, digest: bytes) -> tuple[PageTable, int] | None:
        """Where the parent entry at `position` reads: an ancestor's stream and a position in it.

        None for the same place.
        Raises: BlockError when the content is nowhere in the ancestors.
        """
        if self.is_same_place():
            return None
        found = self._find(digest)
        if found is not None:
            return found.pages, found.position
        # A parent may itself only refer to the content, under its own rules: its entry here then says so.
        for parent in self.parents:
            inherited = parent.tables.get(stream)
            if inherited is None or not position < inherited.size or not inherited.records:
                continue
            page = inherited.at(position).page
            entry = page.find(position)
            if page.in_parent(entry) and page.hash(entry) == digest and page.logical[entry] == length:
                return inherited, page.block_start(entry)
        raise BlockError(self.file.path, stream, position, 0, f"its content {digest.hex()[:16]}... is in no parent")

    def ends_known(self, stream: str, end: int, wait: bool) -> bool:
        """Whether the size of every parent's stream of this name that ends before `end` has been confirmed.

        Past such an end there are other parents, or zeros: a wrong size would be wrong bytes.  With `wait` what
        is not confirmed yet is confirmed now.
        Raises: CorruptSnapshot, StorageError, only with `wait`.
        """
        for parent in self.parents:
            supplier = parent.tables.get(stream)
            if supplier is not None and supplier.size < end and not supplier.size_known(wait):
                return False
        return True

    def same_place(self, stream: str, offset: int, length: int) -> Iterator[tuple[Lineage | None, int, int]]:
        """The span cut by who supplies it: (a parent that has the stream, or None for zeros; position; bytes).

        The first parent whose stream of this name reaches a position supplies it.
        Raises: BlockError when the file names no parent at all, though its index wants one.
        """
        if not self.parents and self.tables[stream].records:
            raise BlockError(self.file.path, stream, offset, 0, "it lies in a parent, and the file names none")
        end = offset + length
        while offset < end:
            for parent in self.parents:
                supplier = parent.tables.get(stream)
                if supplier is not None and supplier.size > offset:
                    stop = min(end, supplier.size)
                    yield parent, offset, stop - offset
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
