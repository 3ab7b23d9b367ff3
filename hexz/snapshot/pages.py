"""Index pages, loaded when a position in them is first needed and kept in bounded memory."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from hexz.cache import EMPTY, Block
from hexz.errors import CorruptSnapshot
from hexz.format.errors import DamagedIndex
from hexz.format.index import Page, parse_page
from hexz.format.records import RECORD_SIZE, PageRecords
from hexz.snapshot.stored import StoredFile

__all__ = ["LoadedPage", "PageCache", "PageTable"]

SLOT_COST = 8
RECORD_COST = RECORD_SIZE + 8
"""Bytes of memory that each page of an open snapshot takes, loaded or not: its record, and its place in the table."""
LISTED_PAGES = 16384
"""Up to so many pages a stream's positions are kept as a list too, in which a position is found a little faster."""


class LoadedPage:
    """A page and, for each of its blocks, the `Block` that was last seen for it.

    `start`, `end`, `uniform` and `starts` are the page's own, copied here because
    every read looks at them.
    """

    __slots__ = ("cost", "end", "home", "number", "page", "slots", "start", "starts", "uniform", "used")

    def __init__(self, page: Page, number: int, home: list[LoadedPage | None]) -> None:
        self.page = page
        self.number = number
        self.home = home
        self.start = page.start
        self.end = page.end
        self.uniform = page.uniform
        self.starts = page.starts
        self.slots: list[Block] = [EMPTY] * page.count
        self.used = True
        self.cost = page.cost + SLOT_COST * page.count


class PageCache:
    """Loaded pages of all streams, `budget` bytes at most, evicted by the clock algorithm."""

    def __init__(self, budget: int, lasting: int | None = None) -> None:
        """`lasting` bounds what open snapshots hold for as long as they are open, bytes: lists of pages and of hashes.

        By default it is `budget`.  What is held is not there for loaded pages, for which a quarter of `budget` is left.
        """
        self.budget = budget
        self._most_lasting = budget if lasting is None else lasting
        self._lasting = 0
        self._lock = threading.Lock()  # guards everything below
        self._hand: deque[LoadedPage] = deque()
        self.held = 0

    def add(self, page: LoadedPage) -> None:
        """Publish `page` in its stream's table and evict others until the budget holds again."""
        with self._lock:
            page.home[page.number] = page
            self._hand.append(page)
            self.held += page.cost
            room = max(self.budget - self._lasting, self.budget // 4)
            while self.held > room and len(self._hand) > 1:
                old = self._hand.popleft()
                if old.used:
                    old.used = False
                    self._hand.append(old)
                    continue
                if old.home[old.number] is old:
                    old.home[old.number] = None
                self.held -= old.cost

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may be held for an open snapshot."""
        return self._lasting + size <= self._most_lasting

    def hold(self, size: int) -> None:
        """An open snapshot holds so many bytes more; fewer, if negative."""
        with self._lock:
            self._lasting += size

    def forget(self, home: list[LoadedPage | None]) -> None:
        """Drop every page of one stream's table."""
        with self._lock:
            kept = [page for page in self._hand if page.home is not home]
            self._hand = deque(kept)
            self.held = sum(page.cost for page in kept)
            home[:] = [None] * len(home)


class PageTable:
    """The pages of one stream by logical position."""

    def __init__(
        self,
        file: StoredFile,
        name: str,
        size: int,
        records: PageRecords,
        blocks_end: int,
        cache: PageCache,
        zeros_from: Callable[[int], bool],
        entry_sizes: Sequence[int],
    ) -> None:
        """`name` and `size` (bytes) are the stream's, whose blocks end at `blocks_end`: there too, in most files.

        `zeros_from` says whether the stream, whose last block ends at a position, has only zeros from there on.

        `entry_sizes` are those that pages may have, bytes.
        """
        self.name = name
        self.size = size
        self.records = records
        positions = records.positions
        self.starts: Sequence[int] = positions.tolist() if len(positions) <= LISTED_PAGES else positions
        self.loaded: list[LoadedPage | None] = [None] * len(records)
        self._storage = file.storage
        self._blocks_end = blocks_end
        self._index_offset = file.header.index_offset
        self._cache = cache
        self.zeros_from = zeros_from
        self._entry_sizes = entry_sizes
        self._lasting = len(records) * RECORD_COST
        self._size_known = not records or not size  # set once
        cache.hold(self._lasting)

    def size_known(self, wait: bool) -> bool:
        """Whether the last index page has confirmed the size; with `wait` that page is read now if need be.

        Raises: CorruptSnapshot, StorageError, only with `wait`.
        """
        if wait and not self._size_known:
            self.at(self.size - 1)
            self._size_known = True
        return self._size_known

    def number_at(self, position: int) -> int:
        """The number of the page that covers `position`, which lies in the stream."""
        return bisect_right(self.starts, position) - 1

    def at(self, position: int) -> LoadedPage:
        """The page that covers `position`, from the cache or read now.

        Raises: CorruptSnapshot, StorageError.
        """
        number = bisect_right(self.starts, position) - 1
        page = self.loaded[number]
        if page is None:
            page = LoadedPage(self.read(number), number, self.loaded)
            self._cache.add(page)
        else:
            page.used = True
        return page

    def read(self, number: int) -> Page:
        """Page `number` straight from the file, not kept.

        Raises: CorruptSnapshot, StorageError.
        """
        record = self.records[number]
        last = number + 1 == len(self.starts)
        end = self._blocks_end if last else self.starts[number + 1]
        zeros_from = self.zeros_from if last else None
        tries = 1 if self._storage.lane is None else 2
        while True:
            tries -= 1
            raw = self._storage.read(record.offset, record.length)
            try:
                return parse_page(raw, record, end, self._index_offset, zeros_from, self._entry_sizes)
            except DamagedIndex as error:
                self._storage.forget(record.offset, record.length)
                if not tries:
                    reason = f"index page {number} at {record.offset}: {error}"
                    raise CorruptSnapshot(self._storage.name, reason) from None

    def each(self) -> Iterator[Page]:
        """Every page in order, each read when its turn comes and not kept."""
        for number in range(len(self.records)):
            page = self.loaded[number]
            yield self.read(number) if page is None else page.page

    def forget(self) -> None:
        """Drop the loaded pages, as when the snapshot is closed."""
        self._cache.forget(self.loaded)
        self._cache.hold(-self._lasting)
        self._lasting = 0
