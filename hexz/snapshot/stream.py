"""The hot path: a span of a stream as views of cached blocks.

`Stream.read_cached` is what every request runs: on a hit it takes no lock,
copies nothing, and looks at one page and one block.  Everything that has to
load, to wait or to ask a parent is in the slower methods below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

from hexz.cache import Block
from hexz.errors import OutOfMemory
from hexz.metrics.counters import waited
from hexz.snapshot import extents as extent_lists
from hexz.snapshot.context import OpenContext
from hexz.snapshot.extents import Effort, Extent
from hexz.snapshot.identity import digest_of
from hexz.snapshot.lineage import Lineage
from hexz.snapshot.loader import SHARED_BLOCK, BlockLoader
from hexz.snapshot.pages import LoadedPage, PageTable
from hexz.snapshot.readahead import FAR, NEAR, ReadAhead

__all__ = ["ZEROS", "Stream"]

Got = TypeVar("Got")

ZEROS = memoryview(bytes(1 << 20))
"""What every zero block is served from."""
SMALLEST_IO = 512
LARGEST_PREFERRED = 1 << 20
PIECE = 1 << 20
"""A long read is put together in pieces of this many bytes."""
COPIED_PART = 4
"""Of blocks too large to be shared, parts smaller than one of so many are copied."""
MAX_SOURCES = 65536
"""Blocks found in parents by their content whose place is remembered; beyond it all are forgotten."""


class Stream:
    """One byte stream of an open snapshot.  Every method may be called from any thread.

    `file`, `pages` and `lineage` are what it is read from.
    `etag` identifies its bytes.  By `former_etag` overlays and processes of earlier releases know them.
    """

    def __init__(
        self,
        pages: PageTable,
        lineage: Lineage,
        relatives: Mapping[PageTable, Stream],
        context: OpenContext,
    ) -> None:
        """`relatives` are the streams of all ancestors by their pages."""
        self.file = file = lineage.file
        self.pages = pages
        self.lineage = lineage
        self.name = pages.name
        self.size = pages.size
        self.block_size = _preferred(file.header.block_size)
        self.etag = f"{file.digest(self.name)}-1"
        self.former_etag = f"{digest_of(file.identity.former, self.name)}-1"
        self.cache_size = context.blocks.budget
        """Bytes of blocks, of all streams together, that stay in memory."""
        lane = context.lanes.of(file.storage.lane)
        self.loader = BlockLoader(file, pages, context.blocks, lane)
        self._loaded = pages.loaded
        self._blocks = context.blocks
        pace = NEAR if file.storage.lane is None else FAR
        largest = context.blocks.budget // 8
        self._readahead = ReadAhead(self.loader.ahead, self.loader.later, largest, pace, file.storage.reach)
        self._relatives = relatives
        self._sources: dict[int, tuple[Stream, int]] = {}
        self._recent: LoadedPage | None = None

    @property
    def first_parent(self) -> Stream | None:
        """The stream of this name of the first parent, where what the file has not is looked for first."""
        pages = self.lineage.parents[0].tables.get(self.name) if self.lineage.parents else None
        return None if pages is None else self._relatives[pages]

    def known_as(self, etag: str) -> bool:
        """Whether `etag`, which was recorded some time, means these bytes."""
        return etag in (self.etag, self.former_etag)

    def read_cached(self, offset: int, length: int) -> list[memoryview] | None:
        """Views that tile [offset, offset + length) exactly, or None when some block is not in memory.

        The span lies within the stream and is not empty: the caller has checked that.
        Does no I/O, takes no lock and never waits.
        """
        page = self._recent
        if page is None or not page.start <= offset < page.end:
            page = self._page_if_loaded(offset)
            if page is None:
                return None
        if page.uniform:
            number, skip = divmod(offset - page.start, page.uniform)
        else:
            number = page.page.find(offset)
            skip = offset - page.starts[number]
        block = page.slots[number]
        data = block.data
        if data is None:
            return self._gather(offset, length, wait=False)
        if block.fresh:
            block.touch()
        end = skip + length
        if end <= len(data):
            return [data[skip:end]]
        return self._gather(offset, length, wait=False)

    def read(self, offset: int, length: int) -> list[memoryview]:
        """Views that tile [offset, offset + length) exactly, decompressing what is missing.

        The span lies within the stream and is not empty.  Several missing blocks are
        decompressed in parallel.  Where there is no memory for them the cache gives back half, then all.
        Raises: BlockError, StorageError, CorruptSnapshot, OutOfMemory; nothing else is served then.
        """
        try:
            views = self.read_cached(offset, length)
        except MemoryError:
            views = None  # what follows gives memory back
        if views is not None:
            return views
        try:
            return self._read_cold(offset, length)
        except MemoryError:
            self._blocks.shrink()
        return self._with_less(self._read_cold, offset, length)

    def _with_less(self, work: Callable[[int, int], Got], offset: int, length: int) -> Got:
        """Do the work once more, where the cache gave back half for it, and once more where it gives back all.

        The second time is needed: what the allocator got back from one thread's blocks it may not give another's.
        Raises: as `work` does; OutOfMemory.
        """
        with suppress(MemoryError):
            return work(offset, length)
        self._blocks.clear()  # only here, for the error held on to what was put together until it came
        try:
            return work(offset, length)
        except MemoryError:
            raise OutOfMemory from None

    def _read_cold(self, offset: int, length: int) -> list[memoryview]:
        views = self._gather(offset, length, wait=True)
        assert views is not None
        return views

    def load(self, offset: int, length: int) -> None:
        """Get what a span lacks into the cache, where a `read` soon after finds it; no views are put together.

        A block larger than the whole cache is only checked.
        Raises: as `read` does.
        """
        try:
            return self._load(offset, length)
        except MemoryError:
            self._blocks.shrink()
        return self._with_less(self._load, offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """Queue the decompression of a span and return at once; what finds no room is left out."""
        self.loader.ahead(offset, min(length, self._blocks.budget // 2, self.size - offset), None)

    def extents(self, offset: int, length: int, effort: Effort | None = None) -> Iterator[Extent]:
        """The span as runs of ``data``, ``zero`` and ``parent``, coalesced and without gaps; index only.

        With an `effort` the list may end before the span does, where that is spent.
        Raises: CorruptSnapshot, StorageError.
        """
        return extent_lists.own_extents(self.pages, self.lineage, offset, length, effort)

    def flat_extents(self, offset: int, length: int, effort: Effort | None = None) -> Iterator[Extent]:
        """The same with parents looked through: only ``data`` and ``zero``.

        Raises: CorruptSnapshot, StorageError.
        """
        return extent_lists.flat_extents(self.pages, self.lineage, offset, length, effort)

    def _page_if_loaded(self, offset: int) -> LoadedPage | None:
        if not self._loaded:
            return None
        page = self._loaded[self.pages.number_at(offset)]
        if page is not None:
            page.used = True
            self._recent = page
        return page

    def _gather(self, offset: int, length: int, wait: bool) -> list[memoryview] | None:
        """The general read, block by block; without `wait` it gives up (None) where it would have to load."""
        if not self._loaded:
            # A stream with a size and no page reads as its parent, else as zeros (format.md section 7).
            return self._same_place(offset, length, wait)
        if not wait:
            return self._views(offset, offset + length, wait)
        views: list[memoryview] = []
        for start, stop in self._pieces(offset, length):
            self._load_missing(start, stop)
            part = self._views(start, stop, wait)
            assert part is not None
            views += part
        return views

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The span in pieces that surely fit the cache: what was loaded for one is still there when it is read."""
        end = offset + length
        piece = max(min(PIECE, self._blocks.budget // 4), 1)
        for start in range(offset, end, piece):
            yield start, min(start + piece, end)

    def _views(self, offset: int, end: int, wait: bool) -> list[memoryview] | None:
        views: list[memoryview] = []
        while offset < end:
            page = self.pages.at(offset) if wait else self._page_if_loaded(offset)
            if page is None:
                return None
            number = page.page.find(offset)
            while offset < end and number < page.page.count:
                start = page.page.block_start(number)
                stop = min(start + page.page.logical[number], end)
                if stop > offset:
                    part = self._part(page, number, offset - start, stop - offset, wait)
                    if part is None:
                        return None
                    views += part
                    offset = stop
                number += 1
        return views

    def _part(self, page: LoadedPage, number: int, skip: int, length: int, wait: bool) -> list[memoryview] | None:
        """`length` bytes of one block from `skip` on."""
        block = page.slots[number]
        data = block.data
        if data is None and page.page.stored[number]:
            found = self.loader.load(page, number) if wait else self._blocks.find(self.loader.key(page.page, number))
            if found is None:
                return None
            block, data = found, found.data
            if data is None:  # evicted between the look and here
                return self._part(page, number, skip, length, wait) if wait else None
        if data is not None:
            if block.fresh:
                block.touch()
            part = data[skip : skip + length]
            # A view keeps the whole block in memory for as long as a slow client takes for it.
            return [memoryview(bytes(part))] if len(data) > max(SHARED_BLOCK, COPIED_PART * length) else [part]
        if page.page.in_parent(number):
            return self._from_parent(page, number, skip, length, wait)
        if page.page.logical[number] <= len(ZEROS):
            page.slots[number] = Block(None, ZEROS[: page.page.logical[number]])
        return _zeros(length)

    def _load(self, offset: int, length: int) -> None:
        if not self._loaded:
            return self._load_same_place(offset, length)
        if self._load_lone(offset, length):
            return None
        for first, last in self._pieces(offset, length):
            self._load_missing(first, last)
            for page, number in self.loader.between(first, last):
                if page.page.stored[number]:
                    if page.slots[number].data is None:
                        self.loader.load(page, number)  # waits for who is at it
                elif page.page.in_parent(number):
                    start = page.page.block_start(number)
                    at = max(first, start)
                    self._load_from_parent(page, number, at - start, min(start + page.page.logical[number], last) - at)

    def _load_lone(self, offset: int, length: int) -> bool:
        """What `_load` does, for a span within one stored block, which is what random reads want; False for others."""
        page = self.pages.at(offset)
        index = page.page
        number = index.find(offset)
        start = index.block_start(number)
        if not index.stored[number] or offset + length > start + index.logical[number]:
            return False
        if page.slots[number].data is None:
            if self._blocks.find(self.loader.key(page.page, number)) is None:
                waited.size += length
                self._readahead.missed(start, start + index.logical[number])
            self.loader.load(page, number)
        return True

    def _load_from_parent(self, page: LoadedPage, number: int, skip: int, length: int) -> None:
        start = page.page.block_start(number)
        source = self._sources.get(start) or self._find_source(page, number)
        if source is None:
            self._load_same_place(start + skip, length)
        else:
            source[0].load(source[1] + skip, length)

    def _load_same_place(self, offset: int, length: int) -> None:
        self.lineage.ends_known(self.name, offset + length, wait=True)
        for parent, start, size in self.lineage.same_place(self.name, offset, length):
            if parent is not None:
                self._relatives[parent.tables[self.name]].load(start, size)

    def _load_missing(self, offset: int, end: int) -> None:
        """Decompress what a span lacks, together with the workers, and let read-ahead know."""
        runs = self.loader.missing(offset, end)
        if not runs:
            return
        waited.size += sum(min(run.end, end) - max(run.start, offset) for run in runs)
        self.loader.will_need(runs)
        self.loader.share(runs[1:])
        self._readahead.missed(runs[0].start, runs[-1].end)
        for run in runs:
            self.loader.load_run(run, fresh=False)

    def _from_parent(
        self, page: LoadedPage, number: int, skip: int, length: int, wait: bool
    ) -> list[memoryview] | None:
        lineage = self.lineage
        if not wait and not lineage.parents:
            return None
        start = page.page.block_start(number)
        if lineage.settled and lineage.is_same_place():
            return self._same_place(start + skip, length, wait)
        source = self._sources.get(start)
        if source is None:
            if not wait:
                return None
            source = self._find_source(page, number)
            if source is None:
                return self._same_place(start + skip, length, wait)
        stream, position = source
        return stream.read(position + skip, length) if wait else stream.read_cached(position + skip, length)

    def _find_source(self, page: LoadedPage, number: int) -> tuple[Stream, int] | None:
        """Where the content of a block is in an ancestor, to be remembered; None when it is at the same place."""
        start = page.page.block_start(number)
        found = self.lineage.source(self.name, start, page.page.logical[number], page.page.hash(number))
        if found is None:
            return None
        if len(self._sources) >= MAX_SOURCES:
            self._sources.clear()
        source = self._sources[start] = self._relatives[found[0]], found[1]
        return source

    def _same_place(self, offset: int, length: int, wait: bool) -> list[memoryview] | None:
        """A span of the first parent whose stream of this name reaches it; zeros past all of them."""
        lineage = self.lineage
        if not lineage.ends_known(self.name, offset + length, wait):
            return None
        views: list[memoryview] = []
        for parent, start, size in lineage.same_place(self.name, offset, length):
            if parent is None:
                views += _zeros(size)
                continue
            stream = self._relatives[parent.tables[self.name]]
            part = stream.read(start, size) if wait else stream.read_cached(start, size)
            if part is None:
                return None
            views += part
        return views


def _zeros(length: int) -> list[memoryview]:
    whole, rest = divmod(length, len(ZEROS))
    return [ZEROS] * whole + ([ZEROS[:rest]] if rest else [])


def _preferred(block_size: int) -> int:
    """A sensible I/O size: the power of two at or below the nominal block size, 512 bytes to 1 MiB."""
    capped = min(max(block_size, SMALLEST_IO), LARGEST_PREFERRED)
    return 1 << (capped.bit_length() - 1)
