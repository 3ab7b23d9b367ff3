"""Spans of remote files: what is queued, on its way, or in memory; who needs a byte that somebody fetches waits for it.

What was fetched for one reader goes as soon as that reader has it: the block cache keeps what is made of it.  What was
fetched before anybody asked stays until it was used, or until others need the room.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

__all__ = ["FetchedSpan", "Memory", "Part", "SpanState", "SpanTable", "parted"]


MOST_SPENT = 8 << 20
"""Bytes that are kept a little longer than until they were used."""


class SpanState(Enum):
    """What became of a span so far."""

    QUEUED = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3


class FetchedSpan:
    """Bytes [start, end) of a file; `ahead`: fetched before anybody asked; `lasting`: read more than once."""

    __slots__ = ("ahead", "data", "end", "gate", "home", "lasting", "start", "state", "unused")

    def __init__(self, home: SpanTable, start: int, end: int, ahead: bool) -> None:
        self.home = home
        self.start = start
        self.end = end
        self.ahead = ahead
        self.lasting = False
        self.state = SpanState.QUEUED
        self.data: memoryview | None = None
        self.unused = end - start
        self.gate: threading.Event | None = None  # made by the first who waits


class Memory:
    """What all remote files keep in memory, `budget` bytes at most; and the lock of all their tables."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.lock = threading.Lock()  # guards every table and what follows; never held while bytes come or go
        self.held = 0
        self._order: OrderedDict[FetchedSpan, None] = OrderedDict()
        self._spent: deque[FetchedSpan] = deque()
        self._spent_bytes = 0

    def keep(self, span: FetchedSpan) -> None:
        """The span has its bytes; others go where they take too much room.  Called with the lock."""
        self.held += span.end - span.start
        self._order[span] = None
        while self.held > self.budget and len(self._order) > 1:
            self.drop(next(iter(self._order)))

    def retire(self, span: FetchedSpan) -> None:
        """All of the span was used: it goes soon, for who reads in many threads reads some bytes twice."""
        self._spent.append(span)
        self._spent_bytes += span.end - span.start
        while self._spent_bytes > min(MOST_SPENT, self.budget // 4):
            old = self._spent.popleft()
            self._spent_bytes -= old.end - old.start
            self.drop(old)

    def drop(self, span: FetchedSpan) -> None:
        """Let go of a span that has its bytes; whoever holds it still has them.  Called with the lock."""
        if span in self._order:
            del self._order[span]
            self.held -= span.end - span.start
            span.home.remove(span)


class SpanTable:
    """The spans of one file, which do not overlap.  Every method is called with the lock of `memory`."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.lock = memory.lock
        self._starts: list[int] = []
        self._spans: dict[int, FetchedSpan] = {}
        self.queued_bytes = 0

    def at(self, position: int) -> FetchedSpan | None:
        """The span that has this position."""
        place = bisect_right(self._starts, position) - 1
        span = self._spans[self._starts[place]] if place >= 0 else None
        return span if span is not None and position < span.end else None

    def free(self, position: int, low: int, high: int) -> tuple[int, int]:
        """How far no span is around `position`, which none has, within [low, high)."""
        place = bisect_right(self._starts, position)
        if place:
            low = max(low, self._spans[self._starts[place - 1]].end)
        if place < len(self._starts):
            high = min(high, self._starts[place])
        return low, high

    def gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of [start, stop) no span has."""
        found = []
        while start < stop:
            span = self.at(start)
            if span is not None:
                start = span.end
                continue
            end = self.free(start, start, stop)[1]
            found.append((start, end))
            start = end
        return found

    def add(self, start: int, stop: int, ahead: bool) -> FetchedSpan:
        """A new span, queued, where there is none."""
        span = FetchedSpan(self, start, stop, ahead)
        insort(self._starts, start)
        self._spans[start] = span
        self.queued_bytes += stop - start
        return span

    def begin(self, span: FetchedSpan) -> bool:
        """Take over what is queued: whoever gets True fetches it."""
        if span.state is not SpanState.QUEUED:
            return False
        span.state = SpanState.RUNNING
        self.queued_bytes -= span.end - span.start
        return True

    def done(self, span: FetchedSpan, data: memoryview) -> None:
        """The bytes are there."""
        span.data = data
        span.state = SpanState.DONE
        self.memory.keep(span)
        if span.gate is not None:
            span.gate.set()

    def failed(self, span: FetchedSpan) -> None:
        """There are none: whoever waits, or comes, tries for itself."""
        if span.state is SpanState.QUEUED:
            self.queued_bytes -= span.end - span.start
        span.state = SpanState.FAILED
        self.remove(span)
        if span.gate is not None:
            span.gate.set()

    def used(self, span: FetchedSpan, length: int) -> None:
        """So many bytes of a span that is done were taken; soon after the last it goes."""
        had, span.unused = span.unused, span.unused - length
        if had > 0 >= span.unused and not span.lasting:
            self.memory.retire(span)

    def held(self) -> int:
        """Bytes that are there."""
        return sum(span.end - span.start for span in self._spans.values() if span.state is SpanState.DONE)

    def remove(self, span: FetchedSpan) -> None:
        """Forget a span."""
        if self._spans.get(span.start) is span:
            del self._spans[span.start]
            del self._starts[bisect_left(self._starts, span.start)]

    def forget(self, start: int, stop: int) -> None:
        """Let go of every span that is there and has some of these bytes."""
        while start < stop:
            span = self.at(start)
            if span is not None and span.state is SpanState.DONE:
                self.memory.drop(span)
            start = self.free(start, start, stop)[1] if span is None else span.end

    def drop_queued(self) -> None:
        """Forget what nobody has begun to fetch."""
        for span in [span for span in self._spans.values() if span.state is SpanState.QUEUED]:
            self.failed(span)

    def clear(self) -> None:
        """Forget all that is queued or there; what is on its way is forgotten when it comes."""
        self.drop_queued()
        for span in list(self._spans.values()):
            self.memory.drop(span)


class Part(NamedTuple):
    """Of what is wanted, bytes [start, stop); `around` is all of what is lacking there, None where nothing is."""

    start: int
    stop: int
    around: tuple[int, int] | None


def parted(start: int, stop: int, lacking: Iterable[tuple[int, int]]) -> list[Part]:
    """[start, stop) from left to right, cut where what is `lacking` (sorted, apart) begins and ends."""
    parts = []
    for low, high in lacking:
        first, last = max(start, low), min(stop, high)
        if first >= last:
            continue
        if start < first:
            parts.append(Part(start, first, None))
        parts.append(Part(first, last, (low, high)))
        start = last
    if start < stop:
        parts.append(Part(start, stop, None))
    return parts
