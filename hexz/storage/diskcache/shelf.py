"""The segments of the disk cache: their room on the disk, their descriptors, and which of them goes first.

One lock guards all tables and is never held across I/O: who reads or writes a segment is counted as its user before,
with the place that is to be written to given to nobody else, and a segment with users is not evicted.  So nobody ever
reads what is removed, and the bytes of what is removed are free once that was done.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable

from hexz.errors import ConfigError
from hexz.storage.diskcache.cachefolder import CacheFolder, FoundSegment
from hexz.storage.diskcache.pieces import CELL, stored_length
from hexz.storage.diskcache.segments import (
    HEAD_SIZE,
    RECORD_SIZE,
    Layout,
    build_head,
    digest_of,
    parse_head,
    segment_name,
    write_all,
)
from hexz.storage.diskcache.tables import CacheEntry, Segment, ShelfCounts, Spot

__all__ = ["Shelf"]

log = logging.getLogger("hexz.storage")

SEGMENT = 4 << 20
SMALLEST_SEGMENT = 64 << 10
LARGEST_SEGMENT = 256 << 20
"""Bytes of pieces in a segment: less in a small cache, that evicting one takes little of it, more in a huge one."""
MAX_SEGMENTS = 1 << 15
MAX_INDEX = 48 << 20
"""Bytes of memory for the indexes of all open files; the oldest segments of open files go before it takes more."""
MAX_DESCRIPTORS = 128
"""Open files, besides the lock; who finds no free one does without the cache."""
MAX_ROOM = 16
"""Segments of a file that are looked through for room."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_S = 1.0
"""So long nothing is written after the disk was full; one segment is given back meanwhile."""
LOG_S = 60.0
"""Trouble is logged at most that often."""


class Shelf:
    """Segments of at most `size` bytes on the disk."""

    def __init__(self, folder: str, size: int) -> None:
        """Lock the folder, and take over what is in it.  Raises: ConfigError."""
        self.size = size
        self._folder = CacheFolder(folder)
        payload = max(min(size // 32, SEGMENT), size // (MAX_SEGMENTS // 2), SMALLEST_SEGMENT)
        payload = min(1 << (payload.bit_length() - 1), LARGEST_SEGMENT)
        self.piece = min(payload, CELL)
        """Bytes of the longest piece; pieces lie between multiples of it."""
        self._layout = Layout(max(payload // 4096, 64), payload // self.piece * stored_length(self.piece))
        self.lock = threading.Lock()  # guards what follows, and every stored file and segment
        self.segments: OrderedDict[int, Segment] = OrderedDict()  # by key, the least recently used first
        self.stored: dict[str, CacheEntry] = {}
        self.index_cost = 0
        self.held = 4 * self._folder.block  # the folder itself and the lock
        self.counts = ShelfCounts()
        self.closing = False
        self._opened: OrderedDict[int, Segment] = OrderedDict()  # those with a descriptor
        self._stuck: list[Segment] = []  # that could not be removed so far
        self._descriptors = 0
        self._keys = 0
        self._number = 0
        self._busy = 0
        self._renewing = False
        self._logged = -LOG_S
        self._full_until = 0.0
        try:
            self._list()
        except OSError as error:
            self._folder.close()
            raise ConfigError(f"{folder}: cannot read the disk cache: {error.strerror}") from None

    def _list(self) -> None:
        """Take over what is there, and remove what is too much.  Raises: OSError."""
        found: list[FoundSegment] = []
        for file in self._folder.segments():
            if len(found) < MAX_SEGMENTS:
                found.append(file)
            else:
                self._folder.remove(file.owner, segment_name(file.number))
        for file in sorted(found, key=lambda file: file.used):
            stored = self.stored.setdefault(file.owner, CacheEntry(file.owner))
            self._enter(stored, file.number, max(file.allocated, self._folder.block) + self._folder.block)
        self.evict_until(lambda: self.held <= self.size)

    def _enter(self, stored: CacheEntry, number: int, charge: int, layout: Layout | None = None) -> Segment:
        self._keys += 1
        # Keys are four bytes in the index: a number that comes again belongs to nobody any more.
        while (key := self._keys & 0xFFFFFFFF) in self.segments:
            self._keys += 1
        segment = Segment(key, number, stored.name, charge, layout)
        self._number = max(self._number, number)
        self.segments[key] = stored.segments[key] = segment
        self.held += charge + self._extra(stored)
        stored.on_disk += 1
        return segment

    def _extra(self, stored: CacheEntry) -> int:
        """Bytes for the folder of a file that has none so far, its name included."""
        return 0 if stored.on_disk else 2 * self._folder.block

    def _cost(self, layout: Layout, slots: int, end: int) -> int:
        """Bytes that a segment takes at most, a block for its name and the list of its extents included."""
        block = self._folder.block
        used = (HEAD_SIZE + slots * RECORD_SIZE, end - layout.begin)
        return block + sum(-(-length // block) * block for length in used)

    def reserve(self, stored: CacheEntry, length: int) -> Spot | None:
        """A spot for `length` bytes as they are stored, of which the caller is a user; None where there is no room."""
        while True:
            with self.lock:
                if self.closing or stored.index is None or time.monotonic() < self._full_until:
                    return None
                segment = self._with_room(stored, length)
                if segment is not None:
                    slots, end = segment.slots + 1, segment.end + length
                    layout = segment.layout or self._layout
                    need = max(self._cost(layout, slots, end) - segment.charge, 0)
                else:
                    slots, end = 1, self._layout.begin + length
                    need = self._cost(self._layout, slots, end) + self._extra(stored)
                fits = self.held + need <= self.size and len(self.segments) + len(self._stuck) < MAX_SEGMENTS
                if fits and self.index_cost <= MAX_INDEX:
                    if segment is None:
                        number = max(self._number + 1, time.time_ns())
                        segment = self._enter(stored, number, need - self._extra(stored), self._layout)
                    else:
                        segment.charge += need
                        self.held += need
                    spot = Spot(segment, segment.slots, segment.end)
                    segment.slots, segment.end = slots, end
                    segment.users += 1
                    self._busy += 1
                    self.segments.move_to_end(segment.key)
                    return spot
                victim = self._take_oldest(of_open=fits)
            if victim is None or not self._remove(victim):
                return None

    def _with_room(self, stored: CacheEntry, length: int) -> Segment | None:
        for segment in list(stored.room):
            layout = segment.layout
            if layout is None or segment.slots >= layout.slots or segment.end >= layout.length:
                stored.room.remove(segment)
            elif segment.end + length <= layout.length:
                return segment
        return None

    def measured(self, segment: Segment, allocated: int) -> None:
        """Count the bytes that a segment was found to take, if they are more than was thought; under the lock."""
        more = allocated + self._folder.block - segment.charge
        if more > 0 and not segment.gone:
            segment.charge += more
            self.held += more

    def scanned(self, segment: Segment, slots: int, end: int, allocated: int) -> None:
        """Go on from what was found in a segment's map; under the lock."""
        if segment.layout is not None:
            segment.slots, segment.end = max(segment.slots, slots), max(segment.end, end)
            cost = self._cost(segment.layout, segment.slots, segment.end) - self._folder.block
            self.measured(segment, max(cost, allocated))
            self.offer(segment)

    def offer(self, segment: Segment) -> None:
        """Note that there may be room in a segment; under the lock."""
        stored = self.stored.get(segment.owner)
        known = segment.end > 0  # else its map was not read
        if stored is not None and known and not segment.gone and segment not in stored.room:
            stored.room = [*stored.room[1 - MAX_ROOM :], segment]

    def evict_until(self, enough: Callable[[], bool], of_open: bool = False) -> None:
        """Remove what was least recently used, of files that are open or of all, until there is `enough` room."""
        while True:
            with self.lock:
                victim = None if enough() else self._take_oldest(of_open)
            if victim is None or not self._remove(victim):
                return

    def _take_oldest(self, of_open: bool = False) -> Segment | None:
        """The segment that nobody uses now and nobody used for longest, taken out of the tables."""
        if self._stuck and not of_open:
            return self._stuck.pop()
        for segment in self.segments.values():
            if not segment.users and (not of_open or self.stored[segment.owner].index is not None):
                self._detach(segment)
                return segment
        return None

    def _detach(self, segment: Segment) -> None:
        """Take a segment out of the tables; its bytes count until it is removed."""
        del self.segments[segment.key]
        segment.gone = True
        stored = self.stored[segment.owner]
        del stored.segments[segment.key]
        self._opened.pop(segment.key, None)
        if segment in stored.room:
            stored.room.remove(segment)
        if stored.index is not None:
            before = stored.index.cost
            stored.index.drop(segment.key, segment.cells)
            self.index_cost += stored.index.cost - before

    def discard(self, segment: Segment) -> None:
        """Forget a segment that is of no use, and remove it once its last user is done; the caller is one."""
        with self.lock:
            if not segment.gone:
                self._detach(segment)

    def _remove(self, segment: Segment) -> bool:
        """Remove a detached segment that nobody uses; False when it is still there."""
        descriptor, segment.descriptor = segment.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        try:
            self._folder.remove(segment.owner, segment.name)
            error = None
        except OSError as found:
            error = found
            self.fail(error)
        with self.lock:
            self._descriptors -= descriptor >= 0
            stored = self.stored[segment.owner]
            if error is None:
                self.held -= segment.charge
                self.counts.evicted += segment.charge
                stored.on_disk -= 1
            else:
                self._stuck.append(segment)
            empty = not stored.on_disk
            self.tidy(stored)
        if empty:
            try:
                self._folder.remove_folder(segment.owner)
            except OSError as found:
                self.fail(found)
            else:
                with self.lock:
                    self.held -= 2 * self._folder.block
        return error is None

    def tidy(self, stored: CacheEntry) -> None:
        """Forget a file that there is nothing of; under the lock."""
        if not stored.opens:
            if stored.index is not None:
                self.index_cost -= stored.index.cost
                for segment in stored.segments.values():
                    segment.cells = array("Q")
            stored.index = None
            stored.room = []
            if not stored.on_disk and not stored.segments:
                self.stored.pop(stored.name, None)

    def use(self, segment: Segment) -> int:
        """A segment's descriptor, of which the caller is a user until `release`; -1 when there is none to be had."""
        with self.lock:
            if segment.gone or not segment.made or self.closing:
                return -1
            segment.users += 1
            self._busy += 1
        descriptor = self.descriptor(segment)
        if descriptor < 0:
            self.release(segment)
        return descriptor

    def descriptor(self, segment: Segment) -> int:
        """The same for who is a user already; makes the file of a new segment."""
        with self.lock:
            if segment.descriptor >= 0:
                if not segment.gone:
                    self._opened.move_to_end(segment.key)
                return segment.descriptor
            idle = -1
            if self._descriptors >= MAX_DESCRIPTORS:
                other = next((other for other in self._opened.values() if not other.users), None)
                if other is None:
                    return -1
                del self._opened[other.key]
                idle, other.descriptor = other.descriptor, -1
            else:
                self._descriptors += 1
            identity = self.stored[segment.owner].identity
        if idle >= 0:
            os.close(idle)
        descriptor = -1
        try:
            descriptor = self._open(segment, identity) if segment.made else self._make(segment, identity)
            useless = descriptor < 0
        except FileNotFoundError:
            useless = True
        except OSError as error:
            self.fail(error)
            useless = not segment.made
        if useless:
            self.discard(segment)
        with self.lock:
            if descriptor < 0 or segment.descriptor >= 0 or segment.gone:
                self._descriptors -= 1
                spare, descriptor = descriptor, segment.descriptor
            else:
                spare, segment.descriptor, segment.made = -1, descriptor, True
                self._opened[segment.key] = segment
                self.offer(segment)
        if spare >= 0:
            os.close(spare)
        return descriptor

    def _open(self, segment: Segment, identity: str) -> int:
        """Open a segment that has been made; -1 if it is not what it was, or not this identity's.  Raises: OSError."""
        descriptor = self._folder.open(segment.owner, segment.name)
        try:
            data = os.pread(descriptor, HEAD_SIZE, 0)
        except BaseException:
            os.close(descriptor)
            raise
        head = parse_head(data, digest_of(identity), segment.number)
        if head is None or (segment.layout is not None and head != (segment.layout, segment.seed)):
            os.close(descriptor)
            if data.strip(b"\0"):  # else whoever made it was killed before it had a head
                with self.lock:
                    self.counts.damaged += 1
            return -1
        segment.layout, segment.seed = head
        return descriptor

    def _make(self, segment: Segment, identity: str) -> int:
        """Make a segment's file.  Raises: OSError."""
        layout = segment.layout or self._layout
        if not self._folder.is_ours():
            self._renew()
        descriptor = self._folder.make(segment.owner, segment.name)
        try:
            os.ftruncate(descriptor, layout.length)
            head = build_head(identity, segment.number, layout)
            write_all(descriptor, head, 0)
        except BaseException:
            os.close(descriptor)
            raise
        segment.seed = int.from_bytes(head[-4:], "little")
        return descriptor

    def _renew(self) -> None:
        """Make the folder again that somebody removed, and forget what was in it.  Raises: OSError."""
        with self.lock:
            if self._renewing or self.closing:
                raise FileNotFoundError(errno.ENOENT, "the folder is just being made")
            self._renewing = True
        try:
            self._folder.renew()
            with self.lock:
                known = [segment for segment in self.segments.values() if segment.made]
            for segment in known:
                if not self._folder.has(segment.owner, segment.name):
                    with self.lock:
                        gone = segment.gone
                        idle = not gone and not segment.users
                        if not gone:
                            self._detach(segment)
                    if idle:
                        self._remove(segment)
        except ConfigError as error:
            raise OSError(errno.EBUSY, str(error)) from None
        finally:
            with self.lock:
                self._renewing = False

    def release(self, segment: Segment) -> None:
        """Be a user no more."""
        with self.lock:
            segment.users -= 1
            removed = segment.gone and not segment.users
        if removed:
            self._remove(segment)
        with self.lock:
            self._busy -= 1
            last = self.closing and not self._busy
        if last:
            self._shut()

    def close(self) -> None:
        """Use nothing any more; the lock is given back by the last who is still reading or writing.  Idempotent."""
        with self.lock:
            last = not self.closing and not self._busy
            self.closing = True
        if last:
            self._shut()

    def _shut(self) -> None:
        with self.lock:
            opened = list(self._opened.values())
            self._opened.clear()
        for segment in opened:
            os.close(segment.descriptor)
        self._folder.close()

    def fail(self, error: OSError) -> None:
        """Count an error of the disk and log it now and then; a full one is left alone for a while."""
        now = time.monotonic()
        full = error.errno in FULL
        with self.lock:
            self.counts.failures += 1
            logged = now - self._logged >= LOG_S
            if logged:
                self._logged = now
            gives = full and now >= self._full_until
            if full:
                self._full_until = now + FULL_S
            victim = self._take_oldest() if gives else None
        if logged:
            log.warning("%s: the disk cache: %s", self._folder.named, error.strerror or error)
        if victim is not None:
            self._remove(victim)
