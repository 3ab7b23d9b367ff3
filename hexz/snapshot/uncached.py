"""Read a long span for one reader, past the cache: a backup of a whole disk must not push out what others read.

The blocks are decompressed by the reader's own thread into memory that is used
again and again, and so stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Generator

from hexz.format.index import Page
from hexz.snapshot.stream import Stream

__all__ = ["PIECE", "read_uncached"]

PIECE = 256 << 10
"""Bytes in one piece, to the end of the block in which these end; larger blocks are copied from the cache."""


def read_uncached(stream: Stream, offset: int, length: int) -> Generator[list[memoryview], None, None]:
    """The span, which lies within the stream, in pieces of at most twice `PIECE`; cached blocks come from the cache.

    Raises: BlockError, StorageError, CorruptSnapshot.
    """
    end = offset + length
    while offset < end:
        views = _piece(stream, offset, end)
        yield views
        offset += sum(len(view) for view in views)


def _piece(stream: Stream, offset: int, end: int) -> list[memoryview]:
    stop = min(offset + PIECE, end)
    if not stream.pages.records:
        return stream.read(offset, stop - offset)
    views: list[memoryview] = []
    batch = _Batch(stream, views)
    for loaded, number in stream.loader.between(offset, stop):
        page = loaded.page
        start, size = page.block_start(number), page.logical[number]
        first, last = max(offset - start, 0), min(size, end - start)
        data = loaded.slots[number].data
        if size > PIECE:
            last = min(last, stop - start)
            batch.finish()
            # A copy, since a view would keep the whole block in memory for as long as the piece is on its way.
            views.append(memoryview(b"".join(stream.read(start + first, last - first))))
        elif data is None and page.stored[number]:
            batch.add(page, number, first, last)
        else:
            batch.finish()
            views += [data[first:last]] if data is not None else stream.read(start + first, last - first)
    batch.finish()
    return views


class _Batch:
    """Neighbouring blocks that are decompressed together, onto the end of `views`."""

    def __init__(self, stream: Stream, views: list[memoryview]) -> None:
        self._loader = stream.loader
        self._views = views
        self._page: Page | None = None
        self._parts: list[tuple[int, int, int]] = []
        self._place = 0

    def add(self, page: Page, number: int, first: int, last: int) -> None:
        """Bytes `first` to `last` of a block; what is not stored behind the block before begins anew."""
        offset = page.stored_offset(number)
        if page is not self._page or offset != self._place:
            self.finish()
            self._page = page
        self._parts.append((number, first, last))
        self._place = offset + page.stored[number]

    def finish(self) -> None:
        """Decompress what was gathered."""
        parts, self._parts = self._parts, []
        if parts and self._page is not None:
            blocks = self._loader.decoded(self._page, [number for number, _, _ in parts])
            for (_, first, last), block in zip(parts, blocks):
                self._views.append(memoryview(block)[first:last])
