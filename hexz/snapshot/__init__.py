"""Open snapshots and read their streams: the lock-free reader, extents, parents."""

from hexz.snapshot.context import DEFAULT_CACHE, OpenContext, new_context
from hexz.snapshot.doubts import doubt
from hexz.snapshot.extents import DATA, PARENT, ZERO, Effort, Extent
from hexz.snapshot.opening import Opener, open_snapshot
from hexz.snapshot.snapshot import Snapshot
from hexz.snapshot.stream import ZEROS, Stream

__all__ = [
    "DATA",
    "DEFAULT_CACHE",
    "PARENT",
    "ZERO",
    "ZEROS",
    "Effort",
    "Extent",
    "OpenContext",
    "Opener",
    "Snapshot",
    "Stream",
    "doubt",
    "new_context",
    "open_snapshot",
]
