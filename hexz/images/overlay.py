"""Writable images over a snapshot: what was written is in an overlay, everything else below it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence

from hexz.images.backend import Abilities, Backend, BackendDown, ImageExtent, Session
from hexz.images.hexz import OpenStream, zero_extents
from hexz.images.journal import Head
from hexz.images.places import Place
from hexz.images.store import OverlayStore
from hexz.snapshot import Stream

__all__ = ["BLOCK_SIZE", "OverlayBackend"]

BLOCK_SIZE = 64 << 10
"""Bytes of a block in new overlays: what a write touches at least, and what the dirty map tells apart."""
PIECE = 64 << 10


class OverlayBackend(Backend):
    """The overlay at `path` over the stream that `open_stream` gives; opened at the first use.

    The lease of the snapshot is kept until `close`: what lies below must not go away.
    """

    def __init__(self, path: str | Place, open_stream: OpenStream, quota: int = 0, read_only: bool = False) -> None:
        self._place = Place.of(path) if isinstance(path, str) else path
        self._open_stream = open_stream
        self._quota = quota
        self._read_only = read_only
        self._lock = threading.Lock()  # guards opening and closing
        self._store: OverlayStore | None = None
        self._sessions = 0
        self._closed = False

    def open(self, writing: bool = False) -> Session:
        """A session; the first one opens the overlay, or makes it."""
        with self._lock:
            if self._closed:
                raise BackendDown(self._place.path, "the image was taken out of service")
            if self._store is None:
                self._lease, self._stream = self._open_stream()
                try:
                    self._store = self._open_store(self._stream)
                except BaseException:
                    self._lease.release()
                    raise
            self._sessions += 1
            return OverlaySession(self, self._store, self._stream, self._read_only)

    def _open_store(self, stream: Stream) -> OverlayStore:
        head = Head(stream.size, BLOCK_SIZE, stream.etag, stream.snapshot.path, stream.name)
        return OverlayStore(self._place, head, stream.read, self._quota, self._read_only)

    def leave(self) -> None:
        """A session ended."""
        with self._lock:
            self._sessions -= 1
            self._close_if_done()

    def close(self) -> None:
        """Close the overlay once its last session has ended."""
        with self._lock:
            self._closed = True
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._closed and not self._sessions and self._store is not None:
            self._store.close()
            self._store = None
            self._lease.release()


class OverlaySession(Session):
    """Reads and writes of one request."""

    def __init__(self, backend: OverlayBackend, store: OverlayStore, stream: Stream, read_only: bool) -> None:
        self._backend: OverlayBackend | None = backend
        self._store = store
        self._stream = stream
        self.size = store.size
        self.block_size = store.block_size
        can = not read_only
        self.abilities = Abilities(dirty=True, write=can, zero=can, flush=can)

    def read(self, offset: int, length: int) -> Generator[Sequence[memoryview], None, None]:
        """The span in pieces of 64 KiB."""
        end = offset + length
        while offset < end:
            size = min(PIECE, end - offset)
            yield self._store.read(offset, size)
            offset += size

    def extents(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        """What was written is dirty; between, the snapshot's own extents are clean."""
        end = offset + length
        for start, size, zero in self._store.written(offset, end):
            if start > offset:
                yield from self._below(offset, start - offset, dirty)
            yield ImageExtent(start, size, zero)
            offset = start + size
        if offset < end:
            yield from self._below(offset, end - offset, dirty)

    def _below(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        for extent in zero_extents(self._stream, offset, length):
            yield extent._replace(dirty=not dirty)

    def write(self, offset: int, data: memoryview) -> None:
        """Write to the overlay."""
        if not self.abilities.write:
            super().write(offset, data)
        self._store.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Note zeros in the overlay's map."""
        if not self.abilities.zero:
            super().zero(offset, length)
        self._store.zero(offset, length)

    def flush(self) -> None:
        """Put what was written on the disk."""
        if self.abilities.flush:
            self._store.flush()

    def close(self) -> None:
        """Let go of the overlay."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.leave()
