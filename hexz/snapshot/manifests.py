"""What metadata lists: read when somebody asks, and kept in bounded memory for all snapshots together."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from hexz.cache import ByteBudget, Once
from hexz.errors import SnapshotTooLarge
from hexz.format.header import Section
from hexz.format.metadata import MAX_FILES, MAX_METADATA, ArchivedFile, Listing, parse_listing
from hexz.storage import Storage

__all__ = ["ListingFacts", "Manifest", "Manifests", "read_metadata"]

log = logging.getLogger("hexz.snapshot")

MAX_PARSED = 2 * MAX_METADATA
"""Bytes of metadata that are looked through at once, each by a thread of its own."""
MAX_KEPT = MAX_FILES
"""Files in all lists that are kept; beyond it the list read longest ago goes, and is read again when it is wanted."""


class ListingFacts(NamedTuple):
    """What is kept of a listing for as long as the snapshot is open: how many files it has, None without a list."""

    files: int | None
    oddities: list[str]
    blocks_end: int | None


class Manifests:
    """The lists that are kept; shared by all snapshots."""

    def __init__(self) -> None:
        self.parsing = ByteBudget(MAX_PARSED)
        self._lock = threading.Lock()  # guards everything below
        self._kept: dict[Manifest, list[ArchivedFile]] = {}  # the one read longest ago comes first

    def find(self, manifest: Manifest) -> list[ArchivedFile] | None:
        """The files that `manifest` lists, if they are kept.  Takes no lock."""
        return self._kept.get(manifest)

    def keep(self, manifest: Manifest, files: list[ArchivedFile]) -> None:
        """Keep what `manifest` lists, and forget others until there is room."""
        with self._lock:
            self._kept[manifest] = files
            while sum(map(len, self._kept.values())) > MAX_KEPT:  # one list alone never is
                del self._kept[next(iter(self._kept))]

    def forget(self, manifest: Manifest) -> None:
        """The snapshot is closed."""
        with self._lock:
            self._kept.pop(manifest, None)


class Manifest:
    """What the metadata of one snapshot lists; every method may be called from any thread.

    All raise StorageError; and, but for `zeros_from`, SnapshotTooLarge when there is more metadata than is read.
    """

    def __init__(self, storage: Storage, place: Section | None, sizes: tuple[int, int], manifests: Manifests) -> None:
        """`place` is where the metadata lies; `sizes` are the bytes of the disk and the memory stream."""
        self._storage = storage
        self._place = place
        self._sizes = sizes
        self._manifests = manifests
        self._facts: Once[ListingFacts] = Once()

    def facts(self) -> ListingFacts:
        """What does not need the list itself."""
        return self._facts.get(self._find_facts)

    def files(self) -> list[ArchivedFile] | None:
        """The files that are listed and can be read; None when there is no list."""
        if self.facts().files is None:
            return None
        files = self._manifests.find(self)
        return self._read().files if files is None else files

    def zeros_from(self, end: int) -> bool:
        """Whether the file itself says that the blocks of its disk end at `end`, before the disk does.

        format.md section 7: a lost page looks the same, so nothing else is believed.
        """
        try:
            return self.facts().blocks_end == end
        except SnapshotTooLarge:
            return False

    def _find_facts(self) -> ListingFacts:
        listing = self._read()
        for oddity in listing.oddities:
            log.info("%s: %s", self._storage.name, oddity)
        count = None if listing.files is None else len(listing.files)
        return ListingFacts(count, listing.oddities, listing.blocks_end)

    def _read(self) -> Listing:
        length = 0 if self._place is None else self._place.length
        with self._manifests.parsing.taken(length):
            listing = parse_listing(read_metadata(self._storage, self._place), *self._sizes)
        if listing.files is not None:
            self._manifests.keep(self, listing.files)
        return listing

    def forget(self) -> None:
        """Let go of the memory."""
        self._manifests.forget(self)


def read_metadata(storage: Storage, place: Section | None) -> bytes:
    """The bytes at `place`; none without one.

    Raises: SnapshotTooLarge when they are more than `MAX_METADATA`; StorageError.
    """
    if place is None:
        return b""
    if place.length > MAX_METADATA:
        raise SnapshotTooLarge(storage.name, f"{place.length} bytes of metadata: at most {MAX_METADATA} are read")
    return storage.read(*place)
