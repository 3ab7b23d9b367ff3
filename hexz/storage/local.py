"""A snapshot in a regular file, read with ``pread``."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable

from hexz.errors import SnapshotNotFound, SnapshotUnreadable, StorageError, SystemFailure
from hexz.metrics.files import ReadCounts
from hexz.storage.interface import Around, SealFacts

__all__ = ["LocalFile"]

log = logging.getLogger("hexz.storage")

NO_FILE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""What opening says of names that cannot be a regular file's: too long, links in a circle, sockets, dead devices."""


CHANGED = "the file was changed while it was open: its bytes are not served until it is opened again"


class LocalFile:
    """A regular file, read with ``pread`` so that threads share no position.

    `identity` tells the file from every other one on this machine, also after it
    was replaced under the same name.

    Who writes to an open file would have readers take half of it for the whole: after each
    read its size and time are compared with those when it was opened, before anybody gets a byte.
    A difference is for good.  Changes of owner, mode or links are none.
    """

    seal: SealFacts | None = None
    lane = None
    version = ""
    watched = True
    """False where what is read is checked by other means, against which a changed time says nothing."""

    def __init__(self, path: str, resolved: bool = False) -> None:
        """Open `path`; a `resolved` one is a real path already, on which no link is followed any more.

        Raises: SnapshotNotFound, SnapshotUnreadable, SystemFailure (no descriptors left).
        """
        self.name = path
        try:
            # Non-blocking, so that a FIFO cannot hang the open; regular files ignore it.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = _open_resolved(path, flags) if resolved else os.open(path, flags)
        except (FileNotFoundError, NotADirectoryError):
            raise SnapshotNotFound(path, "no such file") from None
        except PermissionError:
            raise SnapshotUnreadable(path, "permission denied") from None
        except ValueError:
            raise SnapshotNotFound(repr(path), "not a possible file name") from None
        except OSError as error:
            if error.errno in NO_FILE:
                raise SnapshotNotFound(path, f"no such file ({error.strerror})") from None
            raise SystemFailure(f"{path}: cannot open: {error.strerror}") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise SnapshotNotFound(path, "not a regular file")
        self.size = status.st_size
        self.modified_ns = status.st_mtime_ns
        self.identity = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
        self.reads = ReadCounts()  # guarded by _lock
        self.changed = False  # set once, under _lock
        self._lock = threading.Lock()
        self._readers = 0  # guarded by _lock
        self._closing = False  # guarded by _lock

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`.

        Raises: StorageError when the file shrank or was changed, the disk fails, or the file was closed.
        """
        if self.changed:
            raise StorageError(self.name, offset, length, CHANGED)
        # A descriptor number is reused as soon as it is closed: reads under way keep it open.
        with self._lock:
            if self._closing:
                raise StorageError(self.name, offset, length, "the snapshot is closed")
            self._readers += 1
        began = time.perf_counter()
        data = b""
        try:
            data = os.pread(self._fd, length, offset)
            if len(data) != length:
                data = self._read_rest(data, offset, length)
            if self.watched and self._differs():
                data = b""
                raise StorageError(self.name, offset, length, CHANGED)
        except OSError as error:
            raise StorageError(self.name, offset, length, error.strerror or str(error)) from error
        finally:
            with self._lock:
                if len(data) == length and not self.changed:
                    self.reads.add(length, time.perf_counter() - began)
                else:
                    self.reads.fail()
                self._readers -= 1
                last = self._closing and not self._readers
            if last:
                os.close(self._fd)
        return data

    def view(self, offset: int, length: int, around: Callable[[], Around] | None = None) -> bytes:
        """The same as `read`: nothing would be copied anyway."""
        return self.read(offset, length)

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing: it is near."""

    def count_failure(self) -> None:
        """Count a read that went well, whose bytes turned out to be wrong."""
        with self._lock:
            self.reads.fail()

    def _read_rest(self, data: bytes, offset: int, length: int) -> bytes:
        parts = [data]
        got = len(data)
        while got < length:
            data = os.pread(self._fd, length - got, offset + got)
            if not data:
                if self.watched:
                    self._differs()
                raise StorageError(self.name, offset, length, f"the file ends at {offset + got}: it was truncated")
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def forget(self, offset: int, length: int) -> None:
        """Nothing: the next read asks the disk again."""

    def reach(self) -> int:
        """None: what is near comes at once."""
        return 0

    def look(self) -> bool:
        """Whether it is still as it was opened, going by its size and time; False for good once it was not."""
        with self._lock:
            if self._closing:
                return not self.changed
            self._readers += 1
        try:
            return not (self.changed or (self.watched and self._differs()))
        except OSError:
            return True  # whoever reads it is told
        finally:
            with self._lock:
                self._readers -= 1
                last = self._closing and not self._readers
            if last:
                os.close(self._fd)

    def _differs(self) -> bool:
        status = os.fstat(self._fd)
        if status.st_mtime_ns == self.modified_ns and status.st_size == self.size:
            return False
        with self._lock:
            first, self.changed = not self.changed, True
        if first:
            log.error("%s: %s (a snapshot is replaced by renaming a new file over it)", self.name, CHANGED)
        return True

    def close(self) -> None:
        """Close the file when the last running read is done; idempotent."""
        with self._lock:
            now = not self._closing and not self._readers
            self._closing = True
        if now:
            os.close(self._fd)


def _open_resolved(path: str, flags: int) -> int:
    """A descriptor of what is at this real path, step by step: a link that was put there meanwhile leads nowhere.

    Raises: OSError.
    """
    *steps, name = os.path.normpath(path).lstrip("/").split("/")
    step_flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open("/", step_flags)
    try:
        for step in steps:
            above, folder = folder, os.open(step, step_flags, dir_fd=folder)
            os.close(above)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
