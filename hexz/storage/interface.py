"""What the reader asks of whatever holds a snapshot's bytes.

The interface is small on purpose (size, identity, read a range, close): whatever can answer ranges can stand behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol

from hexz.metrics.files import ReadCounts

__all__ = ["Around", "SealFacts", "Storage"]


class SealFacts(NamedTuple):
    """The seal that a file is read through: ``plain`` or ``keyed``, bytes of a leaf, and the root hash in hex."""

    kind: str
    leaf_size: int
    root: str


class Around(NamedTuple):
    """What is stored right before and behind something that is read: where each piece before begins, behind ends.

    The nearest come first.  `met_before`, `met_behind`: what lies beyond the last one has been read already.
    """

    before: Sequence[int]
    behind: Sequence[int]
    met_before: bool
    met_behind: bool


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
    version: str
    """What tells these bytes from others under the name, without reading them; empty where nothing does."""

    @property
    def lane(self) -> Hashable:
        """What else waits for the same thing as reads of this: None for disks here, a server for what is far away."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, or StorageError."""

    def view(self, offset: int, length: int, around: Callable[[], Around] | None = None) -> bytes | memoryview:
        """The same for who can do with a part of something longer, which may spare a copy.

        `around` tells what lies beside it, of which some may be wanted soon.
        """

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """These spans (start, end) will be read soon: begin to get them, if they are far away.  Never waits."""

    def forget(self, offset: int, length: int) -> None:
        """These bytes turned out to be wrong: where they came from afar, they are to come anew the next time."""

    def reach(self) -> int:
        """Bytes that come while two round trips pass: so much has to be on its way for who reads on."""

    def look(self) -> bool:
        """Whether the bytes are still those that were opened, as far as can be told without reading them."""

    def close(self) -> None:
        """Give the resource back once running reads are done."""
