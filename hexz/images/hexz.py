"""Streams of snapshots as read-only images; their extents come from the index alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from hexz.catalog import Lease
from hexz.format.digest import NO_HASH
from hexz.images.backend import Abilities, Backend, ImageExtent, Session
from hexz.snapshot import PARENT, ZERO, Effort, Extent, Stream
from hexz.snapshot.uncached import read_uncached

__all__ = ["HexzBackend", "HexzSession", "OpenStream", "dirty_extents", "zero_extents"]

LONG = 1 << 20
"""Bytes from which on a read may go past the cache."""
PLACES = threading.BoundedSemaphore(32)
"""Readers that do so at once; 16 MiB in all."""
STEP = 65536
"""Blocks of an index that are looked at between two extents at most: some ten milliseconds."""
OpenStream = Callable[[], "tuple[Lease, Stream]"]
"""A lease of a snapshot and one of its streams."""


class HexzBackend(Backend):
    """The stream that `open_stream` gives."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._open_stream = open_stream

    def open(self, writing: bool = False) -> Session:
        """A session that holds a lease of the snapshot."""
        return HexzSession(*self._open_stream())


class HexzSession(Session):
    """A leased stream, which is there as `stream` for a server that has a better way to send it."""

    def __init__(self, lease: Lease, stream: Stream) -> None:
        self._lease = lease
        self.metrics = lease.metrics
        self.stream = stream
        self.size = stream.size
        self.block_size = stream.block_size
        self.etag = stream.etag
        self.abilities = Abilities(dirty=stream.file.thin)

    def read(self, offset: int, length: int) -> Generator[Sequence[memoryview], None, None]:
        """The span in pieces, decompressed for this reader alone."""
        return read_uncached(self.stream, offset, length)

    @contextlib.contextmanager
    def passing(self, length: int) -> Iterator[bool]:
        """Whether to `read` so many bytes rather than through the stream, whose blocks then fill the cache.

        So many, of so large an image, would push out of it what others read.  Where a reader may do so is
        counted, since it holds a piece of up to half a MiB.
        """
        large = length >= LONG and self.stream.size > self.stream.cache_size // 2
        if not (large and PLACES.acquire(blocking=False)):
            yield False
            return
        try:
            yield True
        finally:
            PLACES.release()

    def extents(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        """Zeros looked through to the parents; dirty is what the parent does not have at the same place."""
        if not dirty or not self.abilities.dirty:
            return zero_extents(self.stream, offset, length)
        return dirty_extents(self.stream, offset, length)

    def close(self) -> None:
        """Give the lease back."""
        self._lease.release()


def _in_steps(extents: Callable[[int, int, Effort], Iterator[Extent]], offset: int, length: int) -> Iterator[Extent]:
    """The extents, cut where `STEP` blocks were looked at: whoever takes them gets to do something else in between."""
    end = offset + length
    while offset < end:
        for extent in extents(offset, end - offset, Effort(STEP)):
            yield extent
            offset = extent.start + extent.length


def zero_extents(stream: Stream, offset: int, length: int) -> Iterator[ImageExtent]:
    """The span as runs of zeros and of data, which count as dirty."""
    for start, size, kind in _in_steps(stream.flat_extents, offset, length):
        yield ImageExtent(start, size, kind == ZERO)


def dirty_extents(stream: Stream, offset: int, length: int) -> Iterator[ImageExtent]:
    """The same cut where bytes surely are those of the first parent at the same place: these are clean."""
    first = stream.first_parent
    for start, size, kind in _in_steps(stream.extents, offset, length):
        parts: Iterator[tuple[int, int, bool]]
        if first is None or kind not in (PARENT, ZERO):
            parts = iter([(start, size, True)])
        elif kind == ZERO:
            parts = _still_zero(first, start, size)
        elif not stream.pages.records or stream.lineage.is_same_place():
            clean = max(0, min(size, first.size - start))
            parts = iter([(start, clean, False), (start + clean, size - clean, True)])
        else:
            parts = _by_content(stream, first, start, size)
        for at, part, dirty in parts:
            if part:
                for extent in zero_extents(stream, at, part):
                    yield extent._replace(dirty=dirty)


def _still_zero(first: Stream, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(start, length, dirty) of zeros: clean where `first` has zeros too."""
    known = max(0, min(length, first.size - offset))
    if known:
        for start, size, kind in _in_steps(first.flat_extents, offset, known):
            yield start, size, kind != ZERO
    yield offset + known, length - known, True


def _by_content(stream: Stream, first: Stream, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(start, length, dirty) of blocks that parents have by their content: clean if `first` has it just there."""
    end = offset + length
    while offset < end:
        page = stream.pages.at(offset).page
        for number in range(page.find(offset), page.count):
            start = page.block_start(number)
            stop = min(start + page.logical[number], end)
            if stop > offset:
                yield offset, stop - offset, not _has(first, start, page.logical[number], page.hash(number))
                offset = stop
            if offset >= end:
                break


def _has(stream: Stream, start: int, length: int, digest: bytes) -> bool:
    """The stream has a block of this hash just there."""
    if start >= stream.size or not stream.pages.records or digest in (b"", NO_HASH):
        return False
    page = stream.pages.at(start).page
    number = page.find(start)
    same_span = page.block_start(number) == start and page.logical[number] == length
    return same_span and page.hash(number) == digest
