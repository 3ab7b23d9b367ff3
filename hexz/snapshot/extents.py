"""Runs of bytes of one kind, read off the index without touching a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from hexz.format.index import Page

if TYPE_CHECKING:
    from hexz.snapshot.stream import Stream

__all__ = ["DATA", "PARENT", "ZERO", "Extent", "flat_extents", "own_extents"]

DATA = "data"
ZERO = "zero"
PARENT = "parent"


class Extent(NamedTuple):
    """`length` bytes from `start` on, all ``data``, all ``zero``, or all taken from a ``parent``."""

    start: int
    length: int
    kind: str


def own_extents(stream: Stream, offset: int, length: int) -> Iterator[Extent]:
    """What the stream's own index says of [offset, offset + length), which lies in the stream."""
    return _coalesce(_own(stream, offset, length))


def flat_extents(stream: Stream, offset: int, length: int) -> Iterator[Extent]:
    """The same with what parents supply looked up in them: only data and zero."""
    return _coalesce(_flat(stream, offset, length))


def _own(stream: Stream, offset: int, length: int) -> Iterator[Extent]:
    end = offset + length
    if length and not stream.pages.records:
        yield Extent(offset, length, PARENT if stream.snapshot.parents else ZERO)
        return
    while offset < end:
        page = stream.pages.at(offset).page
        stop = min(page.end, end)
        if page.only_data():
            yield Extent(offset, stop - offset, DATA)
        else:
            yield from _of_page(page, offset, stop)
        offset = stop


def _of_page(page: Page, offset: int, end: int) -> Iterator[Extent]:
    number = page.find(offset)
    while offset < end:
        stop = min(page.block_start(number) + page.logical[number], end)
        if stop > offset:
            kind = DATA if page.stored[number] else PARENT if page.in_parent(number) else ZERO
            yield Extent(offset, stop - offset, kind)
            offset = stop
        number += 1


def _flat(stream: Stream, offset: int, length: int) -> Iterator[Extent]:
    lineage = stream.snapshot.lineage
    for extent in own_extents(stream, offset, length):
        if extent.kind != PARENT:
            yield extent
        elif stream.pages.records and not lineage.is_same_place():
            # Blocks found by content are stored data wherever they lie.
            yield extent._replace(kind=DATA)
        else:
            position = extent.start
            lineage.ends_known(stream.name, extent.start + extent.length, wait=True)
            for parent, start, size in lineage.same_place(stream.name, extent.start, extent.length):
                if parent is None:
                    yield Extent(position, size, ZERO)
                else:
                    for inner in _flat(parent, start, size):
                        yield inner._replace(start=position + inner.start - start)
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
