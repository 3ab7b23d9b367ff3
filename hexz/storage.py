"""Where a snapshot's bytes come from.

The interface is small on purpose (size, identity, read a range, close): whatever
can answer ranges can stand behind it.  Today that is a local file.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import NamedTuple, Protocol

from hexz.errors import SnapshotNotFound, SnapshotUnreadable, StorageError, SystemFailure
from hexz.metrics.files import ReadCounts

__all__ = ["LocalFile", "SealFacts", "Storage"]

NO_FILE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""What opening says of names that cannot be a regular file's: too long, links in a circle, sockets, dead devices."""


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

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, or StorageError."""

    def view(self, offset: int, length: int) -> bytes | memoryview:
        """The same for who can do with a part of something longer, which may spare a copy."""

    def close(self) -> None:
        """Give the resource back once running reads are done."""


class LocalFile:
    """A regular file, read with ``pread`` so that threads share no position.

    `identity` tells the file from every other one on this machine, also after it
    was replaced under the same name.
    """

    seal: SealFacts | None = None

    def __init__(self, path: str) -> None:
        """Open `path`.

        Raises: SnapshotNotFound, SnapshotUnreadable, SystemFailure (no descriptors left).
        """
        self.name = path
        try:
            # Non-blocking, so that a FIFO cannot hang the open; regular files ignore it.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
        self._lock = threading.Lock()
        self._readers = 0  # guarded by _lock
        self._closing = False  # guarded by _lock

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`.

        Raises: StorageError when the file shrank, the disk fails, or the file was closed.
        """
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
        except OSError as error:
            raise StorageError(self.name, offset, length, error.strerror or str(error)) from error
        finally:
            with self._lock:
                if len(data) == length:
                    self.reads.add(length, time.perf_counter() - began)
                else:
                    self.reads.fail()
                self._readers -= 1
                last = self._closing and not self._readers
            if last:
                os.close(self._fd)
        return data

    def view(self, offset: int, length: int) -> bytes:
        """The same as `read`: nothing would be copied anyway."""
        return self.read(offset, length)

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
                raise StorageError(self.name, offset, length, f"the file ends at {offset + got}: it was truncated")
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file when the last running read is done; idempotent."""
        with self._lock:
            now = not self._closing and not self._readers
            self._closing = True
        if now:
            os.close(self._fd)
