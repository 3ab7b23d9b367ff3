"""The threads that wait for cold blocks, so that the connections' own threads go on with warm ones.

While loads are quick, because the file is in memory, a connection's thread that has
nothing else to do loads reads of its own too: waking another costs as much.

Connections take turns: one with a deep queue of cold reads delays another's cold
read by one block, not by its whole queue.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from hexz.errors import HexzError, OutOfMemory
from hexz.metrics.counters import waited
from hexz.snapshot import Stream

__all__ = ["Cold", "ColdReads", "MissPool", "MissPools"]

log = logging.getLogger("hexz.nbd")

MAX_WAITING = 256
"""Cold reads of one connection that the pool has at a time."""
MAX_WAITING_BYTES = 8 << 20
"""The same in bytes; in a small cache it is a quarter of that, so that what was loaded is still there when sent."""
QUICK_S = 0.001
"""A read that loads in less comes from memory, not from a disk: loading another here keeps nobody waiting for long."""
TURN_S = 0.005
"""How long a connection waits for its turn to load such reads; then it loads them all the same."""
FAR_THREADS = 32
"""Threads that wait for one server."""
NO_MEMORY_S = 0.1
"""How long a thread rests that could not even say that there is no memory."""


class Cold(NamedTuple):
    """A read whose blocks have to be loaded: cookie, offset and length, and whether its reply must be one chunk.

    `began` is when it came (``perf_counter``), `flight` its number among the requests under way.
    """

    cookie: int
    offset: int
    length: int
    whole: bool
    began: float
    flight: int


class _Wake:
    """Ends a connection's poll from another thread.

    Its descriptors are closed when the last thread that might write to them has let
    go of it: closed by the connection, their numbers could be another socket's by then.
    """

    def __init__(self) -> None:
        """Raises: OSError when there are no descriptors left."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._write, b"\0")

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):  # nobody rang
            os.read(self._read, 4096)

    def __del__(self) -> None:
        os.close(self._read)
        os.close(self._write)


class ColdReads:
    """The cold reads of one connection: those that wait for a thread, and those that are loaded."""

    def __init__(self, pool: MissPool, stream: Stream) -> None:
        self._pool = pool
        self._stream = stream
        self._most_bytes = min(MAX_WAITING_BYTES, stream.cache_size // 4)
        self._wake: _Wake | None = None
        self._bytes = 0
        self.quick = False  # the last load took so little that the connection's thread may do some itself
        self.waiting = 0  # handed over and not taken back
        self._falling_asleep = threading.Lock()  # guards the next, and that `finished` is looked at together with it
        self._asleep = False  # the connection polls
        self.finished: deque[tuple[Cold, HexzError | OSError | None, int]] = deque()  # filled by the pool's threads
        self.tasks: deque[Cold] = deque()  # guarded by the pool's condition
        self.queued = False  # in the pool's ring; guarded the same way

    def hand_over(self, read: Cold) -> bool:
        """Have the pool load what `read` needs; False when there is enough to do already."""
        if self.waiting >= MAX_WAITING or self._bytes + read.length > self._most_bytes:
            return False
        if self._wake is None:
            try:
                self._wake = _Wake()
            except OSError as error:
                log.warning("out-of-order replies have to wait: %s", error)
                return False
        if not self._pool.submit(self, read):
            return False
        self.waiting += 1
        self._bytes += read.length
        return True

    def load_here(self, reads: Iterable[tuple[int, int, int]]) -> dict[int, int]:
        """Load what `reads` (cookie, offset, length) lack, in the connection's own thread; bytes loaded, by cookie.

        In turn with other connections: side by side they would only fight for the interpreter.  It ends with the first
        that is not quick, and whoever then reads meets its trouble again.
        """
        loaded: dict[int, int] = {}
        with self._pool.turn():
            for cookie, offset, length in reads:
                if self._stream.read_cached(offset, length) is not None:
                    continue
                before, began = waited.size, perf_counter()
                with contextlib.suppress(HexzError, OSError, MemoryError):
                    self._stream.load(offset, length)
                loaded[cookie] = waited.size - before
                self.quick = perf_counter() - began < QUICK_S
                if not self.quick or len(loaded) * self._stream.block_size >= self._most_bytes:
                    break
        return loaded

    def take(self) -> list[tuple[Cold, HexzError | OSError | None, int]]:
        """The reads that are loaded, or failed, since the last call, and the bytes that each had to wait for."""
        taken = []
        while self.finished:
            taken.append(self.finished.popleft())
        self.waiting -= len(taken)
        self._bytes -= sum(read.length for read, _, _ in taken)
        return taken

    def wait(self, sock: socket.socket | None) -> bool:
        """Sleep until a read is finished, or `sock` can be read; whether it is the socket.

        Only after a `hand_over` that succeeded.
        """
        assert self._wake is not None
        helped = sock is not None and self._help()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if sock is not None:
            poll.register(sock, select.POLLIN)
        with self._falling_asleep:
            self._asleep = True
            news = helped or self.finished
        # No time-out: the pool rings for each read that it has taken, also one that failed.
        ready = dict(poll.poll(0 if news else None))
        self._asleep = False
        if self._wake.fileno() in ready:
            self._wake.hush()
        return sock is not None and sock.fileno() in ready

    def _help(self) -> bool:
        """Load one of the waiting reads here rather than sleep, if that is quick; whether there was one."""
        read = self._pool.take_back(self) if self.quick else None
        if read is not None:
            try:
                self.load(read)
            except MemoryError:  # not even for the news: nobody else has the read any more
                self.waiting -= 1
                self._bytes -= read.length
                raise
        return read is not None

    def abandon(self) -> None:
        """Forget what no thread has begun, and wait for the rest: the stream may be closed afterwards."""
        self.waiting -= self._pool.withdraw(self)
        while self.waiting:
            self.wait(None)
            self.take()

    def load(self, read: Cold) -> None:
        """In a thread of the pool: get the blocks into the cache."""
        wake = self._wake
        trouble: HexzError | OSError | None = None
        before = waited.size
        began = perf_counter()
        try:
            self._stream.load(read.offset, min(read.length, self._stream.size - read.offset))
        except (HexzError, OSError) as error:
            trouble = error
        except MemoryError:
            trouble = OutOfMemory()
        except Exception as error:
            log.exception("unexpected trouble with a cold read")
            trouble = OSError(errno.EIO, str(error))
        self.quick = perf_counter() - began < QUICK_S
        with self._falling_asleep:
            self.finished.append((read, trouble, waited.size - before))
            asleep = self._asleep
        if asleep and wake is not None:
            wake.ring()


class MissPools:
    """A pool for local files, and one for each server: reads that wait for a slow one hold up no others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[Hashable, MissPool] = {None: MissPool()}  # by lane; guarded by _lock

    def of(self, stream: Stream) -> MissPool:
        """The pool for cold reads of `stream`."""
        lane = stream.file.storage.lane
        with self._lock:
            pool = self._pools.get(lane)
            if pool is None:
                pool = self._pools[lane] = MissPool(FAR_THREADS)
            return pool


class MissPool:
    """A few daemon threads over the cold reads of all connections, each started when all others have one to do."""

    def __init__(self, threads: int | None = None) -> None:
        """Up to `threads` of them, by default as many as there are cores, and at least two."""
        self._count = threads or max(2, os.cpu_count() or 1)
        self._free = 0  # that wait for a read; guarded by _turn
        self._turn = threading.Condition()
        self._ring: deque[ColdReads] = deque()  # guarded by _turn
        self._quick_turn = threading.Lock()
        self._threads = 0  # that were started; guarded by _turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Load while no other connection does; nobody waits for long, for the disk of the one before may hang."""
        has = self._quick_turn.acquire(timeout=TURN_S)
        try:
            yield
        finally:
            if has:
                self._quick_turn.release()

    def submit(self, reads: ColdReads, read: Cold) -> bool:
        """Load `read` in its connection's turn; False when the system has no thread for it."""
        with self._turn:
            if not self._free and self._threads < self._count and not self._start_thread() and not self._threads:
                return False
            reads.tasks.append(read)
            if not reads.queued:
                reads.queued = True
                self._ring.append(reads)
            self._turn.notify()
        return True

    def _start_thread(self) -> bool:
        thread = threading.Thread(target=self._run, name=f"nbd-miss-{self._threads}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system is out of threads; a later read tries again
            return False
        self._threads += 1
        return True

    def take_back(self, reads: ColdReads) -> Cold | None:
        """One of `reads` that no thread has begun, for the caller to load; None when there is none."""
        with self._turn:
            if not reads.tasks:
                return None
            read = reads.tasks.popleft()
            if not reads.tasks:
                reads.queued = False
                self._ring.remove(reads)
            return read

    def withdraw(self, reads: ColdReads) -> int:
        """Take back what no thread has begun of `reads`; how many that were."""
        with self._turn:
            count = len(reads.tasks)
            reads.tasks.clear()
            if reads.queued:
                reads.queued = False
                self._ring.remove(reads)
            return count

    def _run(self) -> None:
        while True:
            with self._turn:
                while not self._ring:
                    self._free += 1
                    self._turn.wait()  # no time-out: there may be nothing to do for days
                    self._free -= 1
                reads = self._ring.popleft()
                read = reads.tasks.popleft()
                if reads.tasks:
                    self._ring.append(reads)
                else:
                    reads.queued = False
            while True:
                try:
                    reads.load(read)
                    break
                except MemoryError:  # not even for the news; the connection waits for it
                    time.sleep(NO_MEMORY_S)
            del reads, read
