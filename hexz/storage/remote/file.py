"""A snapshot on a server: spans of it, each fetched once however many wait, of the version that was opened."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hexz.errors import (
    CredentialsUnavailable,
    HexzError,
    NotASnapshot,
    OriginChanged,
    OriginError,
    OriginTimeout,
    OriginUnavailable,
    SnapshotNotFound,
    SnapshotUnreadable,
    StorageError,
)
from hexz.metrics.figures import RemoteFigures
from hexz.metrics.files import ReadCounts
from hexz.protocol.http.dates import parse_date
from hexz.protocol.http.reply import ReplySpan, Version
from hexz.storage.diskcache.cache import CachedFile, DiskCache
from hexz.storage.interface import Around, SealFacts
from hexz.storage.remote.fetchers import Urgency
from hexz.storage.remote.places import RemotePlace
from hexz.storage.remote.server import Fetched, Server, Wanted
from hexz.storage.remote.settings import RemoteSettings
from hexz.storage.remote.speculation import Speculation, joined, widened
from hexz.storage.remote.table import FetchedSpan, Memory, SpanState, SpanTable, parted
from hexz.storage.remote.transport import clock

__all__ = ["RemoteFile"]

log = logging.getLogger("hexz.storage")

HEAD = 4096
"""Bytes fetched of a file's beginning when it is opened: its header."""
TAIL = 512 << 10
"""Bytes fetched of its end at the same time: the index, and of files up to some 600 MiB all pages of it."""
LARGEST = 1 << 20
"""Bytes of one request."""
OPEN_S = 10.0
"""How long a server may take to open a file: what it does not open in that time is tried again later."""
LONG = LARGEST // 2
"""From so many bytes on answers take turns."""
LOOK_S = 5.0
"""How long a server may take to say whether a file is what it was."""
CHANGED = "it was replaced on its server while it was open: its bytes are not served until it is opened again"


class RemoteFile:
    """A `Storage` over a server; `lane` is what waits for the same server, and for no other.

    `identity` is its address without secrets, its entity tag and its size.
    """

    seal: SealFacts | None = None
    watched = True
    """Nothing to be looked at here: each answer tells its version."""

    def __init__(
        self,
        place: RemotePlace,
        server: Server,
        memory: Memory,
        settings: RemoteSettings,
        disk: DiskCache | None = None,
    ) -> None:
        """Ask for the beginning and the end at once, which says which version this is.

        With a `disk` cache only for the beginning: the rest may be there.
        Raises: SnapshotNotFound, SnapshotUnreadable, NotASnapshot, OriginUnavailable, ConfigError.
        """
        self.name = place.name
        self.lane = server
        self.reads = ReadCounts()  # guarded by _lock
        self.reads.remote = self.figures
        self.changed = False  # set once, under _lock
        self._place = place
        self._deadline_s = settings.deadline_s
        self._fetches = self._retries = self._failures = 0  # guarded by _lock
        self.listed = self.listed_done = 0
        """Bytes that were to be fetched ahead of all readers, and those of them that were; written by who does it."""
        self._lock = threading.Lock()
        self._closed = False
        self._table = SpanTable(memory)
        self._memory = memory
        self._disk = disk
        self._kept: CachedFile | None = None
        self.speculation = Speculation(settings.speculation, server.measured)
        try:
            self._pinned = self._open(settings)
        except CredentialsUnavailable as error:
            raise OriginUnavailable(place.name, str(error)) from None
        except OriginError as error:
            raise _opening(place.name, error) from None
        self.size = self._pinned.size
        self.modified_ns = (parse_date(self._pinned.modified) or 0) * 10**9
        self.version = _identity("", self._pinned)
        self.identity = _identity(place.key, self._pinned)

    def _open(self, settings: RemoteSettings) -> Version:
        deadline = clock() + min(self._deadline_s, OPEN_S)
        ends: list[Fetched] = []
        tail = threading.Thread(target=self._fetch_tail, args=(deadline, ends), name="hexz-open", daemon=True)
        if self._disk is None:
            with contextlib.suppress(RuntimeError):  # the system is out of threads
                tail.start()
        head = self._server_fetch(0, HEAD, None, deadline)
        self.lane.prepare()
        version = head.span.version
        if not version.etag and not (settings.trust_times and version.modified):
            raise SnapshotUnreadable(
                self.name,
                "its server gives no strong ETag, without which one cannot see when a file is replaced: "
                "--remote-trust-times takes its size and the time of its last change instead",
            )
        if self._disk is not None:
            self._kept = self._disk.open(_identity(self._place.key, version))
        elif tail.ident is not None:
            tail.join(max(0.0, deadline - clock()))
        if not ends and version.size > HEAD:
            # Some servers know no suffix ranges; by now the size is known.
            ends.append(self._end(version, deadline))
        for fetched in [head, *ends]:
            if fetched.span.version != version:
                raise OriginChanged(self.name, fetched.span.start, fetched.span.length, "it is being replaced")
            self._put(fetched)
        return version

    def _fetch_tail(self, deadline: float, ends: list[Fetched]) -> None:
        try:
            wanted = Wanted(self._place, None, TAIL, None)
            ends.append(self.lane.fetch(wanted, deadline, self.name, patient=False))
        except (HexzError, MemoryError) as error:
            log.debug("%s: the last bytes are asked for by their place: %s", self.name, error)

    def _end(self, version: Version, deadline: float) -> Fetched:
        """The end of the file, from the disk if it is there."""
        start = max(HEAD, version.size - TAIL)
        kept = self._kept.read(start, version.size) if self._kept is not None else None
        if kept is not None:
            return Fetched(ReplySpan(start, len(kept), version), kept)
        fetched = self._server_fetch(start, version.size - start, version, deadline)
        if self._kept is not None:
            self._kept.keep(start, memoryview(fetched.data))
        return fetched

    def _put(self, fetched: Fetched) -> None:
        start, data = fetched.span.start, memoryview(fetched.data)
        with self._table.lock:
            for first, last in self._table.gaps(start, start + len(data)):
                span = self._table.add(first, last, ahead=True)
                span.lasting = True
                self._table.begin(span)
                self._table.done(span, data[first - start : last - start])

    @property
    def closed(self) -> bool:
        """Whether nobody reads it any more."""
        return self._closed

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`.

        Raises: StorageError: OriginChanged for good; OriginTimeout, OriginError.
        """
        return bytes(self.view(offset, length))

    def view(self, offset: int, length: int, around: Callable[[], Around] | None = None) -> bytes | memoryview:
        """The same, as a part of what came; some of what `around` names may come along.

        Raises: as `read` does.
        """
        if self._closed:
            raise StorageError(self.name, offset, length, "the snapshot is closed")
        if self.changed:
            raise OriginChanged(self.name, offset, length, CHANGED)
        if offset + length > self.size:
            raise StorageError(self.name, offset, length, f"the file ends at {self.size}")
        began = time.perf_counter()
        got = False
        try:
            parts = self._parts(offset, offset + length, around)
            got = True
        except OriginChanged:
            self._note_change()
            raise
        finally:
            with self._lock:
                if got:
                    self.reads.add(length, time.perf_counter() - began)
                else:
                    self.reads.fail()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch these spans (start, end) in the background; neighbours together, where little lies between them.

        What finds no room is left out, and so is what is on the disk.
        """
        wanted = [part for first, last in joined(ranges, LARGEST) for part in self._lacking(first, last)]
        fresh: list[FetchedSpan] = []
        with self._table.lock:
            for first, last in wanted:
                for start, stop in self._table.gaps(first, min(last, self.size)):
                    if self._closed or self._table.queued_bytes + stop - start > self._memory.budget // 2:
                        break
                    fresh.append(self._table.add(start, stop, ahead=True))
        for span in fresh:
            self._queue(span)

    def forget(self, offset: int, length: int) -> None:
        """Let the next read of these bytes fetch them anew: what came between damaged them, perhaps."""
        with self._table.lock:
            self._table.forget(offset, offset + length)
        if self._kept is not None:
            self._kept.forget(offset, offset + length)

    def reach(self) -> int:
        """Bytes that come while two round trips pass."""
        return int(2 * self.lane.measured.round_trip_s * self.lane.measured.bytes_per_s)

    def fetch_ahead(self, start: int, end: int, urgency: Urgency, ended: Callable[[int, bool], None]) -> None:
        """Fetch what of a span is neither here nor on the disk, and say when that ended (bytes of the span, all well).

        Where there is a disk cache it stays there, else in memory as long as there is room.
        """
        fresh: list[FetchedSpan] = []
        lacking = self._lacking(start, end)
        with self._table.lock:
            for first, last in lacking:
                for gap in self._table.gaps(first, min(last, self.size)):
                    fresh.append(self._table.add(*gap, ahead=True))
        left = [len(fresh), True]
        lock = threading.Lock()  # guards `left`

        def fetch(span: FetchedSpan) -> None:
            well = self._fetch_ahead(span)
            if self._kept is not None:
                with self._table.lock:
                    self._table.used(span, span.end - span.start)
            with lock:
                left[0] -= 1
                left[1] = left[1] and well
                last = not left[0]
            if last:
                ended(end - start, bool(left[1]))

        if not fresh:
            ended(end - start, True)
        for span in fresh:
            if not self.lane.fetchers.offer(partial(fetch, span), urgency, span.end - span.start >= LONG):
                fetch(span)

    def count_failure(self) -> None:
        """Count a read that went well, whose bytes turned out to be wrong."""
        with self._lock:
            self.reads.fail()

    def look(self) -> bool:
        """Whether its server still has it as it was opened; True where that cannot be told."""
        if self.changed:
            return False
        try:
            self._server_fetch(0, 1, self._pinned, clock() + min(LOOK_S, self._deadline_s))
        except OriginChanged:
            self._note_change()
            return False
        except HexzError as error:
            log.debug("%s: %s", self.name, error)
        return True

    def close(self) -> None:
        """Nothing more is fetched; idempotent."""
        self._closed = True
        if self._kept is not None:
            self._kept.close()
        with self._table.lock:
            self._table.clear()

    def _note_change(self) -> None:
        with self._lock:
            first, self.changed = not self.changed, True
        if first:
            log.error("%s: %s", self.name, CHANGED)
            with self._table.lock:
                self._table.clear()

    def _server_fetch(self, start: int, length: int, version: Version | None, deadline: float) -> Fetched:
        try:
            fetched = self.lane.fetch(Wanted(self._place, start, length, version), deadline, self.name)
        except HexzError:
            with self._lock:
                self._failures += 1
            raise
        with self._lock:
            self._fetches += 1
            self._retries += fetched.tries - 1
        return fetched

    def figures(self) -> RemoteFigures:
        """What it cost so far."""
        kept = self._kept
        with self._table.lock:
            held = self._table.held()
        return RemoteFigures(
            self.size, kept.held() if kept is not None else held, self.speculation.fetched, self.speculation.used,
            self._fetches, self._retries, self._failures, self.listed, self.listed_done,
        )  # fmt: skip

    def _parts(self, offset: int, stop: int, around: Callable[[], Around] | None) -> Sequence[bytes | memoryview]:
        """The bytes, from left to right: what is there, what others fetch, and what is fetched here."""
        if offset == stop:
            return [b""]
        deadline = clock() + self._deadline_s
        self._queue_gaps(offset, stop, around)
        parts: list[memoryview] = []
        at = offset
        while at < stop:
            span = self._ready(at, stop, deadline)
            if span is None:
                continue  # whoever fetched it could not: it is tried here
            assert span.data is not None
            end = min(span.end, stop)
            parts.append(span.data[at - span.start : end - span.start])
            with self._table.lock:
                self._table.used(span, end - at)
            self.speculation.used += end - at
            at = end
        return parts

    def _ready(self, at: int, stop: int, deadline: float) -> FetchedSpan | None:
        """The span that has `at`, with its bytes; None when another thread could not fetch it.

        Raises: OriginError.
        """
        with self._table.lock:
            span = self._table.at(at)
            if span is None:  # it failed, or had to make room
                span = self._table.add(at, min(self._table.free(at, at, stop)[1], at + LARGEST), ahead=False)
            mine = self._table.begin(span)
            if span.state is SpanState.DONE and not span.ahead:
                self.speculation.hits += min(span.end, stop) - at
            if not mine and span.state is SpanState.RUNNING:
                span.gate = span.gate or threading.Event()
        if mine:
            self._fetch(span, deadline)
        elif span.gate is not None and not span.gate.wait(max(0.0, deadline - clock())):
            raise OriginTimeout(self.name, at, stop - at, "no answer in time")
        if span.state is SpanState.FAILED and clock() >= deadline:
            raise OriginTimeout(self.name, at, stop - at, "no right answer in time")
        return span if span.state is SpanState.DONE else None

    def _lacking(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of a span is not on the disk."""
        return [(start, stop)] if self._kept is None else self._kept.missing(start, stop)

    def _queue_gaps(self, offset: int, stop: int, around: Callable[[], Around] | None) -> None:
        """Make spans of what nobody has or fetches; all but the first are for other threads, if those are faster."""
        fresh: list[FetchedSpan] = []
        room = self.speculation.room() if around is not None else 0
        beside = around() if around is not None and room > 0 and self._lacking(offset, stop) else None
        low = beside.before[-1] if beside is not None and beside.before else offset
        high = beside.behind[-1] if beside is not None and beside.behind else stop
        lacking = self._lacking(max(min(low, offset), 0), min(max(high, stop), self.size))
        with self._table.lock:
            # What is on the disk and what is not are spans of their own: nothing is fetched for its neighbour's sake.
            parts = [part for first, last in self._table.gaps(offset, stop) for part in parted(first, last, lacking)]
            alone = sum(part.around is not None for part in parts) == 1
            for start, end, bounds in parts:
                wide = (start, end)
                if beside is not None and alone and bounds is not None:
                    low, high = self._table.free(start, *bounds)
                    wide = widened(start, end, beside, low, high, min(room, LARGEST - (end - start)))
                for at in range(*wide, LARGEST):
                    fresh.append(self._table.add(at, min(wide[1], at + LARGEST), ahead=False))
        for span in fresh[1:]:
            self._queue(span)

    def _queue(self, span: FetchedSpan) -> None:
        def fetch() -> None:
            self._fetch_ahead(span)

        if not self.lane.fetchers.offer(fetch, Urgency.SOON, span.end - span.start >= LONG):
            with self._table.lock:
                if span.state is SpanState.QUEUED:
                    self._table.failed(span)

    def _fetch_ahead(self, span: FetchedSpan) -> bool:
        """In a thread of the server's; False when it could not be had."""
        with self._table.lock:
            mine = not self._closed and self._table.begin(span)
        if not mine:
            return not self._closed
        try:
            self._fetch(span, clock() + self._deadline_s)
            return True
        except OriginChanged:
            self._note_change()
        except HexzError as error:
            log.debug("ahead: %s", error)
            with self._table.lock:  # the rest of what is queued would fare no better
                self._table.drop_queued()
        return False

    def _fetch(self, span: FetchedSpan, deadline: float) -> None:
        """Get a span that is this thread's.  Raises: OriginError."""
        length = span.end - span.start
        kept = self._kept
        try:
            data: bytes | bytearray | None = kept.read(span.start, span.end) if kept is not None else None
            fresh = data is None
            if data is None:
                data = self._server_fetch(span.start, length, self._pinned, deadline).data
                self.speculation.fetched += length
        except BaseException:
            with self._table.lock:
                self._table.failed(span)
            raise
        with self._table.lock:
            self._table.done(span, memoryview(data))
            if self._closed or self.changed:
                self._memory.drop(span)
        if kept is not None and fresh:
            kept.keep(span.start, memoryview(data))


def _identity(name: str, version: Version) -> str:
    """What tells a version from every other one; without a name, from those of the same name."""
    return f"{name} {version.etag or version.modified} {version.size}".lstrip()


def _opening(name: str, error: OriginError) -> HexzError:
    """What the trouble is for who opens a snapshot."""
    if error.status == 416:
        return NotASnapshot(name, f"its server gives no bytes of it: {error.reason}")
    if error.status in (404, 410):
        return SnapshotNotFound(name, f"its server does not have it: {error.reason}")
    if error.status in (401, 403):
        return SnapshotUnreadable(name, f"its server does not give it: {error.reason}")
    unavailable = OriginUnavailable(name, error.reason)
    unavailable.silent = isinstance(error, OriginTimeout)
    return unavailable
