"""Which blocks of an overlay are written, and where: an interval map from blocks to slots.

Memory grows with the number of runs, not with the size of the image: a zeroed
terabyte is one run.  Not thread-safe; `hexz.images.overlay.store` guards it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["ZERO_SLOT", "BlockMap", "BlockRun", "SlotRun", "Slots"]

ZERO_SLOT = (1 << 64) - 1
"""The slot of blocks that read as zeros and take no place in the data file."""


class BlockRun(NamedTuple):
    """`length` blocks from block `start` on, in as many slots from `slot` on, or all zero."""

    start: int
    length: int
    slot: int

    @property
    def end(self) -> int:
        """The block after the last one."""
        return self.start + self.length

    def cut(self, start: int, end: int) -> BlockRun:
        """The part that lies in [start, end), which it overlaps."""
        first = max(start, self.start)
        slot = self.slot if self.slot == ZERO_SLOT else self.slot + first - self.start
        return BlockRun(first, min(end, self.end) - first, slot)

    def goes_on_as(self, other: BlockRun) -> bool:
        """Whether `other` begins where this ends, in blocks and in slots."""
        if other.start != self.end:
            return False
        if ZERO_SLOT in (self.slot, other.slot):
            return self.slot == other.slot
        return other.slot == self.slot + self.length


class SlotRun(NamedTuple):
    """`length` slots of the data file from `slot` on."""

    slot: int
    length: int


class BlockMap:
    """Runs of written blocks, sorted, without overlaps, joined where they go on."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._runs: list[BlockRun] = []

    def __len__(self) -> int:
        """The number of runs."""
        return len(self._runs)

    def __iter__(self) -> Iterator[BlockRun]:
        return iter(self._runs)

    def within(self, start: int, end: int) -> list[BlockRun]:
        """The written runs of [start, end), cut to it."""
        first, last = self._overlapping(start, end)
        return [run.cut(start, end) for run in self._runs[first:last]]

    def first_after(self, block: int, end: int) -> BlockRun | None:
        """The first written run that ends after `block` and begins before `end`, cut to [block, end)."""
        first, last = self._overlapping(block, end)
        return self._runs[first].cut(block, end) if first < last else None

    def set(self, run: BlockRun) -> list[SlotRun]:
        """Map `run`; the slots that are now mapped no more."""
        first, last = self._overlapping(run.start, run.end)
        old = self._runs[first:last]
        freed = [
            SlotRun(part.slot, part.length)
            for part in (other.cut(run.start, run.end) for other in old)
            if part.slot != ZERO_SLOT
        ]
        fresh = [run]
        if old and old[0].start < run.start:
            fresh.insert(0, old[0].cut(0, run.start))
        if old and old[-1].end > run.end:
            fresh.append(old[-1].cut(run.end, old[-1].end))
        if first and self._runs[first - 1].goes_on_as(fresh[0]):
            first -= 1
            fresh.insert(0, self._runs[first])
        if last < len(self._runs) and fresh[-1].goes_on_as(self._runs[last]):
            fresh.append(self._runs[last])
            last += 1
        joined = fresh[:1]
        for part in fresh[1:]:
            if joined[-1].goes_on_as(part):
                joined[-1] = joined[-1]._replace(length=joined[-1].length + part.length)
            else:
                joined.append(part)
        self._runs[first:last] = joined
        self._starts[first:last] = [part.start for part in joined]
        return freed

    def growth(self, run: BlockRun) -> int:
        """At most how many runs there are more, or at least how many fewer, once `run` is set."""
        first, last = self._overlapping(run.start, run.end)
        old = self._runs[first:last]
        kept = bool(old) and (old[0].start < run.start) + (old[-1].end > run.end)
        return 1 + kept - len(old)

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._runs[first].end <= start:
            first += 1
        last = first
        if first < len(self._runs):
            last = max(first, bisect_right(self._starts, end - 1))
        return first, last


class Slots:
    """Which slots of the data file are free; grows at the end when none is."""

    def __init__(self, used: BlockMap) -> None:
        """All slots that `used` does not map, up to the highest one that it does, are free."""
        self._free: list[SlotRun] = []
        self.in_use = 0
        self.top = 0
        for slot, count in sorted((run.slot, run.length) for run in used if run.slot != ZERO_SLOT):
            if slot > self.top:
                self._free.append(SlotRun(self.top, slot - self.top))
            self.top = slot + count
            self.in_use += count

    def take(self, count: int) -> list[SlotRun]:
        """`count` slots, in as few runs as come to hand."""
        taken: list[SlotRun] = []
        self.in_use += count
        while count and self._free:
            run = self._free.pop()
            part = min(run.length, count)
            taken.append(SlotRun(run.slot, part))
            if part < run.length:
                self._free.append(SlotRun(run.slot + part, run.length - part))
            count -= part
        if count:
            taken.append(SlotRun(self.top, count))
            self.top += count
        return taken

    def withhold(self, top: int) -> list[SlotRun]:
        """Take all that is free, and what is not used of the slots below `top`."""
        runs, self._free = self._free, []
        if top > self.top:
            runs.append(SlotRun(self.top, top - self.top))
            self.top = top
        self.in_use += sum(run.length for run in runs)
        return runs

    def give_back(self, runs: list[SlotRun]) -> None:
        """Free `runs` for use again."""
        self._free += runs
        self.in_use -= sum(run.length for run in runs)
