"""Where the bodies of the images API come from: a session's bytes in order."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from hexz.images.backend import Session
from hexz.images.errors import BackendError

__all__ = ["SessionSource"]


def _nothing() -> Generator[Sequence[memoryview], None, None]:
    """No pieces."""
    yield from ()


class SessionSource:
    """A session read from front to back while it is sent; keeps one piece at most."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pieces = _nothing()
        self._next = -1  # where _pieces goes on
        self._start = self._end = 0  # what _views are
        self._views: list[memoryview] = []
        self._stop = 0

    def expect(self, offset: int, length: int) -> None:
        """Read the first piece of a span now, so that trouble shows before the response begins.

        The session is asked for the whole span at once.

        Raises: what reading the session raises.
        """
        self._stop = offset + length
        if length:
            self.read(offset, length)

    def read(self, offset: int, length: int) -> list[memoryview]:
        """At least one byte of the span; cheap when it lies in the piece that was read last."""
        if not self._start <= offset < self._end:
            self._advance(offset, length)
        views: list[memoryview] = []
        at = self._start
        for view in self._views:
            if at + len(view) > offset:
                views.append(view[max(offset - at, 0) :])
            at += len(view)
        # Never more than asked for: another range may begin behind this one.
        extra = self._end - (offset + length)
        while extra > 0:
            last = views.pop()
            if len(last) > extra:
                views.append(last[: len(last) - extra])
            extra -= len(last)
        return views

    def _advance(self, offset: int, length: int) -> None:
        views = next(self._pieces, None) if offset == self._next else None
        if views is None:
            self._stop = max(self._stop, offset + length) if self._stop > offset else offset + length
            self.close()  # its buffers may be needed for what is read next
            self._pieces = self._session.read(offset, self._stop - offset)
            views = next(self._pieces, None)
        if not views:
            raise BackendError("image", "its storage sent less than it should")
        self._views = list(views)
        self._start = offset
        self._end = self._next = offset + sum(len(view) for view in views)

    def close(self) -> None:
        """Let go of the piece that was read last, and of the session's reading."""
        self._views = []
        self._start = self._end = 0
        self._pieces.close()
