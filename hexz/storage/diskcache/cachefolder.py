"""The folder of the disk cache: whether it is safe to use, whose it is, and what is in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from hexz.errors import ConfigError

__all__ = ["CacheFolder", "FoundSegment"]

LOCK = "lock"
FOLDER_MODE = 0o700
FILE_MODE = 0o600
MAX_BLOCK = 1 << 16
"""What a file system's blocks are taken for at most."""
_IDENTITY = re.compile(r"[0-9a-f]{40}")
_SEGMENT = re.compile(r"[0-3][0-9a-f]{15}")


class FoundSegment(NamedTuple):
    """A file that was found: its folder's name, its number, bytes that it takes on the disk, and when it was used."""

    owner: str
    number: int
    allocated: int
    used: float


class CacheFolder:
    """The folder, locked for this process until `close` or its end.

    In it are a folder for each identity, in those the segments, and the lock file with the pid for people.  Other
    names are nobody's business here: they are neither counted nor removed.
    """

    def __init__(self, folder: str) -> None:
        """Make the folder if need be and lock it.

        Raises: ConfigError when it cannot be used, others could write to it, or another daemon uses it.
        """
        self.named = folder
        try:
            os.makedirs(folder, FOLDER_MODE, exist_ok=True)
            link = os.lstat(folder)
            if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
                raise ConfigError(f"{folder}: cannot be the disk cache: it is a symbolic link of user {link.st_uid}")
            self.path = os.path.realpath(folder)
            self._check()
            blocks = os.statvfs(self.path).f_frsize
            self._lock, self._mark = self._take()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a possible name"
            raise ConfigError(f"{folder}: cannot be the disk cache: {reason}") from None
        self.block = min(max(blocks, 512), MAX_BLOCK)
        """Bytes that the file system allocates at once."""

    def _check(self) -> None:
        status = os.stat(self.path)
        if status.st_uid != os.geteuid():
            raise ConfigError(f"{self.named}: cannot be the disk cache: it belongs to user {status.st_uid}")
        if status.st_mode & 0o022:
            raise ConfigError(f"{self.named}: cannot be the disk cache: others may write to it (chmod go-w)")

    def _take(self) -> tuple[int, os.stat_result]:
        """The lock file, locked, and what tells it from another.  Raises: OSError, ConfigError."""
        path = os.path.join(self.path, LOCK)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
        try:
            mark = os.fstat(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(descriptor, 32, 0).strip().decode("ascii", "replace")
                who = f"process {pid}" if pid.isdigit() else "another process"
                raise ConfigError(
                    f"{self.named}: {who} uses this disk cache: give each daemon a folder of its own"
                ) from None
            with contextlib.suppress(OSError):  # the number is for people, and the disk may be full
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, mark

    def is_ours(self) -> bool:
        """Whether the folder is still there, with the lock that we have.  Raises: OSError."""
        try:
            found = os.stat(os.path.join(self.path, LOCK), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(found, self._mark)

    def renew(self) -> None:
        """Make it again, after somebody removed it.

        Raises: OSError; ConfigError when another daemon was quicker, or others could write to it.
        """
        os.makedirs(self.path, FOLDER_MODE, exist_ok=True)
        self._check()
        old = self._lock
        self._lock, self._mark = self._take()
        os.close(old)

    def segments(self) -> Iterator[FoundSegment]:
        """Every segment there is; a folder with nothing in it is removed.  Raises: OSError."""
        with os.scandir(self.path) as folders:
            for folder in folders:
                if not _IDENTITY.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                    continue
                with contextlib.suppress(OSError):
                    os.rmdir(folder.path)
                    continue
                with os.scandir(folder.path) as files:
                    for file in files:
                        if _SEGMENT.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                            status = file.stat(follow_symlinks=False)
                            yield FoundSegment(folder.name, int(file.name, 16), status.st_blocks * 512, status.st_mtime)

    def open(self, owner: str, name: str) -> int:
        """A segment's file, for reading and writing.  Raises: OSError."""
        return os.open(os.path.join(self.path, owner, name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def make(self, owner: str, name: str) -> int:
        """A new file for a segment, in a folder that is made if need be.  Raises: OSError."""
        folder = os.path.join(self.path, owner)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, FOLDER_MODE)
        try:
            return os.open(os.path.join(folder, name), flags, FILE_MODE)
        except FileNotFoundError:  # it was empty, and whoever emptied it has removed it
            os.mkdir(folder, FOLDER_MODE)
            return os.open(os.path.join(folder, name), flags, FILE_MODE)

    def remove(self, owner: str, name: str) -> None:
        """Remove a segment's file, if it is there.  Raises: OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, owner, name))

    def remove_folder(self, owner: str) -> None:
        """Remove an identity's folder if nothing is in it.  Raises: OSError when it is there, empty, and stays."""
        try:
            os.rmdir(os.path.join(self.path, owner))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def has(self, owner: str, name: str) -> bool:
        """Whether a segment's file is there."""
        return os.path.lexists(os.path.join(self.path, owner, name))

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)
