"""Images behind an NBD server: a pool of connections, and the sessions that borrow them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from hexz.errors import BadRequest
from hexz.images.backend import Abilities, Backend, ImageExtent, Session
from hexz.images.errors import BackendDown, NbdFault
from hexz.images.nbd.client import NbdConnection, joined
from hexz.images.nbd.wire import NbdAddress, place
from hexz.protocol.nbd.constants import CAN_MULTI_CONN, STATE_HOLE, STATE_ZERO

__all__ = ["NbdBackend"]

log = logging.getLogger("hexz.images")

MAX_IDLE = 8
"""Connections kept for the next request."""
IDLE_S = 60.0
"""How long one is kept."""
DEFAULT_BLOCK = 4096


class _Idle(NamedTuple):
    connection: NbdConnection
    since: float


class NbdBackend(Backend):
    """One export of one NBD server; `bitmap` is the name of a dirty bitmap that QEMU exports with it."""

    def __init__(
        self, address: NbdAddress, export: str = "", bitmap: str | None = None, read_only: bool = False
    ) -> None:
        self._address = address
        self.where = place(address)
        self._export = export
        self._bitmap = bitmap
        self._read_only = read_only
        self._lock = threading.Lock()  # guards _idle and _written
        self._idle: list[_Idle] = []
        self._written: list[_Idle] = []  # unflushed ones of servers where a flush covers one connection only
        self._lost = False
        self._warned = False
        self.handshakes = 0

    def open(self, writing: bool = False) -> Session:
        """A session over a pooled connection that still answers, or a new one."""
        connection = self._take(writing)
        if connection is None:
            connection = NbdConnection(self._address, self._export, self._bitmap)
            self.handshakes += 1
            self._warn(connection)
        return NbdSession(self, connection, self._read_only)

    def _warn(self, connection: NbdConnection) -> None:
        export = connection.export
        lacks_bitmap = self._bitmap is not None and not export.dirty
        if not self._warned and (lacks_bitmap or not export.allocation):
            self._warned = True
            what = f"dirty bitmap {self._bitmap!r}" if export.allocation else "block status"
            log.warning("%s: the NBD server offers no %s: backups will copy everything", connection.where, what)

    def _take(self, writing: bool) -> NbdConnection | None:
        while True:
            with self._lock:
                pool = self._written if writing and self._written else self._idle
                idle = pool.pop() if pool else None
            if idle is None:
                return None
            if (pool is self._written or time.monotonic() - idle.since < IDLE_S) and idle.connection.alive():
                return idle.connection
            self.drop(idle.connection)

    def give_back(self, connection: NbdConnection) -> None:
        """Keep a connection whose last reply was read to its end."""
        # A flush need not cover what went over other connections (proto.md, CAN_MULTI_CONN): keep apart what wrote.
        apart = connection.unflushed and not connection.export.flags & CAN_MULTI_CONN
        with self._lock:
            pool = self._written if apart else self._idle
            pool.append(_Idle(connection, time.monotonic()))
            extra = self._idle.pop(0) if len(self._idle) > MAX_IDLE else None
        if extra is not None:
            extra.connection.close()

    def drop(self, connection: NbdConnection) -> None:
        """Forget a connection that is of no use any more, but not that unflushed writes went over it."""
        if connection.unflushed:
            with self._lock:
                self._lost = True
        connection.close(polite=False)

    def flush(self, connection: NbdConnection) -> None:
        """Flush all that was written over any connection.

        Raises: NbdFault, BackendError, BackendDown.
        """
        with self._lock:
            others, self._written = self._written, []
        try:
            connection.flush()
            while others:
                others[-1].connection.flush()
                self.give_back(others.pop().connection)
        finally:
            for idle in others:
                self.drop(idle.connection)
        with self._lock:
            lost, self._lost = self._lost, False
        if lost:
            raise BackendDown(connection.where, "a connection broke with unflushed writes: write them again")

    def hand_over(self, deadline: float) -> None:
        """Flush what was written, for a flush of the successor's would not cover our connections."""
        with self._lock:
            written = bool(self._written)
        if written:
            with contextlib.closing(self.open(True)) as session:
                session.flush()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle, self._written = self._idle + self._written, [], []
        for entry in idle:
            entry.connection.close()


class NbdSession(Session):
    """One borrowed connection."""

    def __init__(self, backend: NbdBackend, connection: NbdConnection, read_only: bool) -> None:
        export = connection.export
        self._backend = backend
        self._connection: NbdConnection | None = connection
        self.size = export.size
        self.block_size = max(export.smallest, DEFAULT_BLOCK)
        writable = not (read_only or export.read_only)
        self.abilities = Abilities(
            extents=export.allocation, dirty=export.dirty, write=writable, zero=writable, flush=writable
        )

    @contextlib.contextmanager
    def _request(self) -> Iterator[NbdConnection]:
        """The connection for one request; after any trouble but an orderly error it is dropped."""
        connection = self._connection
        if connection is None:
            raise BackendDown(self._backend.where, "the connection broke before")
        try:
            yield connection
        except (NbdFault, BadRequest):
            raise
        except BaseException as error:  # GeneratorExit too: nobody wants the rest of what was asked for
            if not (isinstance(error, GeneratorExit) and connection.quiet()):
                self._connection = None
                self._backend.drop(connection)
            raise

    def read(self, offset: int, length: int) -> Generator[Sequence[memoryview], None, None]:
        """The span in pieces, as the server sends them."""
        with self._request() as connection:
            for piece in connection.read(offset, length):
                yield (piece,)

    def extents(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        """What the server's block status says; where it has none, everything is data."""
        if not self.abilities.extents:
            yield ImageExtent(offset, length, zero=False)
            return
        end = offset + length
        smallest = self._connection.export.smallest if self._connection is not None else 1
        at = offset - offset % smallest
        while at < end:
            with self._request() as connection:
                allocation, bitmap = connection.block_status(at, min(self.size, end + -end % smallest) - at)
            if not (dirty and self.abilities.dirty):
                bitmap = [entry._replace(flags=1) for entry in allocation]
            # Go on from where the answer ends, which need not be where the question ended (proto.md, block status).
            for size, state, changed in joined(allocation, bitmap):
                start, stop = max(at, offset), min(at + size, end)
                at += size
                if start < stop:
                    zero, hole = bool(state & STATE_ZERO), bool(state & STATE_HOLE)
                    yield ImageExtent(start, stop - start, zero, zero and hole, bool(changed & 1))

    @staticmethod
    def _check_alignment(connection: NbdConnection, offset: int, length: int) -> None:
        smallest = connection.export.smallest
        if (offset | length) % smallest:
            raise BadRequest(f"this image is written in multiples of {smallest} bytes")

    def write(self, offset: int, data: memoryview) -> None:
        """Write through to the server."""
        with self._request() as connection:
            self._check_alignment(connection, offset, len(data))
            connection.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes at the server."""
        with self._request() as connection:
            self._check_alignment(connection, offset, length)
            connection.zero(offset, length)

    def flush(self) -> None:
        """Flush at the server; NBD allows that on read-only exports too."""
        with self._request() as connection:
            self._backend.flush(connection)

    def close(self) -> None:
        """Give the connection back if it is still good."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._backend.give_back(connection)
