"""Stored bytes of remote files, kept on a local disk over restarts.

It is a cache and no more: nothing is synced, whatever is read back is checked, and a kill at any moment, a full disk,
damage, or somebody who deletes files while it runs lose what was kept and nothing else.  `cachedfile` reads and keeps,
`shelf` has the segments and what they take, `segments` their form, `pieces` the index, `cachefolder` the folder.
"""

from __future__ import annotations

import os

from hexz.errors import ConfigError
from hexz.metrics.figures import DiskCacheFigures
from hexz.storage.diskcache.cachedfile import CachedFile
from hexz.storage.diskcache.pieces import CELL, KeptPiece, PieceIndex, stored_length
from hexz.storage.diskcache.segments import SegmentHead, digest_of, scan_slots
from hexz.storage.diskcache.shelf import MAX_INDEX, Shelf
from hexz.storage.diskcache.tables import CacheEntry, Segment

__all__ = ["CachedFile", "DiskCache", "DiskCacheFigures"]

MIN_SIZE = 1 << 20
"""The smallest cache, bytes: in less, little but the heads of segments would find room."""


class DiskCache:
    """A cache of at most `size` bytes on the disk: heads, maps, folders and what is being written are counted.

    Memory: for the index of open files 24 bytes a piece and 256 for each MiB of a file with a piece in it, `MAX_INDEX`
    at most (48 MiB, which at 32 KiB a piece is enough for 50 GiB; with more, the least recently used go earlier);
    and some 500 bytes for each segment, of which there are 32,768 at most.
    """

    def __init__(self, folder: str, size: int) -> None:
        """Use `folder`, which is made if need be.

        Raises: ConfigError when it cannot be used, others could write to it, or another daemon uses it, and for
        less than `MIN_SIZE` bytes.
        """
        if size < MIN_SIZE:
            raise ConfigError(f"{folder}: a disk cache takes {MIN_SIZE} bytes at least, not {size}")
        self._shelf = Shelf(folder, size)

    def open(self, identity: str) -> CachedFile:
        """What there is of the file with this identity, which is written into the folder: it must have no secrets.

        The first handle reads the maps of what was kept; another one of the same identity shares everything.
        """
        shelf = self._shelf
        name = digest_of(identity).hex()[:40]
        with shelf.lock:
            stored = shelf.stored.setdefault(name, CacheEntry(name))
            stored.identity = identity
            stored.opens += 1
            if stored.index is None and not stored.segments:
                stored.index = PieceIndex()
            segments = list(stored.segments.values()) if stored.index is None else []
        if segments:
            self._load(stored, sorted(segments, key=lambda segment: segment.number))
        return CachedFile(shelf, stored)

    def _load(self, stored: CacheEntry, segments: list[Segment]) -> None:
        """Read the maps of these segments, the oldest first, so that the last record wins."""
        shelf, index = self._shelf, PieceIndex()
        for segment in segments:
            descriptor = shelf.use(segment) if index.cost <= MAX_INDEX else -1
            if descriptor < 0:
                continue
            try:
                self._scan(index, segment, descriptor)
            except OSError as error:
                shelf.fail(error)
            finally:
                shelf.release(segment)
        with shelf.lock:
            if stored.index is None:
                for segment in segments:
                    if segment.gone:
                        index.drop(segment.key, segment.cells)
                stored.index = index
                shelf.index_cost += index.cost
        shelf.evict_until(lambda: shelf.index_cost <= MAX_INDEX, of_open=True)
        shelf.evict_until(lambda: shelf.held <= shelf.size)

    def _scan(self, index: PieceIndex, segment: Segment, descriptor: int) -> None:
        """Put what is in a segment into an index.  Raises: OSError."""
        layout = segment.layout
        if layout is None:
            return
        slots, end = 0, layout.begin
        for slot, start, length, place in scan_slots(descriptor, SegmentHead(layout, segment.seed)):
            slots, end = slot + 1, max(end, place + stored_length(length))
            index.add(KeptPiece(start, start + length, segment.key, place))
            segment.remember(start // CELL)
        allocated = os.fstat(descriptor).st_blocks * 512
        with self._shelf.lock:
            self._shelf.scanned(segment, slots, end, allocated)

    def figures(self) -> DiskCacheFigures:
        """What is there, and what happened since the start."""
        shelf, counts = self._shelf, self._shelf.counts
        with shelf.lock:
            return DiskCacheFigures(
                files=sum(bool(stored.on_disk) for stored in shelf.stored.values()),
                held=shelf.held,
                budget=shelf.size,
                hits=counts.hits,
                hit_bytes=counts.hit_bytes,
                misses=counts.misses,
                written_bytes=counts.written,
                evicted_bytes=counts.evicted,
                damaged=counts.damaged,
                failures=counts.failures,
            )

    def close(self) -> None:
        """Read and write nothing any more, and give the folder back once what is under way is done; idempotent."""
        self._shelf.close()
