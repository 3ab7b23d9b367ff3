"""An overlay's two files, and how they survive a kill at any moment.

The data file has slots of one block each; a block that is written always goes to
a slot that nothing on the disk refers to, so that what was there before stays
whole.  The journal (`hexz.images.journal`) says which block is in which slot.
Slots that were overwritten become free only when a flush has put the newer state
on the disk.  Opening replays the journal and writes it anew, short.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence

from hexz.images.backend import ImageError
from hexz.images.blockmap import ZERO_SLOT, BlockMap, Run, SlotRun, Slots
from hexz.images.journal import HEAD_SIZE, RECORD_SIZE, Head, build_head, build_mark, build_record, record_seed
from hexz.images.recovery import JOURNAL_SUFFIX, MAX_RUNS, OverlayError, read_journal, replay

__all__ = ["OverlayFull", "OverlayStore"]

log = logging.getLogger("hexz.images")

BATCH = 1 << 20
"""Bytes written to the data file between two appends to the journal."""
COMPACT_AT = 1 << 16
"""Records a journal may have, however few runs the map has, before it is written anew."""
UNFLUSHED_LIMIT = 1 << 30
"""Bytes of overwritten slots that wait for a flush; one is done when they are more."""
OPTIMISTIC_TRIES = 8

ReadBase = Callable[[int, int], Sequence[memoryview]]
"""Views that tile (offset, length) of the stream below."""


class OverlayFull(ImageError):
    """The overlay's quota, its map or its file system has no room."""

    http_status = 507
    nbd_errno = errno.ENOSPC


class OverlayStore:
    """The written blocks of one overlay.  Reads run beside one write; writes wait for each other."""

    def __init__(self, path: str, head: Head, read_base: ReadBase, quota: int = 0) -> None:
        """Open the overlay at `path`, or make it if there is none; `quota` in bytes of data, 0 = none.

        Raises: OverlayError when it lies over other bytes than `head` says, or another process has it; OSError.
        """
        self.path = path
        self.quota = quota
        self._read_base = read_base
        self._writing = threading.Lock()  # orders the writers; held while one writes, never taken by a reader
        self._state = threading.Lock()  # guards _map, _generation
        self._data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock_files()
            self.head, self._map = self._recover(head)
            self._slots = Slots(self._map)
            self._zero_block = bytes(self.head.block_size)
            self._start_journal()
        except BaseException:
            os.close(self._data)
            raise
        self._superseded: list[SlotRun] = []  # guarded by _writing, as all below
        self._superseded_bytes = 0
        self._generation = 0
        self._broken = False

    def _lock_files(self) -> None:
        try:
            fcntl.flock(self._data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OverlayError(self.path, "another process has this overlay open") from None

    def _recover(self, wanted: Head) -> tuple[Head, BlockMap]:
        try:
            found, _, records = read_journal(self.path)
        except FileNotFoundError:
            if os.fstat(self._data).st_size:
                raise OverlayError(self.path, f"it has data, but its journal, *{JOURNAL_SUFFIX}, is missing") from None
            return wanted, BlockMap()
        if (found.etag, found.size) != (wanted.etag, wanted.size):
            log.error("%s: made over %s", self.path, found.snapshot)
            raise OverlayError(self.path, "this overlay was made over other bytes")
        head = wanted._replace(block_size=found.block_size)
        return head, replay(self.path, records, self._data, head.block_size)

    def _start_journal(self) -> None:
        """Write the journal anew from the map, aside, and let it take the old one's place."""
        os.fdatasync(self._data)
        head = build_head(self.head)
        self._seed = record_seed(head)
        aside = f"{self.path}{JOURNAL_SUFFIX}.new"
        journal = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            parts = [head, *(build_record(run, 0, self._seed) for run in self._map)]
            parts.append(build_mark(len(parts) - 1, self._seed))
            _pwrite_all(journal, memoryview(b"".join(parts)), 0)
            os.fsync(journal)
            os.rename(aside, self.path + JOURNAL_SUFFIX)
            _sync_directory(self.path)
        except BaseException:
            os.close(journal)
            raise
        old, self._journal = getattr(self, "_journal", None), journal
        self._records = len(parts) - 1
        if old is not None:
            os.close(old)

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.head.size

    @property
    def block_size(self) -> int:
        """Bytes of a block: what the map tells apart."""
        return self.head.block_size

    def written(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(start, length, zero) in bytes of each written run of [offset, end), in order."""
        size = self.block_size
        while offset < end:
            with self._state:
                run = self._map.first_after(offset // size, -(-end // size))
            if run is None:
                return
            start, stop = max(offset, run.start * size), min(end, run.end * size)
            yield start, stop - start, run.slot == ZERO_SLOT
            offset = stop

    def read(self, offset: int, length: int) -> list[memoryview]:
        """Views that tile the span, which lies in the image: from the slots, else from the stream below.

        Raises: OSError; what reading the stream below raises.
        """
        for _ in range(OPTIMISTIC_TRIES):
            with self._state:
                generation = self._generation
            views = self._read(offset, length)
            # A slot is used again only after a flush has freed it, and that counts the generation up.
            if generation == self._generation:
                return views
        with self._writing:
            return self._read(offset, length)

    def _read(self, offset: int, length: int) -> list[memoryview]:
        size, end = self.block_size, offset + length
        with self._state:
            runs = self._map.within(offset // size, -(-end // size))
        views: list[memoryview] = []
        for run in runs:
            start, stop = max(offset, run.start * size), min(end, run.end * size)
            if start > offset:
                views += self._read_base(offset, start - offset)
            if run.slot == ZERO_SLOT:
                views.append(memoryview(bytes(stop - start)))
            else:
                views.append(self._read_slots(run.slot * size + start - run.start * size, stop - start))
            offset = stop
        if offset < end:
            views += self._read_base(offset, end - offset)
        return views

    def _read_slots(self, position: int, length: int) -> memoryview:
        data = os.pread(self._data, length, position)
        if len(data) < length:
            raise OverlayError(self.path, "the data file is shorter than its map says")
        return memoryview(data)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`; the span lies in the image.

        Raises: OverlayFull; OSError; what reading the stream below raises.
        """
        size = self.block_size
        with self._writing:
            while data:
                # Up to the end of a block, so that only the first and the last piece have to be filled up.
                length = min(len(data), BATCH - offset % size)
                self._write_batch(offset, data[:length])
                offset += length
                data = data[length:]

    def zero(self, offset: int, length: int) -> None:
        """Make the span read as zeros; whole blocks of it take no place.

        Raises: as `write`.
        """
        size, end = self.block_size, offset + length
        with self._writing:
            first = -(-offset // size)
            last = self.head.blocks if end == self.size else end // size
            if first >= last:
                self._zero_bytes(offset, end)
                return
            self._zero_bytes(offset, first * size)
            self._append([(Run(first, last - first, ZERO_SLOT), 0)])
            self._zero_bytes(min(last * size, end), end)

    def _zero_bytes(self, offset: int, end: int) -> None:
        size = self.block_size
        while offset < end:
            stop = min(end, (offset // size + 1) * size)
            self._write_batch(offset, memoryview(bytes(stop - offset)))
            offset = stop

    def _write_batch(self, offset: int, data: memoryview) -> None:
        """Write at most `BATCH` bytes; called with _writing."""
        size = self.block_size
        block, data = offset // size, self._fill_up(offset, data)
        count = len(data) // size
        zeros = [self._is_zero(data[at : at + size]) for at in range(0, len(data), size)]
        records: list[tuple[Run, int]] = []
        at = 0
        while at < count:
            stop = at + 1
            while stop < count and zeros[stop] == zeros[at]:
                stop += 1
            if zeros[at]:
                records.append((Run(block + at, stop - at, ZERO_SLOT), 0))
            else:
                records += self._write_slots(block + at, data[at * size : stop * size])
            at = stop
        self._append(records)

    def _is_zero(self, block: memoryview) -> bool:
        return not any(block[:16]) and block.tobytes() == self._zero_block

    def _write_slots(self, block: int, data: memoryview) -> list[tuple[Run, int]]:
        """Put whole blocks into free slots; what the journal has to say of them."""
        size = self.block_size
        self._check_room(len(data) // size)
        records: list[tuple[Run, int]] = []
        taken = self._slots.take(len(data) // size)
        try:
            for slots in taken:
                part, data = data[: slots.length * size], data[slots.length * size :]
                _pwrite_all(self._data, part, slots.slot * size)
                records.append((Run(block, slots.length, slots.slot), zlib.crc32(part)))
                block += slots.length
        except OSError as error:
            self._slots.give_back(taken)
            raise _full(self.path, error) from error
        return records

    def _fill_up(self, offset: int, data: memoryview) -> memoryview:
        """`data` with what its first and last block hold around it; behind the image's end, zeros."""
        size, end = self.block_size, offset + len(data)
        before, after = offset % size, -end % size
        if not before and not after:
            return data
        parts: list[memoryview] = self._read(offset - before, before) if before else []
        parts.append(data)
        known = min(after, self.size - end)
        if known:
            parts += self._read(end, known)
        return memoryview(b"".join([*parts, bytes(after - known)]))

    def _check_room(self, count: int) -> None:
        if self._over_quota(count):
            self._flush()  # frees what was overwritten
            if self._over_quota(count):
                raise OverlayFull(self.path, f"the quota of {self.quota} bytes is used up")
        if len(self._map) >= MAX_RUNS:
            raise OverlayFull(self.path, f"its map has {MAX_RUNS} runs, which is the most")

    def _over_quota(self, count: int) -> bool:
        return bool(self.quota) and (self._slots.in_use + count) * self.block_size > self.quota

    def _append(self, records: list[tuple[Run, int]]) -> None:
        """Make `records` part of the journal, then of the map; called with _writing."""
        if self._broken:
            raise OverlayError(self.path, "writing its journal failed before; it is read-only until it is reopened")
        end = HEAD_SIZE + self._records * RECORD_SIZE
        data = b"".join(build_record(run, crc, self._seed) for run, crc in records)
        try:
            _pwrite_all(self._journal, memoryview(data), end)
        except OSError as error:
            self._broken = True
            os.ftruncate(self._journal, end)
            self._broken = False
            raise _full(self.path, error) from error
        self._records += len(records)
        with self._state:
            for run, _ in records:
                freed = self._map.set(run)
                self._superseded += freed
                self._superseded_bytes += sum(part.length for part in freed) * self.block_size
        if self._superseded_bytes > UNFLUSHED_LIMIT:
            self._flush()

    def flush(self) -> None:
        """Put everything written so far on the disk.

        Raises: OSError, and then nothing is certain that was written since the last flush.
        """
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        if self._broken:
            raise OverlayError(self.path, "writing its journal failed before; reopen it")
        try:
            if self._records > max(COMPACT_AT, 4 * len(self._map)):
                self._start_journal()
            else:
                os.fdatasync(self._data)
                end = HEAD_SIZE + self._records * RECORD_SIZE
                _pwrite_all(self._journal, memoryview(build_mark(self._records, self._seed)), end)
                self._records += 1
                os.fdatasync(self._journal)
        except OSError:
            self._broken = True  # after a failed sync the kernel forgets which pages it could not write
            raise
        with self._state:
            self._generation += 1
        self._slots.give_back(self._superseded)
        self._superseded, self._superseded_bytes = [], 0

    def close(self) -> None:
        """Flush if possible, and close both files."""
        with self._writing:
            if not self._broken:
                try:
                    self._flush()
                except OSError as error:
                    log.error("%s: cannot flush: %s", self.path, error)
            os.close(self._journal)
            os.close(self._data)


def _full(path: str, error: OSError) -> OSError | OverlayFull:
    """`error` itself, unless it says that there is no room."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OverlayFull(path, error.strerror or str(error))
    return error


def _pwrite_all(file: int, data: memoryview, position: int) -> None:
    while data:
        done = os.pwrite(file, data, position)
        position += done
        data = data[done:]


def _sync_directory(path: str) -> None:
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot; their renames are ordered by themselves
            os.fsync(folder)
    finally:
        os.close(folder)
