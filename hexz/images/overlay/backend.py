"""Writable images over a snapshot: what was written is in an overlay, everything else below it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence

from hexz.errors import HandedOver
from hexz.images.backend import Abilities, Backend, ImageExtent, Session
from hexz.images.errors import BackendDown, OverlayInUse
from hexz.images.folder import FileLocation
from hexz.images.hexz import OpenStream, zero_extents
from hexz.images.overlay.journal import Head
from hexz.images.overlay.store import OverlayStore
from hexz.snapshot import Stream

__all__ = ["BLOCK_SIZE", "OverlayBackend"]

BLOCK_SIZE = 64 << 10
"""Bytes of a block in new overlays: what a write touches at least, and what the dirty map tells apart."""
PIECE = 64 << 10
IN_USE_S = 2.0
"""How long a request waits for an overlay that another process has."""
RETRY_S = 0.01


class OverlayBackend(Backend):
    """The overlay at `path` over the stream that `open_stream` gives; opened at the first use.

    The lease of the snapshot is kept until the last session has ended after `close`: what lies below must not go away.
    """

    def __init__(
        self, path: str | FileLocation, open_stream: OpenStream, quota: int = 0, read_only: bool = False
    ) -> None:
        self._place = FileLocation.of(path) if isinstance(path, str) else path
        self._open_stream = open_stream
        self._quota = quota
        self._read_only = read_only
        self._lock = threading.Lock()  # guards opening and closing
        self._store: OverlayStore | None = None
        self._sessions = 0
        self._writers = 0  # of them
        self._closed = self._handed_over = False

    def open(self, writing: bool = False) -> Session:
        """A session; the first one opens the overlay, or makes it.

        Where another process has it, that one may be about to give it to this one: then it is waited for.
        """
        deadline = time.monotonic() + IN_USE_S
        while True:
            try:
                return self._open(writing)
            except OverlayInUse:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_S)

    def _open(self, writing: bool) -> Session:
        with self._lock:
            if self._handed_over:
                raise HandedOver("another process goes on with this image: ask again")
            if self._closed:
                raise BackendDown(self._place.path, "the image was taken out of service")
            if self._store is None:
                self._lease, self._stream = self._open_stream()
                try:
                    self._store = self._open_store(self._stream)
                except BaseException:
                    self._lease.release()
                    raise
            session = OverlaySession(self, self._store, self._stream, self._read_only, writing)
            self._sessions += 1
            self._writers += writing
            return session

    def _open_store(self, stream: Stream) -> OverlayStore:
        head = Head(stream.size, BLOCK_SIZE, stream.etag, stream.file.path, stream.name)
        return OverlayStore(self._place, head, stream.read, self._quota, self._read_only, stream.former_etag)

    def leave(self, writing: bool) -> None:
        """A session ended."""
        with self._lock:
            self._sessions -= 1
            self._writers -= writing
            self._give_up_if_done()

    def close(self) -> None:
        """Give the overlay up once nobody writes, and close it once its last session has ended."""
        with self._lock:
            self._closed = True
            self._give_up_if_done()

    def hand_over(self, deadline: float) -> None:
        """The same, but those who still write at the `deadline` (monotonic) are told to do it again elsewhere."""
        self._handed_over = True
        self.close()
        while self._writers and time.monotonic() < deadline:
            time.sleep(RETRY_S)
        with self._lock:
            if self._store is not None:
                self._store.give_up()

    def _give_up_if_done(self) -> None:
        if not self._closed or self._store is None:
            return
        if not self._sessions:
            self._store.close()
            self._store = None
            self._lease.release()
        elif not self._writers:
            self._store.give_up()  # readers keep what they see: whoever writes next uses none of its slots again


class OverlaySession(Session):
    """Reads and writes of one request."""

    def __init__(
        self, backend: OverlayBackend, store: OverlayStore, stream: Stream, read_only: bool, writing: bool
    ) -> None:
        self._backend: OverlayBackend | None = backend
        self._for_writing = writing
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
            backend.leave(self._for_writing)
