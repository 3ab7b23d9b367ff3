"""Runs of bytes of one kind, read off the index without touching a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from hexz.format.index import Page
from hexz.snapshot.lineage import Lineage
from hexz.snapshot.pages import PageTable

__all__ = ["DATA", "PARENT", "ZERO", "Effort", "Extent", "flat_extents", "own_extents"]

DATA = "data"
ZERO = "zero"
PARENT = "parent"
PAGE_COST = 256
"""What it takes to have a page before its blocks are looked at, in blocks."""


class Extent(NamedTuple):
    """`length` bytes from `start` on, all ``data``, all ``zero``, or all taken from a ``parent``."""

    start: int
    length: int
    kind: str


class Effort:
    """How many blocks of an index may still be looked at for one answer; it ends early where they are used up.

    A page that is looked at counts as all of its blocks, and as `PAGE_COST` more.
    """

    __slots__ = ("left", "watch")

    def __init__(self, blocks: int, watch: Callable[[], None] | None = None) -> None:
        """`watch` is called before each page; what it raises ends the work."""
        self.left = blocks
        self.watch = watch

    @property
    def spent(self) -> bool:
        """There is none left."""
        return self.left <= 0


def own_extents(
    pages: PageTable, lineage: Lineage, offset: int, length: int, effort: Effort | None = None
) -> Iterator[Extent]:
    """What the stream's own index says of [offset, offset + length), which lies in the stream.

    With an `effort` only so far as it goes, but at least to the end of a page.
    """
    return _coalesce(_own(pages, lineage, offset, length, effort))


def flat_extents(
    pages: PageTable, lineage: Lineage, offset: int, length: int, effort: Effort | None = None
) -> Iterator[Extent]:
    """The same with what parents supply looked up in them: only data and zero."""
    return _coalesce(_flat(pages, lineage, offset, length, effort))


def _own(pages: PageTable, lineage: Lineage, offset: int, length: int, effort: Effort | None) -> Iterator[Extent]:
    end = offset + length
    if length and not pages.records:
        yield Extent(offset, length, PARENT if lineage.parents else ZERO)
        return
    while offset < end:
        if effort is not None and effort.watch is not None:
            effort.watch()
        page = pages.at(offset).page
        if effort is not None:
            effort.left -= page.count + PAGE_COST
        stop = min(page.end, end)
        yield from _of_page(page, offset, stop)
        offset = stop
        if effort is not None and effort.spent:
            return


def _of_page(page: Page, offset: int, end: int) -> Iterator[Extent]:
    for first, after in page.runs(page.find(offset)):
        stop = min(page.block_start(after), end) if after < page.count else end
        if stop > offset:
            kind = DATA if page.stored[first] else PARENT if page.in_parent(first) else ZERO
            yield Extent(offset, stop - offset, kind)
            offset = stop
        if offset >= end:
            return


def _flat(pages: PageTable, lineage: Lineage, offset: int, length: int, effort: Effort | None) -> Iterator[Extent]:
    # A page at a time, so that what its parents say of it is looked at before the next one: an effort that is
    # spent has led somewhere then.
    for extent in _own(pages, lineage, offset, length, effort):
        if extent.kind != PARENT:
            yield extent
        elif pages.records and not lineage.is_same_place():
            # Blocks found by content are stored data wherever they lie.
            yield extent._replace(kind=DATA)
        else:
            position = extent.start
            lineage.ends_known(pages.name, extent.start + extent.length, wait=True)
            for parent, start, size in lineage.same_place(pages.name, extent.start, extent.length):
                if parent is None:
                    yield Extent(position, size, ZERO)
                else:
                    for inner in _flat(parent.tables[pages.name], parent, start, size, effort):
                        yield inner._replace(start=position + inner.start - start)
                    if effort is not None and effort.spent:
                        return
                position += size


def _coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    pending = None
    for extent in extents:
        if pending is not None and pending.kind == extent.kind:
            pending = Extent(pending.start, pending.length + extent.length, extent.kind)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending
