"""What the disk cache has of one remote file: reading it back, checked, and keeping more of it."""

from __future__ import annotations

import os
import time

from hexz.storage.diskcache.pieces import CELL, KeptPiece, stored_length
from hexz.storage.diskcache.segments import (
    HEAD_SIZE,
    RECORD_SIZE,
    build_piece,
    build_record,
    read_piece,
    write_all,
)
from hexz.storage.diskcache.shelf import Shelf
from hexz.storage.diskcache.tables import CacheEntry, Segment

__all__ = ["CachedFile"]

TOUCH_S = 300.0
"""How exactly the time of the last use is known after a restart."""


class CachedFile:
    """A handle to what there is of one identity; any number of threads may use it at once."""

    def __init__(self, shelf: Shelf, stored: CacheEntry) -> None:
        self._shelf = shelf
        self._stored = stored
        self._closed = False

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of the bytes `start` to `end` is not there, in order.  Reads nothing from the disk."""
        with self._shelf.lock:
            index = None if self._closed or self._shelf.closing else self._stored.index
            if index is None:
                return [(start, end)] if start < end else []
            return index.gaps(start, end)

    def held(self) -> int:
        """Bytes of the file that are there."""
        with self._shelf.lock:
            index = None if self._closed else self._stored.index
            return index.held if index is not None else 0

    def read(self, start: int, end: int) -> bytes | None:
        """The bytes `start` to `end`, every one of them checked; None when one is not there, or not right.

        What is damaged is forgotten: `missing` names it from then on.  None although nothing is missing means that the
        disk cannot be read, or that the segment goes just now.
        """
        plan = self._plan(start, end)
        parts: list[memoryview] = []
        whole, at = plan is not None, 0
        while plan and at < len(plan):
            segment = plan[at][1]
            upto = at + 1
            while upto < len(plan) and plan[upto][1] is segment:
                upto += 1
            # What is damaged further on is found now as well, and can be fetched together.
            found = self._read_segment(segment, [piece for piece, _ in plan[at:upto]], start, end)
            if found is None:
                whole = False
            else:
                parts += found
            at = upto
        with self._shelf.lock:
            if not whole:
                self._shelf.counts.misses += 1
                return None
            self._shelf.counts.hits += 1
            self._shelf.counts.hit_bytes += end - start
        return b"".join(parts)

    def _plan(self, start: int, end: int) -> list[tuple[KeptPiece, Segment]] | None:
        """Which pieces have the span, if all of it is there; their segments are used now."""
        shelf, plan, position = self._shelf, [], start
        with shelf.lock:
            index = None if self._closed or shelf.closing else self._stored.index
            if index is None:
                return None
            for piece in index.find(start, end):
                segment = shelf.segments.get(piece.segment)
                if piece.start > position or segment is None:
                    return None
                plan.append((piece, segment))
                position = piece.end
            if position < end:
                return None
            for _, segment in plan:
                shelf.segments.move_to_end(segment.key)
        return plan

    def _read_segment(self, segment: Segment, pieces: list[KeptPiece], start: int, end: int) -> list[memoryview] | None:
        """What some pieces of a segment have of the span; None when not all of that is there and right."""
        shelf, stored = self._shelf, self._stored
        descriptor = shelf.use(segment)
        if descriptor < 0:
            return None
        parts: list[memoryview] = []
        lost: list[tuple[int, int]] = []
        damaged = 0
        try:
            for piece in pieces:
                try:
                    found, wrong = read_piece(descriptor, segment.seed, piece, start, end)
                    parts += found
                    lost += wrong
                    damaged += len(wrong)
                except OSError as error:
                    shelf.fail(error)
                    lost.append((piece.start, piece.end))
            now = time.time()
            if now - segment.touched > TOUCH_S:
                segment.touched = now
                os.utime(descriptor)
        except OSError as error:  # a time that cannot be set takes nothing from what was read
            shelf.fail(error)
        finally:
            shelf.release(segment)
        if not lost:
            return parts
        with shelf.lock:
            shelf.counts.damaged += damaged
            if stored.index is not None:
                before = stored.index.cost
                for span in lost:
                    stored.index.cut(*span, segment=segment.key)
                shelf.index_cost += stored.index.cost - before
        return None

    def keep(self, start: int, data: bytes | memoryview) -> None:
        """Store what of these bytes is not there so far, if that can be done; never an error.

        What comes in one call is one piece for the index, up to a MiB.  When it returns, it holds no part of `data`.
        """
        if self._closed:
            return
        view = memoryview(data).cast("B")
        for begin, end in self.missing(start, start + len(view)):
            edges = [begin, *range((begin // self._shelf.piece + 1) * self._shelf.piece, end, self._shelf.piece), end]
            for at, stop in zip(edges, edges[1:]):
                if not self._write(at, view[at - start : stop - start]):
                    return

    def _write(self, start: int, data: memoryview) -> bool:
        """Store one piece, if there is room; False when the rest need not be tried."""
        shelf, stored = self._shelf, self._stored
        spot = shelf.reserve(stored, stored_length(len(data)))
        if spot is None:
            return False
        segment = spot.segment
        try:
            descriptor = shelf.descriptor(segment)
            if descriptor < 0:
                return False
            write_all(descriptor, build_piece(start, data, segment.seed), spot.place)
            record = build_record(start, len(data), spot.place, segment.seed)
            write_all(descriptor, record, HEAD_SIZE + spot.slot * RECORD_SIZE)
            status = os.fstat(descriptor)
            if not status.st_nlink:  # somebody deleted it: what is written there is lost at the next start
                shelf.discard(segment)
                return True
            with shelf.lock:
                shelf.measured(segment, status.st_blocks * 512)
                shelf.counts.written += len(data)
                if stored.index is not None and not segment.gone:
                    before = stored.index.cost
                    stored.index.add(KeptPiece(start, start + len(data), segment.key, spot.place))
                    shelf.index_cost += stored.index.cost - before
                    segment.remember(start // CELL)
        except OSError as error:
            shelf.fail(error)
            return False
        except MemoryError:  # whoever keeps something has it already, and needs no cache for that
            return False
        finally:
            shelf.release(segment)
        shelf.evict_until(lambda: shelf.held <= shelf.size)
        return True

    def forget(self, start: int, end: int) -> None:
        """Let go of these bytes, which came wrong: `missing` names them from then on."""
        shelf, stored = self._shelf, self._stored
        with shelf.lock:
            if stored.index is not None:
                before = stored.index.cost
                stored.index.cut(start, end)
                shelf.index_cost += stored.index.cost - before

    def close(self) -> None:
        """Give the handle back; with the last one of a file its index goes.  Idempotent."""
        with self._shelf.lock:
            if not self._closed:
                self._closed = True
                self._stored.opens -= 1
                self._shelf.tidy(self._stored)
