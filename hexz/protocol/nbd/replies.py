"""Requests and replies of the transmission phase, in the three forms that can be negotiated.

Simple replies carry a header and the data.  Structured replies come in chunks, and
extended ones are the same with 64-bit lengths (proto.md, "Transmission phase").
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Union

from hexz.protocol.nbd.constants import (
    CHUNK_BLOCK_STATUS,
    CHUNK_BLOCK_STATUS_EXT,
    CHUNK_ERROR,
    CHUNK_ERROR_OFFSET,
    CHUNK_FLAG_DONE,
    CHUNK_NONE,
    CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
)
from hexz.protocol.nbd.layouts import CHUNK, ERROR, HOLE, U32, U64

__all__ = [
    "EXTENDED_DATA",
    "REQUEST",
    "REQUEST_FORMS",
    "SIMPLE_REPLY",
    "STRUCTURED_DATA",
    "Buffer",
    "ChunkedReplies",
    "simple_error",
]

Buffer = Union[bytes, memoryview]

REQUEST = struct.Struct(">IHHQQI")
"""magic, command flags, type, cookie, offset, length"""
EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
REQUEST_FORMS = {False: (REQUEST, REQUEST_MAGIC), True: (EXTENDED_REQUEST, EXTENDED_REQUEST_MAGIC)}
"""Whether extended headers were negotiated -> the layout of a request, and what it begins with"""
SIMPLE_REPLY = struct.Struct(">IIQ")
"""magic, error, cookie"""
_EXTENDED_CHUNK = struct.Struct(">IHHQQQ")
STRUCTURED_DATA = struct.Struct(">IHHQIQ")
"""magic, chunk flags, type, cookie, length of what follows, offset of the data"""
EXTENDED_DATA = struct.Struct(">IHHQQQQ")
"""magic, chunk flags, type, cookie, offset of the request, length of what follows, offset of the data"""
_STATUS = struct.Struct(">II")
_EXTENDED_STATUS = struct.Struct(">QQ")
MAX_MESSAGE = 1024


def simple_error(error: int, cookie: int) -> bytes:
    """A simple reply that says no."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


class ChunkedReplies:
    """Builds structured replies, or extended ones when they were negotiated."""

    def __init__(self, extended: bool) -> None:
        self.extended = extended

    def _head(self, flags: int, kind: int, cookie: int, length: int, offset: int) -> bytes:
        if self.extended:
            return _EXTENDED_CHUNK.pack(EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length)
        return CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)

    def data_head(self, cookie: int, request_offset: int, offset: int, length: int, done: bool) -> bytes:
        """What comes before `length` bytes of data at `offset`."""
        flags = CHUNK_FLAG_DONE if done else 0
        if self.extended:
            return EXTENDED_DATA.pack(
                EXTENDED_REPLY_MAGIC, flags, CHUNK_OFFSET_DATA, cookie, request_offset, length + 8, offset
            )
        return STRUCTURED_DATA.pack(STRUCTURED_REPLY_MAGIC, flags, CHUNK_OFFSET_DATA, cookie, length + 8, offset)

    def hole(self, cookie: int, request_offset: int, offset: int, length: int, done: bool) -> bytes:
        """`length` zeros at `offset`, which need not be sent."""
        flags = CHUNK_FLAG_DONE if done else 0
        head = self._head(flags, CHUNK_OFFSET_HOLE, cookie, HOLE.size, request_offset)
        return head + HOLE.pack(offset, length)

    def data_and_holes(
        self, cookie: int, request_offset: int, at: int, views: Sequence[memoryview], last: bool, zeros: object
    ) -> list[Buffer]:
        """Chunks for the data from `at` on: views of the object `zeros` become holes, others are sent.

        `last` says that the reply ends here.
        """
        buffers: list[Buffer] = []
        number = 0
        while number < len(views):
            hole = views[number].obj is zeros
            length = 0
            start = number
            while number < len(views) and (views[number].obj is zeros) is hole:
                length += len(views[number])
                number += 1
            done = last and number == len(views)
            if hole:
                buffers.append(self.hole(cookie, request_offset, at, length, done))
            else:
                buffers.append(self.data_head(cookie, request_offset, at, length, done))
                buffers += views[start:number]
            at += length
        return buffers

    def done(self, cookie: int, request_offset: int) -> bytes:
        """Success without content."""
        return self._head(CHUNK_FLAG_DONE, CHUNK_NONE, cookie, 0, request_offset)

    def error(self, error: int, message: str, cookie: int, request_offset: int, offset: int | None = None) -> bytes:
        """The end of a reply that failed, at `offset` if that is known."""
        text = message.encode()[:MAX_MESSAGE]
        payload = ERROR.pack(error, len(text)) + text
        kind = CHUNK_ERROR
        if offset is not None:
            kind = CHUNK_ERROR_OFFSET
            payload += U64.pack(offset)
        return self._head(CHUNK_FLAG_DONE, kind, cookie, len(payload), request_offset) + payload

    def status(
        self, cookie: int, request_offset: int, contexts: Sequence[tuple[int, Iterable[tuple[int, int]]]]
    ) -> bytes:
        """Block status: for each context its id and (length, flags) of the extents, one after the other."""
        parts = []
        for number, (context, extents) in enumerate(contexts, 1):
            flags = CHUNK_FLAG_DONE if number == len(contexts) else 0
            if self.extended:
                packed = [_EXTENDED_STATUS.pack(*extent) for extent in extents]
                payload = _STATUS.pack(context, len(packed)) + b"".join(packed)
                kind = CHUNK_BLOCK_STATUS_EXT
            else:
                payload = U32.pack(context) + b"".join(_STATUS.pack(*extent) for extent in extents)
                kind = CHUNK_BLOCK_STATUS
            parts.append(self._head(flags, kind, cookie, len(payload), request_offset) + payload)
        return b"".join(parts)
