"""Where an image's files are: names in a folder that is opened step by step, so that no link leads out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

__all__ = ["Folder", "FileLocation", "not_regular"]

OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""With every file: a link is refused, and a FIFO keeps nobody waiting."""
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS)
"""What file systems answer whose folders cannot be synced; their renames are ordered by themselves."""


class FileLocation(NamedTuple):
    """The file `name` in the folder that `steps` lead to from the folder `root`."""

    root: str
    steps: tuple[str, ...]
    name: str

    @classmethod
    def of(cls, path: str) -> FileLocation:
        """The place of a file whose folder is trusted."""
        folder, name = os.path.split(os.path.abspath(path))
        return cls(folder, (), name)

    @classmethod
    def below(cls, root: str, path: str) -> FileLocation:
        """The place of `path`, each step of which from `root` on must not be a link.  Both are real paths."""
        *steps, name = os.path.relpath(path, root).split(os.sep)
        return cls(root, tuple(steps), name)

    @property
    def path(self) -> str:
        """For messages."""
        return os.path.join(self.root, *self.steps, self.name)


class Folder:
    """The folder of a place, opened.  Close it."""

    def __init__(self, place: FileLocation) -> None:
        """Open it.  Raises: OSError, also when a step is a link."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._fd = os.open(place.root, flags)
        for step in place.steps:
            above = self._fd
            try:
                self._fd = os.open(step, flags | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a regular file in the folder; a new file is the owner's alone.

        Raises: OSError, also for a link and whatever else is no regular file.
        """
        file = os.open(name, flags | OPEN, 0o600, dir_fd=self._fd)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise not_regular()
        return file

    def stat(self, name: str) -> os.stat_result:
        """What is there under the name; a link is not followed.  Raises: OSError."""
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def rename(self, old: str, new: str) -> None:
        """Let a file have another's name.  Raises: OSError."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def free_bytes(self) -> int:
        """What the file system has room for."""
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def sync(self) -> None:
        """Put its names on the disk.  Raises: OSError."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in CANNOT_SYNC:
                raise

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def not_regular() -> OSError:
    """A link, a FIFO, a folder: no file to keep an image in."""
    return OSError(errno.EINVAL, "not a regular file")
