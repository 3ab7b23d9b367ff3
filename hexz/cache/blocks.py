"""The block cache: bounded in bytes, lock-free on a hit, one decompression per missing block.

A reader keeps a reference to the `Block` itself and looks at its `data`: while it
is not None, that is a hit, with no table and no lock involved.  Eviction sets
`data` to None, and whoever still holds views of it keeps the bytes alive by them.

Which block goes is decided by the clock algorithm, an approximation of least
recently used that needs no bookkeeping on a hit: the hand passes blocks in the
order they came, spares those used since it last passed, and evicts the first
that was not.  Blocks that were made together lie in one piece of memory: as long as
most of them are used all of it stays; the few that outlive the others get memory of
their own.  `Block.fresh` is that mark turned round (True: not used yet), so
that a hit on a used block writes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence

from hexz.metrics.figures import CacheFigures

__all__ = ["EMPTY", "Block", "BlockCache", "Loading"]

SHORTAGE_S = 1.0
"""So long after memory was given back, nothing is loaded that nobody waits for: it would take that memory."""


class Block:
    """One decompressed block, or the place where one was."""

    __slots__ = ("ahead", "data", "fresh", "key", "shared")

    def __init__(self, key: Hashable, data: memoryview | None, fresh: bool = False, shared: bool = False) -> None:
        """`shared`: the data is a part of a longer piece of memory, with its neighbours."""
        self.key = key
        self.data = data
        self.fresh = fresh
        self.shared = shared
        self.ahead: Callable[[], None] | None = None

    def touch(self) -> None:
        """First use since the clock's hand passed: mark it, and let read-ahead go on.

        Two threads may both find `ahead`: a window is then queued twice, and made once.
        """
        self.fresh = False
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            ahead()


EMPTY = Block(None, None)
"""Stands where no block was loaded yet."""


class Loading:
    """A block that some thread is decompressing now; others wait at the gate."""

    __slots__ = ("block", "error", "gate", "key")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.gate = threading.Lock()
        self.gate.acquire()  # no time-out: it is new
        self.block: Block | None = None
        self.error: BaseException | None = None

    def done(self, data: bytes | memoryview, fresh: bool) -> Block:
        """The block is `data`, or a view of it and its neighbours: let the waiting go on."""
        block = self.block = Block(self.key, memoryview(data), fresh, isinstance(data, memoryview))
        self.gate.release()
        return block

    def failed(self, error: BaseException) -> None:
        """There is no block: everybody who waits gets `error`; without this call, the chance to make the block."""
        self.error = error


class BlockCache:
    """Blocks by key, `budget` bytes at most; shared by all snapshots and protocols."""

    def __init__(self, budget: int, help_out: Callable[[], bool] = lambda: False) -> None:
        """`help_out` does one piece of queued work, which never waits, and says whether there was one."""
        self.budget = budget
        self._help = help_out
        self._lock = threading.Lock()  # guards everything below; never held while a block is made
        self._table: dict[Hashable, Block] = {}
        self._hand: deque[list[Block]] = deque()  # blocks that share one piece of memory come and go together
        self._loading: dict[Hashable, Loading] = {}
        self._short_until = 0.0
        self._held = 0
        self._holdings: dict[int, tuple[int, int]] = {}
        self._loads = 0
        self._failures = 0
        self._waits = 0
        self._evictions = 0

    def find(self, key: Hashable) -> Block | None:
        """The block if it is in the cache.  Takes no lock."""
        return self._table.get(key)

    def claim(self, keys: Sequence[Hashable], claims: list[Loading | None]) -> None:
        """Put into `claims`, for each key, the duty to make its block; None if it is cached or another is at it.

        `settle` has to follow, also where this raises: there may be no memory for all of it.
        """
        with self._lock:
            for key in keys:
                claim = None if key in self._table or key in self._loading else Loading(key)
                claims.append(claim)
                if claim is not None:
                    self._loading[key] = claim

    def settle(self, claims: Iterable[Loading | None]) -> None:
        """Keep the blocks that were made, evicting others, and forget the duties.

        A block larger than the budget is not kept.
        """
        with self._lock:
            # First what needs no memory: whoever waits for a block would wait for good.
            for claim in claims:
                if claim is not None:
                    if self._loading.get(claim.key) is claim:
                        del self._loading[claim.key]
                    if claim.block is None:
                        claim.gate.release()
            together = []
            unmade = False
            for claim in claims:
                if claim is not None:
                    block = claim.block
                    if block is None or block.data is None:
                        self._failures += 1
                        unmade = True
                    elif block.shared:
                        together.append(block)
                    else:
                        self._keep([block])
            if unmade:  # of a part alone the rest would stay in memory uncounted
                for block in together:
                    if _stands_alone(block):
                        self._keep([block])
            elif together:
                self._keep(together)

    def _keep(self, blocks: list[Block]) -> None:
        # Called with the lock.
        self._loads += len(blocks)
        size = sum(len(block.data) for block in blocks if block.data is not None)
        if size > self.budget:
            return
        self._evict(self.budget - size)
        # Before the table has them: where there is no memory for that, they would never be evicted.
        self._hand.append(blocks)
        for block in blocks:
            length = len(block.data or b"")
            self._table[block.key] = block
            self._held += length
            self._hold(block.key, 1, length)

    def wait_for(self, key: Hashable) -> Block | None:
        """The block from the cache, or from the thread that is making it; None when neither has it.

        Raises: what making it raised.
        """
        with self._lock:
            block = self._table.get(key)
            loading = None if block is not None else self._loading.get(key)
            if loading is not None:
                self._waits += 1
        if loading is None:
            return block
        # While the block is being made elsewhere, do some of the work that is queued: it is likely needed next.
        while not loading.gate.acquire(blocking=False):
            if not self._help():
                loading.gate.acquire()  # no time-out: `settle` releases it, whatever happens to who makes it
                break
        loading.gate.release()
        if loading.error is not None:
            raise loading.error
        return loading.block

    def _evict(self, room: int) -> None:
        # Called with the lock.  Two rounds at most: the first clears every mark.
        # What is at the front leaves it last: where there is no memory for that, it is still in the hand.
        hand = self._hand
        while self._held > room and hand:
            blocks = hand[0]
            held = used = 0
            for block in blocks:
                held += block.data is not None
                used += block.data is not None and not block.fresh
            if 2 * used > held:
                for block in blocks:
                    block.fresh = True
                hand.rotate(-1)
                continue
            hand.popleft()
            for block in blocks:
                if block.data is not None and (block.fresh or not self._outlives(block)):
                    self._drop(block, block.data)
                    self._evictions += 1

    def _outlives(self, block: Block) -> bool:
        """Keep a block without its neighbours; False where there is no memory for that.  Called with the lock."""
        try:
            if not _stands_alone(block):
                return False
            self._hand.append([block])
        except MemoryError:
            return False
        block.fresh = True
        return True

    def _drop(self, block: Block, data: memoryview) -> None:
        if self._table.pop(block.key, None) is not None:  # else there was no memory to put it there
            self._held -= len(data)
            self._hold(block.key, -1, -len(data))
        block.data = None
        block.ahead = None

    def shrink(self) -> None:
        """Let go of half of what is held, as when the system has no memory to give."""
        with self._lock:
            self._short_until = time.monotonic() + SHORTAGE_S
            self._evict(self._held // 2)

    def clear(self) -> None:
        """Let go of all that is held, as when half of it was not enough."""
        with self._lock:
            self._short_until = time.monotonic() + SHORTAGE_S
            self._evict(0)

    def is_short_of_memory(self) -> bool:
        """Whether memory had to be given back a moment ago.  Takes no lock."""
        return time.monotonic() < self._short_until

    def forget(self, belongs: Callable[[Hashable], bool]) -> None:
        """Drop every block whose key `belongs`, as when a snapshot is closed."""
        with self._lock:
            for block in [block for key, block in self._table.items() if belongs(key)]:
                if block.data is not None:
                    self._drop(block, block.data)
            left = ([block for block in blocks if block.data is not None] for blocks in self._hand)
            self._hand = deque(blocks for blocks in left if blocks)

    def counts(self) -> CacheFigures:
        """The figures now, consistent with each other."""
        with self._lock:
            return CacheFigures(
                len(self._table),
                self._held,
                self.budget,
                self._loads,
                self._failures,
                self._waits,
                self._evictions,
            )

    def holdings(self) -> dict[int, tuple[int, int]]:
        """The blocks and bytes of each file that has any, by the number that its keys begin with."""
        with self._lock:
            return dict(self._holdings)

    def _hold(self, key: Hashable, blocks: int, size: int) -> None:
        # Called with the lock.
        if not isinstance(key, tuple):
            return
        file = key[0]
        had = self._holdings.get(file, (0, 0))
        now = had[0] + blocks, had[1] + size
        if now[0]:
            self._holdings[file] = now
        else:
            del self._holdings[file]


def _stands_alone(block: Block) -> bool:
    """See that a block keeps none of its neighbours in memory; False where there is none for that."""
    if block.shared and block.data is not None:
        try:
            block.data = memoryview(bytes(block.data))
        except MemoryError:
            return False
        block.shared = False
    return True
