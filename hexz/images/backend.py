"""What an image is to the images API: the one interface that every backend has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from hexz.images.errors import NotAble

__all__ = [
    "Abilities",
    "Backend",
    "ImageExtent",
    "Replacement",
    "Session",
    "coalesced",
]


class ImageExtent(NamedTuple):
    """`length` bytes from `start` on: all zeros or not, a hole or not, changed since the parent or bitmap or not."""

    start: int
    length: int
    zero: bool
    hole: bool = False
    dirty: bool = True

    def goes_on_as(self, other: ImageExtent) -> bool:
        """Whether `other` only differs in its place."""
        return self[2:] == other[2:]


class Abilities(NamedTuple):
    """What an image can do.  `replace`: take a whole new content of any length, at once or not at all."""

    extents: bool = True
    dirty: bool = False
    write: bool = False
    zero: bool = False
    flush: bool = False
    replace: bool = False


class Replacement(ABC):
    """A whole new content on its way; it shows only after `commit`."""

    @abstractmethod
    def write(self, data: memoryview) -> None:
        """The next bytes."""

    @abstractmethod
    def commit(self, flush: bool) -> None:
        """Let it take the image's place; with `flush`, safely on the disk."""

    @abstractmethod
    def abort(self) -> None:
        """Forget it; also fine after `commit`."""


class Session(ABC):
    """One request's hold on an image: what it reads stays one state of it.  Not shared between threads.

    Sizes and offsets are in bytes; the spans given to all methods lie in the image.
    `etag` identifies immutable bytes, None where they can change.
    """

    size: int
    block_size: int
    abilities: Abilities
    etag: str | None = None

    @abstractmethod
    def read(self, offset: int, length: int) -> Generator[Sequence[memoryview], None, None]:
        """The span in pieces; the views of one are valid until the next is asked for or the generator is closed.

        Raises: BackendError, BlockError, StorageError, OSError.
        """

    @abstractmethod
    def extents(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        """What the span consists of, in order and without gaps; neighbours may be of one kind.

        `dirty` asks which bytes changed, and without `abilities.dirty` says that all did.
        """

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`.  Raises: NotAble and what `read` raises."""
        raise NotAble("this image is read-only")

    def zero(self, offset: int, length: int) -> None:
        """Make the span zero.  Raises: as `write`."""
        raise NotAble("this image is read-only")

    def flush(self) -> None:  # noqa: B027 - right for whatever cannot be written
        """Put what was written on the disk; nothing to do where nothing can be written."""

    def replace(self, length: int) -> Replacement:
        """Begin a whole new content of `length` bytes.  Raises: as `write`."""
        raise NotAble("this image cannot be replaced")

    def close(self) -> None:  # noqa: B027 - right for what holds nothing
        """Give back what the session holds."""


class Backend(ABC):
    """Where the bytes of one image are; shared by all threads."""

    @abstractmethod
    def open(self, writing: bool = False) -> Session:
        """A session, for `writing` or flushing if that is wanted.

        Raises: BackendError, NoSuchSnapshot, what opening a snapshot raises.
        """

    def close(self) -> None:  # noqa: B027 - right for what keeps nothing
        """Free what is kept between sessions; sessions that are open end by themselves."""

    def hand_over(self, deadline: float) -> None:
        """Let another process take the image over: at the `deadline` (monotonic) nothing is written any more.

        Sessions that only read go on.
        """
        self.close()


def coalesced(extents: Iterator[ImageExtent]) -> Iterator[ImageExtent]:
    """The same with neighbours of one kind joined."""
    pending: ImageExtent | None = None
    for extent in extents:
        if pending is not None and pending.goes_on_as(extent):
            pending = pending._replace(length=pending.length + extent.length)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending
