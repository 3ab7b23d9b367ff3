"""Cached reads: received, looked up, sent and counted in one loop, in the connection's own thread or by the crowd's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from time import perf_counter

from hexz.metrics.counters import FAST_S
from hexz.protocol.nbd import constants as c
from hexz.protocol.nbd.replies import (
    EXTENDED_DATA,
    REQUEST_FORMS,
    SIMPLE_REPLY,
    STRUCTURED_DATA,
    Buffer,
    ChunkedReplies,
)
from hexz.servers.connection import Connection
from hexz.servers.crowd import LARGEST, Crowd
from hexz.servers.nbd.counting import NbdCounting
from hexz.servers.nbd.outbox import MAX_BATCH, MAX_BUFFERS, MAX_VIEWS, ZERO_BYTES, Outbox
from hexz.snapshot import Stream

__all__ = ["CachedReads"]

STREAK = 256
"""After so many wake-ups with nothing but cached reads a connection looks whether it has company."""
_WAITS, _WANTS_COMPANY = 1, 2

_Read = tuple[int, int, int]
"""cookie, offset, length"""


class CachedReads:
    """Serves one connection, that is not under TLS, as long as nothing but cached reads comes.

    Afterwards the requests that were not dealt with are in the buffer, from `start` to `filled`.
    """

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        chunks: ChunkedReplies | None,
        outbox: Outbox,
        counting: NbdCounting,
        crowd: Crowd,
    ) -> None:
        """`chunks` as `Outbox` has it, and `outbox` sends what the socket does not take at once."""
        self._connection = connection
        self._stream = stream
        self._chunks = chunks
        self._extended = chunks is not None and chunks.extended
        self._outbox = outbox
        self._counting = counting
        self._crowd = crowd
        self._flags = 0  # of the next receive: in the crowd nobody waits
        self._left: tuple[list[_Read], int] | None = None  # what the crowd could not send, as in `_send_rest`
        self._gone = False  # the client sends no more
        self.start = self.filled = 0

    def serve(self, view: memoryview) -> bool:
        """Receive into `view` and answer; ends when something else came, or is to be done; False: nobody is there.

        Raises: OSError.
        """
        connection, crowd = self._connection, self._crowd
        self.start = self.filled = 0
        turns = self._turns(view)
        for turn in turns:
            if turn == _WAITS:
                connection.await_input(None)
            elif not connection.summoned and crowd.has_company(connection):
                self._flags = socket.MSG_DONTWAIT
                goes_on = crowd.stay(connection, partial(next, turns, None))
                self._flags = 0
                if not goes_on:
                    raise ConnectionAbortedError("it ended in the crowd, perhaps in the middle of a reply")
        if self._left is not None:
            (reads, sent), self._left = self._left, None
            self._send_rest(reads, sent)
            self._counting.sent(len(reads))
        return not self._gone

    def _send_rest(self, reads: list[_Read], sent: int) -> None:
        """Send the replies to `reads` but for their first `sent` bytes, as fast as the client takes them."""
        try:
            self._outbox.send_rest([(*read, False) for read in reads], sent)
        except OSError as error:
            self._counting.lost(len(reads), error)
            raise

    def _turns(self, view: memoryview) -> Iterator[int]:
        """Each step answers what has come; what it gives says why it stopped there.

        All in one function, because here every call counts: what a wake-up costs is what a cached read costs.
        """
        connection, counting, stream = self._connection, self._counting, self._stream
        summons = connection.listener.summons
        receive, send, now = connection.sock.recv_into, connection.sock.sendmsg, perf_counter
        form, magic = REQUEST_FORMS[self._extended]
        size, unpack = form.size, form.iter_unpack
        chunks, end, read_cached = self._chunks, stream.size, stream.read_cached
        pack = (EXTENDED_DATA if self._extended else STRUCTURED_DATA).pack
        cell, odd, usual = counting.cell, counting.odd, counting.cell.usual
        flags, most, streak = 0, MAX_BATCH, 0
        while not connection.leaving and not (summons is not None and summons.rung):
            try:
                filled = receive(view, 0, flags)
            except BlockingIOError:
                filled = -1
            if filled > 0:
                counting.began = began = now()
            elif not filled:
                self._gone = True
                return
            start = 0
            while start < filled:
                buffers: list[Buffer] = []
                total = count = 0
                requests = unpack(view[start : filled - (filled - start) % size])
                for sign, marks, command, cookie, offset, length in requests:
                    if sign != magic or command or marks or not 0 < length <= most or offset + length > end:
                        break
                    if count and (total + length > most or len(buffers) >= MAX_BUFFERS):
                        break
                    views = read_cached(offset, length)
                    if views is None:
                        break
                    data = length
                    if len(views) > 1:
                        if len(views) > MAX_VIEWS or (chunks is not None and _has_hole(views)):
                            break
                    elif chunks is not None and views[0].obj is ZERO_BYTES:
                        views, data = [], 0
                    if chunks is None:
                        head = SIMPLE_REPLY.pack(c.SIMPLE_REPLY_MAGIC, 0, cookie)
                    elif not data:
                        head = chunks.hole(cookie, offset, offset, length, True)
                    elif self._extended:
                        head = pack(c.EXTENDED_REPLY_MAGIC, 1, c.CHUNK_OFFSET_DATA, cookie, offset, length + 8, offset)
                    else:
                        head = pack(c.STRUCTURED_REPLY_MAGIC, 1, c.CHUNK_OFFSET_DATA, cookie, length + 8, offset)
                    buffers.append(head)
                    buffers += views
                    total += len(head) + data
                    count += 1
                    if length != usual:
                        odd.append(length)
                if not count:
                    self.start, self.filled = start, filled
                    return
                try:
                    sent = send(buffers, (), socket.MSG_DONTWAIT)
                except BlockingIOError:
                    sent = 0
                buffers.clear()  # a client that does not read, or has nothing to ask, pins no data
                views = None
                stop = start + count * size
                if sent != total:
                    reads = [request[3:] for request in unpack(view[start:stop])]
                    if flags:
                        self._left = reads, sent
                        self.start, self.filled = stop, filled
                        return
                    self._send_rest(reads, sent)
                start = stop
                seconds = now() - began
                if odd or seconds > FAST_S:
                    counting.sent(count)
                    usual = cell.usual
                else:
                    cell.fast += count
                    cell.fast_seconds += seconds * count
            streak += 1
            if flags or filled < 0:
                yield _WAITS
            elif streak >= STREAK:
                streak = 0
                yield _WANTS_COMPANY
            else:
                continue
            flags = self._flags
            most = LARGEST if flags else MAX_BATCH


def _has_hole(views: list[memoryview]) -> bool:
    """Whether there are zeros among the data, which structured replies tell of in chunks of their own."""
    return any(view.obj is ZERO_BYTES for view in views)
