"""Block status from the snapshot's index: which bytes are zeros, and which come from a parent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from hexz.protocol.nbd.constants import (
    BASE_ALLOCATION,
    CMD_FLAG_REQ_ONE,
    CONTEXT_IDS,
    MAX_DESCRIPTORS,
    STATE_FROM_PARENT,
    STATE_HOLE,
    STATE_ZERO,
)
from hexz.protocol.nbd.rules import NbdRequest
from hexz.snapshot import PARENT, ZERO, Effort, Extent, Stream

__all__ = ["describe"]

MAX_BLOCKS = 65536
"""Blocks of the index that are looked at for one context of a reply, to the end of a page: some milliseconds."""


def describe(
    stream: Stream, size: int, request: NbdRequest, contexts: tuple[str, ...]
) -> list[tuple[int, list[tuple[int, int]]]]:
    """For each context its id and (bytes, flags) of the extents of the request's span, from its offset on.

    The list may end before the span does: the client asks again from there (proto.md,
    "NBD_CMD_BLOCK_STATUS").  `size` is the export's, at least the stream's; the rest is zeros.
    Raises: CorruptSnapshot, StorageError.
    """
    most = 1 if request.flags & CMD_FLAG_REQ_ONE else MAX_DESCRIPTORS
    return [
        (CONTEXT_IDS[context], list(islice(_flags(stream, context, request.offset, request.length), most)))
        for context in contexts
    ]


def _flags(stream: Stream, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
    flat = context == BASE_ALLOCATION
    inside = max(min(length, stream.size - offset), 0)
    effort = Effort(MAX_BLOCKS)
    extents = stream.flat_extents(offset, inside, effort) if flat else stream.extents(offset, inside, effort)
    padding = length - inside
    end = offset
    for extent in extents:
        flags = _of(extent, flat)
        end = extent.start + extent.length
        if padding and end == stream.size and flags == _padding(flat):
            yield extent.length + padding, flags
            padding = 0
        else:
            yield extent.length, flags
    if padding and end == offset + inside:
        yield padding, _padding(flat)


def _of(extent: Extent, flat: bool) -> int:
    if flat:
        return STATE_HOLE | STATE_ZERO if extent.kind == ZERO else 0
    return STATE_FROM_PARENT if extent.kind == PARENT else 0


def _padding(flat: bool) -> int:
    return STATE_HOLE | STATE_ZERO if flat else 0
