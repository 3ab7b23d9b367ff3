"""What the reader asks of whatever holds a snapshot's bytes.

The interface is small on purpose (size, identity, read a range, close): whatever can answer ranges can stand behind it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hexz.metrics.files import ReadCounts

__all__ = ["SealFacts", "Storage"]


class SealFacts(NamedTuple):
    """The seal that a file is read through: ``plain`` or ``keyed``, bytes of a leaf, and the root hash in hex."""

    kind: str
    leaf_size: int
    root: str


class Storage(Protocol):
    """Immutable bytes with a name."""

    name: str
    size: int
    modified_ns: int
    identity: str
    reads: ReadCounts
    seal: SealFacts | None
    changed: bool
    """Others were seen to write to it while it was open: nothing more is read of it."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, or StorageError."""

    def view(self, offset: int, length: int) -> bytes | memoryview:
        """The same for who can do with a part of something longer, which may spare a copy."""

    def look(self) -> bool:
        """Whether the bytes are still those that were opened, as far as can be told without reading them."""

    def close(self) -> None:
        """Give the resource back once running reads are done."""
