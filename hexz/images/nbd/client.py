"""An NBD client on the standard library: one connection, used by one thread at a time.

Reads of more than a buffer are several requests at once, whose replies may come
in any order and in pieces.  Protocol: proto.md of the NBD project.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

from hexz.images.buffers import POOL
from hexz.images.errors import BackendError, NbdFault
from hexz.images.nbd.handshake import ALLOCATION, DIRTY, LARGEST_SMALLEST, negotiate
from hexz.images.nbd.wire import NbdAddress, Wire
from hexz.protocol.nbd import constants as nbd
from hexz.protocol.nbd.layouts import CHUNK, ERROR, HOLE, U32, U64
from hexz.protocol.nbd.replies import REQUEST, SIMPLE_REPLY

__all__ = ["NbdConnection", "StatusExtent", "joined"]

PIECE = LARGEST_SMALLEST
"""Bytes handed on at a time where no large buffer is free: no server can insist on larger blocks."""
AHEAD = 3
"""Reads under way at once on a connection when nobody else reads: one arrives, one is sent on, one is read from the
server's disk.  Several transfers overlap with each other, and more requests would only push each other out of the
processor's cache."""
WRITE_SIZE = 1 << 20
SPAN_STEP = 1 << 30
"""Longest span of one block status or zero request: lengths on the wire have 32 bits."""
MAX_TEXT = 4096
MAX_DESCRIPTORS = 16384
"""Extents kept of one reply, 128 KiB; the rest is asked for again."""
MAX_GAPS = 64
"""Places in which data of one reply may be missing: servers send it in order, or nearly so."""
MAX_STATUS = 16 << 20
"""Longest block status reply that is read at all."""

_SIMPLE_REST = struct.Struct(">IQ")
_CHUNK_REST = struct.Struct(">HHQI")
_ZEROS = memoryview(bytes(PIECE))


class StatusExtent(NamedTuple):
    """`length` bytes with the flags of a meta context."""

    length: int
    flags: int


class _Reading:
    """A read that is under way: where its bytes go, and which are still to come."""

    __slots__ = ("buffer", "done", "gaps", "offset", "size")

    def __init__(self, offset: int, buffer: memoryview, size: int) -> None:
        self.offset = offset
        self.buffer = buffer
        self.size = size
        self.gaps = [(0, size)]
        """(start, end) of what is missing, in order."""
        self.done = False

    def part(self, offset: int, length: int) -> memoryview | None:
        """Where these bytes go; None when they are not part of what was asked, come twice, or in too many pieces."""
        start = offset - self.offset
        end = start + length
        for number, (low, high) in enumerate(self.gaps):
            if low <= start < end <= high:
                self.gaps[number : number + 1] = [gap for gap in ((low, start), (end, high)) if gap[0] < gap[1]]
                return self.buffer[start:end] if len(self.gaps) <= MAX_GAPS else None
        return None


class NbdConnection:
    """A connection in the transmission phase.

    After any exception but NbdFault it is of no use any more: close it.
    `unflushed`: something was written since the last flush.
    """

    def __init__(self, address: NbdAddress, export: str, bitmap: str | None = None) -> None:
        """Connect, and negotiate structured replies, ``base:allocation`` and the dirty `bitmap`.

        Raises: BackendDown when nobody answers; BackendError when the export or the protocol is not there.
        """
        self._wire = Wire(address)
        self.where = self._wire.where
        self._cookie = 0
        self._due = 0
        """Replies that are still to come."""
        self.unflushed = False
        try:
            self.export = negotiate(self._wire, export, bitmap)
        except BaseException:
            self._wire.close()
            raise

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        """The span in pieces, each valid until the next is asked for; the next are on their way meanwhile.

        Raises: NbdFault, BackendError, BackendDown.
        """
        smallest = self.export.smallest
        low = offset - offset % smallest
        high = min(offset + length + -(offset + length) % smallest, self.export.size)
        most = AHEAD if POOL.idle() else 1
        buffers = POOL.take(min(most, -(-(high - low) // POOL.size)), self.where) if high - low > PIECE else []
        try:
            free = buffers or [memoryview(bytearray(min(PIECE, high - low)))]
            for start, piece in self._read_ahead(low, high, list(free)):
                part = piece[max(offset - start, 0) : max(offset + length - start, 0)]
                if part:
                    yield part
        finally:
            POOL.give_back(buffers, self.where)

    def _read_ahead(self, low: int, high: int, free: list[memoryview]) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) in order, with a request under way for each of the `free` buffers."""
        under_way: dict[int, _Reading] = {}  # by cookie, in the order of their offsets
        while low < high or under_way:
            while free and low < high:
                size = min(high - low, len(free[-1]), self.export.largest)
                cookie = self._request(nbd.CMD_READ, low, size)
                under_way[cookie] = _Reading(low, free.pop(), size)
                low += size
            first = under_way[next(iter(under_way))]
            self._wire.begin()
            while not first.done:
                self._receive_data(under_way)
            del under_way[next(iter(under_way))]
            yield first.offset, first.buffer[: first.size]
            free.append(first.buffer)

    def _receive_data(self, under_way: dict[int, _Reading]) -> None:
        """Receive one chunk, or a simple reply, of any of the requests: they may be answered in any order."""
        self._wire.check_time()
        if not self.export.structured:
            magic, error, cookie = SIMPLE_REPLY.unpack(self._wire.receive(SIMPLE_REPLY.size))
            reading = under_way.get(cookie)
            if magic != nbd.SIMPLE_REPLY_MAGIC or reading is None or reading.done:
                self._wire.broken("sent something that is no reply")
            if error:
                self._fault(error, "", alone=len(under_way) == 1)
            self._wire.fill(reading.buffer[: reading.size])
            reading.done = True
            self._due -= 1
            return
        magic, flags, kind, cookie, size = CHUNK.unpack(self._wire.receive(CHUNK.size))
        reading = under_way.get(cookie)
        if magic != nbd.STRUCTURED_REPLY_MAGIC or reading is None or reading.done:
            self._wire.broken("sent something that is no reply")
        reading.done = bool(flags & nbd.CHUNK_FLAG_DONE)
        if kind == nbd.CHUNK_OFFSET_DATA and size > 8:
            into = reading.part(U64.unpack(self._wire.receive(8))[0], size - 8)
            if into is None:
                self._wire.broken("sent other data than was asked for")
            self._wire.fill(into)
        elif kind == nbd.CHUNK_OFFSET_HOLE and size == HOLE.size:
            into = reading.part(*HOLE.unpack(self._wire.receive(HOLE.size)))
            if into is None:
                self._wire.broken("sent another hole than was asked for")
            for at in range(0, len(into), PIECE):
                into[at : at + PIECE] = _ZEROS[: len(into) - at]
        else:
            self._other_chunk(kind, size, reading.done and len(under_way) == 1)
        if reading.done:
            if reading.gaps:
                self._wire.broken("left out data of a reply")
            self._due -= 1

    def block_status(self, offset: int, length: int) -> tuple[list[StatusExtent], list[StatusExtent]]:
        """Extents from `offset` on, of ``base:allocation`` and of the dirty bitmap; empty for what is not there.

        They may cover less than the span, and the two lists may differ in what they cover.
        Raises: as `read`.
        """
        cookie = self._request(nbd.CMD_BLOCK_STATUS, offset, min(length, SPAN_STEP))
        found: dict[str, list[StatusExtent]] = {ALLOCATION: [], DIRTY: []}
        done = False
        while not done:
            done, kind, size = self._chunk(cookie)
            if kind != nbd.CHUNK_BLOCK_STATUS:
                self._other_chunk(kind, size, done)
                continue
            if size < 12 or (size - 4) % 8 or size > MAX_STATUS:
                self._wire.broken("sent a block status that makes no sense")
            meaning = self.export.contexts.get(U32.unpack(self._wire.receive(4))[0])
            kept = min((size - 4) // 8, MAX_DESCRIPTORS)
            data = self._wire.receive(kept * 8)
            self._wire.skip(size - 4 - kept * 8)
            if meaning is None or found[meaning]:
                self._wire.broken("sent a block status that was not asked for")
            found[meaning] = [StatusExtent(*pair) for pair in struct.iter_unpack(">II", data)]
        for meaning in self.export.contexts.values():
            if not found[meaning] or not all(extent.length for extent in found[meaning]):
                self._wire.broken("sent a block status without length")
        self._due -= 1
        return found[ALLOCATION], found[DIRTY]

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`.  Raises: as `read`."""
        while data:
            part = data[: min(WRITE_SIZE, self.export.largest)]
            self.unflushed = True
            self._finish(self._request(nbd.CMD_WRITE, offset, len(part), data=part))
            offset += len(part)
            data = data[len(part) :]

    def zero(self, offset: int, length: int) -> None:
        """Make the span zero, as holes if the server likes.  Raises: as `read`."""
        can = self.export.flags & nbd.SEND_WRITE_ZEROES
        while length:
            size = min(length, SPAN_STEP if can else PIECE)
            if can:
                self.unflushed = True
                self._finish(self._request(nbd.CMD_WRITE_ZEROES, offset, size))
            else:
                self.write(offset, _ZEROS[:size])
            offset += size
            length -= size

    def flush(self) -> None:
        """Put what was written on the server's disk, if it knows how to.  Raises: as `read`."""
        if self.export.flags & nbd.SEND_FLUSH:
            self._finish(self._request(nbd.CMD_FLUSH, 0, 0))
        self.unflushed = False

    def quiet(self) -> bool:
        """Every reply was read to its end: the next request may be made."""
        return not self._due

    def alive(self) -> bool:
        """Nothing came since the last reply: the server has neither hung up nor lost its way."""
        return self._wire.silent()

    def close(self, polite: bool = True) -> None:
        """Say goodbye if the connection is `polite`, and close it."""
        if polite:
            with contextlib.suppress(BackendError):  # the server was gone already
                self._request(nbd.CMD_DISC, 0, 0)
        self._wire.close()

    # The wire

    def _request(self, command: int, offset: int, length: int, flags: int = 0, data: memoryview | None = None) -> int:
        self._cookie += 1
        self._due += 1
        self._wire.begin()
        head = REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._wire.send(head, *([] if data is None else [data]))
        return self._cookie

    def _finish(self, cookie: int) -> None:
        """Read a reply without content, simple or structured."""
        if not self.export.structured:
            self._simple_reply(cookie)
            self._due -= 1
            return
        done = False
        while not done:
            # A server may answer anything but reads with simple replies even now (proto.md, "Structured reply").
            done, kind, size = self._chunk(cookie, simple=True)
            if kind != nbd.CHUNK_NONE:
                self._other_chunk(kind, size, done)
        self._due -= 1

    def _simple_reply(self, cookie: int) -> None:
        magic = U32.unpack(self._wire.receive(4))[0]
        if magic != nbd.SIMPLE_REPLY_MAGIC:
            self._wire.broken("sent something that is no reply")
        self._simple_rest(cookie)

    def _simple_rest(self, cookie: int) -> None:
        error, answered = _SIMPLE_REST.unpack(self._wire.receive(_SIMPLE_REST.size))
        if answered != cookie:
            self._wire.broken("answered another request than was asked")
        if error:
            self._fault(error, "", alone=True)

    def _chunk(self, cookie: int, simple: bool = False) -> tuple[bool, int, int]:
        """(last of the reply, kind, bytes that follow) of the next chunk."""
        self._wire.check_time()
        magic = U32.unpack(self._wire.receive(4))[0]
        if magic == nbd.SIMPLE_REPLY_MAGIC and simple:
            self._simple_rest(cookie)
            return True, nbd.CHUNK_NONE, 0
        if magic != nbd.STRUCTURED_REPLY_MAGIC:
            self._wire.broken("sent something that is no reply")
        flags, kind, answered, size = _CHUNK_REST.unpack(self._wire.receive(_CHUNK_REST.size))
        if answered != cookie:
            self._wire.broken("answered another request than was asked")
        return bool(flags & nbd.CHUNK_FLAG_DONE), kind, size

    def _other_chunk(self, kind: int, size: int, last: bool) -> None:
        """A chunk without content: nothing, or an error; `last`: nothing else is due on this connection."""
        if kind == nbd.CHUNK_NONE and not size:
            return
        if not kind & 0x8000 or not ERROR.size <= size <= MAX_TEXT + ERROR.size + 8:
            self._wire.broken("sent a chunk that makes no sense here")
        data = self._wire.receive(size)
        error, length = ERROR.unpack_from(data)
        self._fault(error, data[ERROR.size : ERROR.size + length].decode("utf-8", "replace"), last)

    def _fault(self, error: int, text: str, alone: bool) -> NoReturn:
        fault = NbdFault(self.where, error, text)
        if alone:
            self._due = 0
            raise fault
        # More replies would follow, which nobody wants: the connection cannot be used again.
        raise BackendError(self.where, fault.reason)


def joined(parts: Sequence[StatusExtent], others: Sequence[StatusExtent]) -> Iterator[tuple[int, int, int]]:
    """(length, flags of `parts`, flags of `others`) on the borders of both, as far as both reach."""
    first, second = iter(parts), iter(others)
    left = right = StatusExtent(0, 0)
    while True:
        if not left.length:
            left = next(first, left)
        if not right.length:
            right = next(second, right)
        length = min(left.length, right.length)
        if not length:
            return
        yield length, left.flags, right.flags
        left = left._replace(length=left.length - length)
        right = right._replace(length=right.length - length)
