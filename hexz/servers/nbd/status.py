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
from hexz.protocol.nbd.rules import Request
from hexz.snapshot import PARENT, ZERO, Extent, Stream

__all__ = ["describe"]

MAX_BLOCKS = 65536
"""Blocks of the nominal size that one reply covers at most: what can be looked up in well under a second."""


def describe(
    stream: Stream, size: int, request: Request, contexts: tuple[str, ...]
) -> list[tuple[int, list[tuple[int, int]]]]:
    """For each context its id and (bytes, flags) of the extents of the request's span, from its offset on.

    The list may end before the span does: the client asks again from there (proto.md,
    "NBD_CMD_BLOCK_STATUS").  `size` is the export's, at least the stream's; the rest is zeros.
    Raises: CorruptSnapshot, StorageError.
    """
    most = 1 if request.flags & CMD_FLAG_REQ_ONE else MAX_DESCRIPTORS
    length = min(request.length, MAX_BLOCKS * stream.block_size)
    return [
        (CONTEXT_IDS[context], list(islice(_flags(stream, context, request.offset, length), most)))
        for context in contexts
    ]


def _flags(stream: Stream, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
    flat = context == BASE_ALLOCATION
    inside = max(min(length, stream.size - offset), 0)
    extents = stream.flat_extents(offset, inside) if flat else stream.extents(offset, inside)
    padding = length - inside
    for extent in extents:
        flags = _of(extent, flat)
        if padding and extent.start + extent.length == stream.size and flags == _padding(flat):
            yield extent.length + padding, flags
            padding = 0
        else:
            yield extent.length, flags
    if padding:
        yield padding, _padding(flat)


def _of(extent: Extent, flat: bool) -> int:
    if flat:
        return STATE_HOLE | STATE_ZERO if extent.kind == ZERO else 0
    return STATE_FROM_PARENT if extent.kind == PARENT else 0


def _padding(flat: bool) -> int:
    return STATE_HOLE | STATE_ZERO if flat else 0
