"""An overlay's data and its map, and how they survive a kill at any moment.

The data file has slots of one block each; a block that is written always goes to
a slot that nothing on the disk refers to, so that what was there before stays
whole.  The journal (`hexz.images.overlay.journal`) says which block is in which slot.
Slots that were overwritten become free only when a flush has put the newer state
on the disk.  Opening replays the journal and writes nothing; before the first
write it is written anew, short.

After an error of the disk that leaves in doubt what is on it, the next write or
flush first puts there again what was written since the last flush, of which every
CRC-32 is known, and begins a new journal.  Where that does not succeed nothing
more is written, and no flush says that it was.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence

from hexz.images.errors import BackendDown, ImageError, NotAble, OverlayError, OverlayFull
from hexz.images.folder import FileLocation
from hexz.images.overlay.blockmap import ZERO_SLOT, BlockMap, BlockRun, SlotRun, Slots
from hexz.images.overlay.files import JournalFile, OverlayFiles, pwrite_all
from hexz.images.overlay.journal import Head
from hexz.images.overlay.recovery import JOURNAL_SUFFIX, MAX_RUNS, Recovered, crc_of, read_head, recover

__all__ = ["OverlayStore"]

log = logging.getLogger("hexz.images")

BATCH = 1 << 20
"""Bytes written to the data file between two appends to the journal."""
COMPACT_AT = 1 << 16
"""Records a journal may have, however few runs the map has, before it is written anew."""
UNFLUSHED_LIMIT = 1 << 30
"""Bytes that are written, and that wait to be overwritten, between two flushes: one is done when they are more."""
OPTIMISTIC_TRIES = 8

ReadBase = Callable[[int, int], Sequence[memoryview]]
"""Views that tile (offset, length) of the stream below."""


class OverlayStore:
    """The written blocks of one overlay.  Reads run beside one write; writes wait for each other."""

    def __init__(
        self,
        path: str | FileLocation,
        head: Head,
        read_base: ReadBase,
        quota: int = 0,
        read_only: bool = False,
        former_etag: str = "",
    ) -> None:
        """Open the overlay at `path`; `quota` in bytes of data, 0 = none.  Nothing is written yet.

        `former_etag` is another name of the bytes below, by which an overlay may know them.
        Raises: OverlayError when it lies over other bytes than `head` says, or another process has it; OSError.
        """
        place = FileLocation.of(path) if isinstance(path, str) else path
        self.path = place.path
        self.quota = quota
        self._read_only = read_only
        self._read_base = read_base
        self._writing = threading.Lock()  # orders the writers; held while one writes, never taken by a reader
        self._state = threading.Lock()  # guards _map, _generation
        self._generation = 0
        self._files = OverlayFiles(place, read_only)
        try:
            self.head, found = self._recover(head, (head.etag, former_etag))
        except BaseException:
            self._files.close()
            raise
        recovered = found or Recovered(BlockMap(), 0, [])
        self._map = recovered.written
        self._zero_block = bytes(self.head.block_size)
        # Guarded by _writing, all below.
        self._journal = JournalFile(self._files)
        self._slots = Slots(self._map)
        self._withheld = self._slots.withhold(self._files.data_blocks(self.head.block_size))
        """Slots that this process needs no more and that are not known to be free."""
        self._alone = False
        self._superseded: list[SlotRun] = []
        self._unmarked = recovered.unmarked
        self._unflushed = recovered.unflushed
        self._waiting_bytes = 0
        self._rewrite = bool(recovered.unflushed)
        """What is unflushed may be in the kernel's memory alone, and be taken for written there."""
        self._doubtful = False  # the same, and it may even be gone from there; read without the lock
        self._gone = False
        if found is None and not read_only:
            with contextlib.suppress(OSError, OverlayFull):  # then it begins with the first write
                self._renew()

    def _recover(self, wanted: Head, etags: tuple[str, str]) -> tuple[Head, Recovered | None]:
        """Head and content, None where there is no journal yet."""
        files = self._files
        try:
            journal = files.open_journal()
        except FileNotFoundError:
            if files.data_blocks(1):
                raise OverlayError(self.path, f"it has data, but its journal, *{JOURNAL_SUFFIX}, is missing") from None
            return wanted, None
        except OSError as error:
            raise OverlayError(self.path + JOURNAL_SUFFIX, error.strerror or str(error)) from error
        try:
            found = read_head(self.path, journal)
            if found.etag not in etags or found.size != wanted.size:
                log.error("%s: made over %s", self.path, found.snapshot)
                raise OverlayError(self.path, "this overlay was made over other bytes")
            head = wanted._replace(block_size=found.block_size)
            return head, recover(self.path, journal, head, files.data)
        finally:
            os.close(journal)

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
        data = os.pread(self._files.data, length, position)
        if len(data) < length:
            raise OverlayError(self.path, "the data file is shorter than its map says")
        if self._doubtful:
            first, last = position // self.block_size, (position + length - 1) // self.block_size
            for run, crc in list(self._unflushed):
                if run.slot <= last and first < run.slot + run.length:
                    self._check_kept(run, crc)
        return memoryview(data)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`; the span lies in the image.

        Raises: OverlayFull; OSError; what reading the stream below raises.
        """
        size = self.block_size
        with self._writing:
            self._begin()
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
            self._begin()
            first = -(-offset // size)
            last = self.head.blocks if end == self.size else end // size
            if first >= last:
                self._zero_bytes(offset, end)
                return
            self._zero_bytes(offset, first * size)
            self._append([(BlockRun(first, last - first, ZERO_SLOT), 0)])
            self._zero_bytes(min(last * size, end), end)

    def _begin(self) -> None:
        """Before anything is written: the journal can be appended to."""
        if self._read_only:
            raise NotAble("this image is read-only")
        if self._gone:
            raise BackendDown(self.path, "the image was taken out of service")
        if not self._journal.sound or self._doubtful:
            self._renew()

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
        self._check_room(zeros.count(False))
        taken: list[SlotRun] = []
        records: list[tuple[BlockRun, int]] = []
        at = 0
        try:
            while at < count:
                stop = at + 1
                while stop < count and zeros[stop] == zeros[at]:
                    stop += 1
                if zeros[at]:
                    records.append((BlockRun(block + at, stop - at, ZERO_SLOT), 0))
                else:
                    slots = self._slots.take(stop - at)
                    taken += slots
                    records += self._write_slots(block + at, data[at * size : stop * size], slots)
                at = stop
            self._append(records)
        except BaseException:
            if self._journal.sound:
                self._slots.give_back(taken)
            else:
                self._withheld += taken  # until a journal has begun that surely does not have them
            raise
        if self._waiting_bytes > UNFLUSHED_LIMIT:
            self._flush()

    def _is_zero(self, block: memoryview) -> bool:
        return not any(block[:16]) and block.tobytes() == self._zero_block

    def _write_slots(self, block: int, data: memoryview, taken: list[SlotRun]) -> list[tuple[BlockRun, int]]:
        """Put whole blocks into free slots; what the journal has to say of them."""
        size = self.block_size
        records: list[tuple[BlockRun, int]] = []
        file = self._files.writable()
        for slots in taken:
            part, data = data[: slots.length * size], data[slots.length * size :]
            try:
                pwrite_all(file, part, slots.slot * size)
            except OSError as error:
                raise _trouble(self.path, error) from error
            records.append((BlockRun(block, slots.length, slots.slot), zlib.crc32(part)))
            block += slots.length
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

    def _over_quota(self, count: int) -> bool:
        return bool(self.quota) and (self._slots.in_use + count) * self.block_size > self.quota

    def _append(self, records: list[tuple[BlockRun, int]]) -> None:
        """Make `records` part of the journal, then of the map; called with _writing."""
        # How often blocks are written between two flushes, and that zeros take no place, must not let it grow.
        if self._journal.records + len(records) > max(COMPACT_AT, 4 * len(self._map)):
            self._renew()
        growth = sum(max(self._map.growth(run), 0) for run, _ in records)
        if growth and len(self._map) + growth > MAX_RUNS:
            raise OverlayFull(self.path, f"its map has {MAX_RUNS} runs, which is the most")
        try:
            self._journal.append(records)
        except OSError as error:
            raise _trouble(self.path, error) from error
        self._unmarked += len(records)
        for run, crc in records:
            if run.slot != ZERO_SLOT:
                self._unflushed.append((run, crc))
                self._waiting_bytes += run.length * self.block_size
            with self._state:
                freed = self._map.set(run)
            self._superseded += freed
            self._waiting_bytes += sum(part.length for part in freed) * self.block_size

    def flush(self) -> None:
        """Put everything written so far on the disk.

        Raises: OverlayFull, OverlayError, OSError, and then nothing is certain that was written since the last flush.
        """
        with self._writing:
            if not self._gone:
                self._flush()
            elif self._unmarked and not self._read_only:
                raise BackendDown(self.path, "the image was taken out of service")

    def _flush(self) -> None:
        if not self._unmarked:
            self._reclaim()
        elif not self._journal.sound or self._doubtful:
            self._renew()
        else:
            try:
                self._sync_data()
                self._journal.mark()
            except OSError as error:
                raise _trouble(self.path, error) from error
            self._settle()

    def _sync_data(self) -> None:
        try:
            os.fdatasync(self._files.writable())
        except OSError:
            # The kernel tells this once, and then takes the pages that it could not write for written.
            self._rewrite = self._doubtful = True
            raise

    def _renew(self) -> None:
        """Put everything on the disk that may not be there, and begin a new journal."""
        try:
            self._files.writable()
            if self._rewrite:
                self._write_again()
            self._sync_data()
            self._journal.begin(self.head, self._map)
        except OSError as error:
            raise _trouble(self.path, error) from error
        self._rewrite = self._doubtful = False
        self._settle()

    def _write_again(self) -> None:
        """Have the kernel write once more what no flush has put on the disk."""
        for run, crc in self._unflushed:
            position, end = run.slot * self.block_size, (run.slot + run.length) * self.block_size
            self._check_kept(run, crc)
            while position < end:
                part = os.pread(self._files.data, min(BATCH, end - position), position)
                pwrite_all(self._files.writable(), memoryview(part), position)
                position += len(part)

    def _check_kept(self, run: BlockRun, crc: int) -> None:
        if crc_of(self._files.data, run, self.block_size) != crc:
            raise OverlayError(self.path, "the disk lost what had been written since the last flush: reopen it")

    def _settle(self) -> None:
        """After everything came to be on the disk."""
        with self._state:
            self._generation += 1
        self._withheld += self._superseded
        self._superseded = []
        self._unflushed = []
        self._unmarked = self._waiting_bytes = 0
        self._reclaim()

    def _reclaim(self) -> None:
        """Free the slots that nothing on the disk refers to, once nobody can be reading them."""
        if not self._journal.sound or not self._withheld:
            return
        if not self._alone:
            self._alone = self._files.alone()
        if self._alone:
            self._slots.give_back(self._withheld)
            self._withheld = []

    def give_up(self) -> None:
        """Write no more, so that another process may; what is read is from now on the same for ever."""
        with self._writing:
            if not self._gone and not self._read_only:
                self._flush_if_possible()
                self._files.let_go()
            self._gone = True

    def _flush_if_possible(self) -> None:
        try:
            self._flush()
        except (OSError, ImageError) as error:
            log.error("cannot flush: %s", error)

    def close(self) -> None:
        """Flush if possible, and close both files."""
        with self._writing:
            if not self._gone and not self._read_only:
                self._flush_if_possible()
            self._gone = True
            self._journal.close()
            self._files.close()


def _trouble(path: str, error: OSError) -> ImageError:
    """What an error of the system is to a client."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (OverlayFull if full else OverlayError)(path, error.strerror or str(error))
