"""Getting stored blocks into the cache: one at a time for who waits, in runs for everybody else.

A run is a few neighbouring blocks, read with one ``pread`` and decompressed one
after the other by one thread, so that threads hand the interpreter to each other
per run and not per block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple, Optional

from hexz.cache import Block, BlockCache, Loading
from hexz.errors import BlockError, HexzError
from hexz.format.errors import BlockDamage
from hexz.format.index import Page
from hexz.snapshot.lanes import Lane
from hexz.snapshot.pages import LoadedPage, PageTable
from hexz.snapshot.stored import StoredFile
from hexz.storage.interface import Around

__all__ = ["BlockLoader", "Run"]

RUN_BYTES = 256 << 10
"""Logical bytes of a run that somebody waits for, unless its first block alone is larger."""
AHEAD_RUN_BYTES = 1 << 20
"""The same for a run that nobody waits for yet."""
SHARED_BLOCK = 1 << 20
"""Larger blocks are found in the cache alone, never by their page: who reads little of one gets a copy of that."""
NEIGHBOURS = 8
"""Blocks on each side of what is read of which a server's answer may have some, too."""
MAX_LOOKED_AT = 4096
"""Most index entries that one read-ahead step looks at."""

Use = Optional[Callable[[], None]]


class Run(NamedTuple):
    """Blocks `first` to `stop` (exclusive) of a page: stored one behind the other, and not cached when looked at."""

    page: LoadedPage
    first: int
    stop: int

    @property
    def start(self) -> int:
        """Logical position of the first byte."""
        return self.page.page.block_start(self.first)

    @property
    def end(self) -> int:
        """Logical position after the last byte."""
        return self.page.page.block_start(self.stop - 1) + self.page.page.logical[self.stop - 1]


def _stored_span(run: Run) -> tuple[int, int]:
    page, last = run.page.page, run.stop - 1
    return page.stored_offset(run.first), page.stored_offset(last) + page.stored[last]


class BlockLoader:
    """The stored blocks of one stream, on their way into the cache."""

    def __init__(self, file: StoredFile, pages: PageTable, blocks: BlockCache, lane: Lane) -> None:
        """`pages` are the stream's; `lane` has the threads that work ahead."""
        self._file = file
        self._checks_hashes = file.checks_hashes
        self._name = pages.name
        self._size = pages.size
        self._pages = pages
        self._blocks = blocks
        self._workers = lane.workers
        self._scouts = lane.scouts
        self._decoding = lane.decoding
        self._far = file.storage.lane is not None
        self._slot_limit = min(SHARED_BLOCK, self._blocks.budget)

    def key(self, index: Page, number: int) -> tuple[int | bytes, ...]:
        """The key in the cache of a block of a page.

        Equal blocks share one stored copy, and so one place in the cache; the other
        fields keep contradicting entries for one copy apart.  Encrypted blocks differ
        by their number.  A block that was right by one recorded hash need not be so by another.
        """
        key: tuple[int | bytes, ...] = (
            self._file.uid,
            index.stored_offset(number),
            index.stored[number],
            index.logical[number],
            index.crc[number],
            index.first_block + number if self._file.encrypted else 0,
        )
        return (*key, index.hash(number)) if self._checks_hashes else key

    def load(self, page: LoadedPage, number: int) -> Block:
        """The block, decompressed here or by whoever is at it already.

        Raises: BlockError, StorageError.
        """
        key = self.key(page.page, number)
        while True:
            block = self._blocks.wait_for(key)
            if block is None:
                made = self.load_run(Run(page, number, number + 1), fresh=False)
                block = made[0] if made else None
            if block is not None:
                if page.page.logical[number] <= self._slot_limit and self._blocks.find(key) is block:
                    page.slots[number] = block
                return block

    def load_run(self, run: Run, fresh: bool, use: Use = None) -> list[Block]:
        """Decompress the run's blocks, leaving out those that another thread is at; those made.

        `fresh` says that nobody waits for them; `use` runs when somebody uses the first made, or now where none was.
        Raises: BlockError, StorageError; blocks before the bad one are kept.
        """
        numbers = range(run.first, run.stop)
        keys = [self.key(run.page.page, number) for number in numbers]
        claims: list[Loading | None] = []
        duties: list[tuple[int, Loading]] = []
        made: list[Block] = []
        try:
            self._blocks.claim(keys, claims)
            duties = [(number, claim) for number, claim in zip(numbers, claims) if claim is not None]
            if duties:
                self._decode(run.page.page, duties, fresh, made)
        except MemoryError:
            raise  # it is no block's fault: who waits for one tries for itself
        except BaseException as error:
            # Of a run only the first that was not made is at fault: who waits for another block tries that one alone.
            unmade = duties[len(made) :]
            if unmade and (isinstance(error, BlockError) or len(unmade) == 1):
                unmade[0][1].failed(error)
            raise
        finally:
            if made:
                made[0].ahead = use
            self._blocks.settle(claims)
            if made:
                self._file.counts.heat.note(self._name, run.start, run.end)
        if self._far and use is not None and not made:
            use()  # whoever was faster uses it
        for (number, _), block in zip(duties, made):
            data = block.data  # once: another thread may evict it at any moment
            if data is not None and len(data) <= self._slot_limit and self._blocks.find(block.key) is block:
                run.page.slots[number] = block
        return made

    def _decode(self, page: Page, duties: list[tuple[int, Loading]], fresh: bool, made: list[Block]) -> None:
        for (_, claim), data in zip(duties, self.decoded(page, [number for number, _ in duties])):
            made.append(claim.done(data, fresh))

    def decoded(self, page: Page, numbers: Sequence[int]) -> Iterator[bytes | memoryview]:
        """The bytes of these blocks of a page, which are stored one behind the other but for gaps; not from the cache.

        Those that could be decoded in one call share one piece of memory, and are views of it.

        Waits while other threads decompress as many bytes as all may at once.
        Raises: BlockError, StorageError.
        """
        first, last = numbers[0], numbers[-1]
        base = page.stored_offset(first)
        length = page.stored_offset(last) + page.stored[last] - base
        with self._decoding.taken(2 * length + sum(map(page.logical.__getitem__, numbers))):
            around = partial(self._around, page, numbers[0], numbers[-1]) if self._far else None
            if self._file.first_reads is not None:
                self._file.first_reads.note(base, length)
            stored = memoryview(self._file.storage.view(base, length, around))
            decode, checked, hashed = self._file.decode, self._file.checked, self._checks_hashes
            plain = self._together(page, numbers, stored)
            for place, number in enumerate(numbers):
                at = page.stored_offset(number) - base
                raw = stored[at : at + page.stored[number]]
                try:
                    # No name for the block: the next one would be decoded while that still holds it.
                    yield checked(
                        plain[place]
                        if place < len(plain)
                        else decode(raw, page.logical[number], page.crc[number], page.first_block + number),
                        page.hash(number) if hashed else b"",
                    )
                except BlockDamage as damage:
                    yield self._decoded_anew(page, number, damage)

    def _decoded_anew(self, page: Page, number: int, damage: BlockDamage) -> bytes | memoryview:
        """A block that was found damaged, once more from its server: what lies between may have done it.

        Raises: BlockError, StorageError.
        """
        offset, length = page.stored_offset(number), page.stored[number]
        storage, decode = self._file.storage, self._file.decode
        if self._far:
            storage.forget(offset, length)
            raw = memoryview(storage.view(offset, length))
            try:
                return self._file.checked(
                    decode(raw, page.logical[number], page.crc[number], page.first_block + number),
                    page.hash(number) if self._checks_hashes else b"",
                )
            except BlockDamage as still:
                damage = still
                storage.forget(offset, length)
        where = page.block_start(number)
        raise BlockError(self._file.path, self._name, where, offset, str(damage)) from None

    def _together(self, page: Page, numbers: Sequence[int], stored: memoryview) -> list[memoryview]:
        """The first of these blocks, as many as are equally long, decoded in one call; none where that cannot be."""
        length = page.logical[numbers[0]]
        count = next((at for at, number in enumerate(numbers) if page.logical[number] != length), len(numbers))
        if count < 2:
            return []
        base = page.stored_offset(numbers[0])
        spans = [(page.stored_offset(number) - base, page.stored[number]) for number in numbers[:count]]
        return self._file.decode_run(stored, spans, length, [page.crc[number] for number in numbers[:count]]) or []

    def missing(self, offset: int, end: int) -> list[Run]:
        """The runs of stored blocks of a span that are not in the cache."""
        return list(self._runs(self._absent(self.between(offset, end)), RUN_BYTES))

    def _absent(self, blocks: Iterator[tuple[LoadedPage, int]]) -> Iterator[tuple[LoadedPage, int]]:
        for page, number in blocks:
            if (
                page.page.stored[number]
                and page.page.logical[number] <= self._blocks.budget  # else it would be gone before it is used
                and page.slots[number].data is None
                and self._blocks.find(self.key(page.page, number)) is None
            ):
                yield page, number

    @staticmethod
    def _runs(blocks: Iterator[tuple[LoadedPage, int]], most: int) -> Iterator[Run]:
        run: Run | None = None
        size = place = 0
        for page, number in blocks:
            index = page.page
            offset = index.stored_offset(number)
            size += index.logical[number]
            if run is not None and page is run.page and number == run.stop and offset == place and size <= most:
                run = Run(page, run.first, number + 1)
            else:
                if run is not None:
                    yield run
                run = Run(page, number, number + 1)
                size = index.logical[number]
            place = offset + index.stored[number]
        if run is not None:
            yield run

    def between(self, offset: int, end: int) -> Iterator[tuple[LoadedPage, int]]:
        """(page, number) of every block that has a part in [offset, end)."""
        while offset < end:
            page = self._pages.at(offset)
            for number in range(page.page.find(offset), page.page.count):
                if offset >= end:
                    return
                yield page, number
                offset = page.page.block_start(number) + page.page.logical[number]

    def _around(self, page: Page, first: int, last: int) -> Around:
        """The blocks that are stored right before and behind those of a run, up to the next that are in the cache."""
        before, met_before = self._beside(page, range(first - 1, max(first - NEIGHBOURS, 0) - 1, -1), first)
        behind, met_behind = self._beside(page, range(last + 1, min(last + 1 + NEIGHBOURS, page.count)), last)
        return Around(before, behind, met_before, met_behind)

    def _beside(self, page: Page, numbers: range, beside: int) -> tuple[list[int], bool]:
        """Where these blocks end, or begin if they lie before, while they touch; whether a block met is cached."""
        found: list[int] = []
        stored, back = page.stored, numbers.step < 0
        place = page.stored_offset(beside) + (0 if back else stored[beside])
        for number in numbers:
            length = stored[number]
            if not length:
                continue
            start = page.stored_offset(number)
            if start + (length if back else 0) != place:
                break
            if self._blocks.find(self.key(page, number)) is not None:
                return found, True
            place = start if back else start + length
            found.append(place)
        return found, False

    def will_need(self, runs: Sequence[Run]) -> None:
        """Let what is far away know that these runs are going to be loaded, if it is more than one."""
        if self._far and len(runs) > 1:
            self._file.storage.will_need(map(_stored_span, runs))

    def share(self, runs: list[Run]) -> None:
        """Offer runs that this thread is going to need to the workers, the last first: they meet in the middle."""
        for run in reversed(runs):
            if not self._workers.offer(self._task(run, None)):
                return

    def ahead(self, position: int, length: int, use: Use) -> int | None:
        """Queue about `length` stored bytes from `position` on; where that ends, or None when nothing is left to do.

        `use` runs when somebody uses the first of them.
        """
        if not self._workers.count or not self._pages.records or position >= self._size:
            return None
        wanted: list[tuple[LoadedPage, int]] = []
        try:
            for page, number in islice(self.between(position, self._size), MAX_LOOKED_AT):
                if length <= 0:
                    break
                if page.page.stored[number]:
                    wanted.append((page, number))
                    length -= page.page.logical[number]
        except HexzError as error:
            # A damaged page ahead is no trouble of whoever reads here.
            self._file.note_failure(error)
        if not wanted:
            return None
        first = self._blocks.find(self.key(wanted[0][0].page, wanted[0][1]))
        if first is not None and use is not None:
            first.ahead = use
            first.fresh = True
            use = None
        runs = list(self._runs(self._absent(iter(wanted)), AHEAD_RUN_BYTES))
        if self._far:
            self._file.storage.will_need(map(_stored_span, runs))
        for run in runs:
            if not self._workers.offer(self._task(run, use, counted=True)):
                break
            use = None
        page, number = wanted[-1]
        return page.page.block_start(number) + page.page.logical[number]

    def later(self, action: Callable[[], None]) -> None:
        """Have another thread do `action`, whose trouble is nobody's; not at all while they have enough to do."""
        self._scouts.offer(self._favour(action))

    def _task(self, run: Run, use: Use, counted: bool = False) -> Callable[[], None]:
        """The work of loading a run; `counted` when nobody is known to need it yet."""

        def load() -> None:
            began = time.perf_counter()
            made = self.load_run(run, fresh=True, use=use)
            if made and counted:
                size = sum(len(data) for data in (block.data for block in made) if data is not None)
                self._file.counts.ahead.add(len(made), size, time.perf_counter() - began)

        return self._favour(load)

    def _favour(self, action: Callable[[], None]) -> Callable[[], None]:
        """`action` without what it raises: nobody waits for it, and whoever needs the same is told of the trouble."""

        def work() -> None:
            if self._blocks.is_short_of_memory():
                return
            try:
                action()
            except HexzError as error:
                self._file.note_failure(error)
            except MemoryError:
                self._blocks.shrink()
            except Exception as error:
                self._file.note_bug(error)

        return work
