"""What the disk cache's tables are made of; the lock of `shelf` guards everything in them."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from hexz.storage.diskcache.pieces import PieceIndex
from hexz.storage.diskcache.segments import Layout, segment_name

__all__ = ["Segment", "ShelfCounts", "Spot", "CacheEntry"]


class Segment:
    """A segment's file as the cache knows it; perhaps of one that is on the disk and was not looked into so far."""

    __slots__ = (
        "cells", "charge", "descriptor", "end", "gone", "key", "layout", "made", "number", "owner",
        "seed", "slots", "touched", "users",
    )  # fmt: skip

    def __init__(self, key: int, number: int, owner: str, charge: int, layout: Layout | None = None) -> None:
        """`owner`: the folder's name.  Without a `layout`: it is on the disk, and its head was not read so far."""
        self.key = key
        self.number = number
        self.owner = owner
        self.charge = charge
        """Bytes on the disk, at most."""
        self.layout = layout
        self.made = layout is None
        self.seed = 0
        """The head's CRC-32, once that is known."""
        self.slots = 0
        """Slots that were given to somebody."""
        self.end = layout.begin if layout is not None else 0
        """Where the next piece goes."""
        self.cells = array("Q")
        """In which cells of its file's index its pieces are, some perhaps no more."""
        self.users = 0
        self.descriptor = -1
        self.gone = False
        self.touched = 0.0

    @property
    def name(self) -> str:
        """The name of its file."""
        return segment_name(self.number)

    def remember(self, cell: int) -> None:
        """Note that there is a piece of it in a cell."""
        if not self.cells or self.cells[-1] != cell:
            self.cells.append(cell)


class CacheEntry:
    """What there is of one identity; the index only while it is open.  The shelf's lock guards everything."""

    __slots__ = ("identity", "index", "name", "on_disk", "opens", "room", "segments")

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity = ""
        self.index: PieceIndex | None = None
        self.opens = 0
        self.segments: dict[int, Segment] = {}
        self.on_disk = 0
        """Segments that take room on the disk: those that are just being made or removed as well."""
        self.room: list[Segment] = []
        """Segments that may take more."""


class Spot(NamedTuple):
    """Where a piece is to be written."""

    segment: Segment
    slot: int
    place: int


class ShelfCounts:
    """What happened since the start; the shelf's lock guards it."""

    def __init__(self) -> None:
        self.hits = self.hit_bytes = self.misses = self.written = 0
        self.evicted = self.damaged = self.failures = 0
