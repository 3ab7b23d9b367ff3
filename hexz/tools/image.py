"""Raw images to pack: regular files and block devices, read by position, their holes known."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from hexz.errors import SnapshotNotFound, SnapshotUnreadable, SystemFailure, UsageError

__all__ = ["DiskImage", "ImageSpan", "open_image"]


class ImageSpan(NamedTuple):
    """A run of the image, in bytes; a hole has nothing stored and reads as zeros."""

    offset: int
    length: int
    hole: bool


class DiskImage:
    """An open image of `size` bytes; `read_into` may be called from any thread."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.modified = max(int(os.fstat(fd).st_mtime), 0)
        self._fd = fd

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on.

        Raises: SystemFailure when the disk fails, or the image shrank.
        """
        while target:
            try:
                got = os.preadv(self._fd, [target], offset)
            except OSError as error:
                raise SystemFailure(f"{self.path}: reading at {offset}: {error.strerror}") from error
            if not got:
                raise SystemFailure(f"{self.path}: ends at {offset}: it shrank while it was read")
            target = target[got:]
            offset += got

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes.  Raises: SystemFailure."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def spans(self, block: int, most: int) -> Iterator[ImageSpan]:
        """The whole image: holes of any length, and data in spans of up to `most` bytes, a multiple of `block`.

        Every span begins at a multiple of `block` bytes.
        Raises: SystemFailure when the image shrank.
        """
        offset = 0
        while offset < self.size:
            data = self._next(offset, os.SEEK_DATA)
            start = self.size if data == self.size else data // block * block
            if start > offset:
                yield ImageSpan(offset, start - offset, True)
                offset = start
            if offset < self.size:
                hole = self._next(data, os.SEEK_HOLE)
                end = min(-(-hole // block) * block, self.size)
                for begin in range(offset, end, most):
                    yield ImageSpan(begin, min(most, end - begin), False)
                offset = end

    def _next(self, offset: int, whence: int) -> int:
        """Where data or a hole begins at or after `offset`; what cannot tell is data from end to end."""
        try:
            return min(os.lseek(self._fd, offset, whence), self.size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return offset if whence == os.SEEK_DATA else self.size
            # The file system has nothing more: a hole up to the end, unless the end has moved.
            if os.lseek(self._fd, 0, os.SEEK_END) < self.size:
                raise SystemFailure(f"{self.path}: it shrank while it was read") from None
            return self.size

    def close(self) -> None:
        """Close the image."""
        os.close(self._fd)

    def __enter__(self) -> DiskImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(path: str) -> DiskImage:
    """Open a regular file or a block device.

    Raises: SnapshotNotFound, SnapshotUnreadable, SystemFailure; UsageError for anything that has no size.
    """
    try:
        # Non-blocking, so that a FIFO cannot hang the open; files and disks ignore it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise SnapshotNotFound(path, "no such file") from None
    except PermissionError:
        raise SnapshotUnreadable(path, "permission denied") from None
    except OSError as error:
        raise SystemFailure(f"{path}: cannot open: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or character device"
        raise UsageError(f"{path}: is {what}: pack reads a regular file or a block device")
    return DiskImage(path, fd)
