"""Raw files: ranges, holes as zero extents, and a whole new content that appears at once."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections.abc import Generator, Iterator, Sequence

from hexz.errors import NoSuchSnapshot, StorageError
from hexz.images.backend import Abilities, Backend, BackendError, ImageExtent, Replacement, Session
from hexz.images.buffers import transfer_buffer

__all__ = ["FileBackend"]

log = logging.getLogger("hexz.images")

DEFAULT_BLOCK = 4096
QCOW2_MAGIC = b"QFI\xfb"


class NotRaw(BackendError):
    """The file is no raw image."""

    http_status = 500


class FileFull(BackendError):
    """The file system has no room."""

    http_status = 507


class FileBackend(Backend):
    """The raw image at `path`, which a whole PUT may replace unless it is `read_only`."""

    def __init__(self, path: str, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only

    def open(self, writing: bool = False) -> Session:
        """A session on the file that has the name now; replacing it later does not disturb the session."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            log.warning("%s: the image's file is missing", self._path)
            raise NoSuchSnapshot("the image's file is missing") from None
        except OSError as error:
            raise NotRaw(self._path, error.strerror or str(error)) from error
        try:
            return FileSession(self._path, file, self._read_only)
        except BaseException:
            os.close(file)
            raise


class FileSession(Session):
    """An open raw file."""

    def __init__(self, path: str, file: int, read_only: bool) -> None:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise NotRaw(path, "not a regular file")
        if os.pread(file, 4, 0) == QCOW2_MAGIC:
            raise NotRaw(path, "a qcow2 image: export it with qemu-nbd and register backend nbd instead")
        self._path = path
        self._file = file
        self.size = status.st_size
        self.block_size = DEFAULT_BLOCK
        self.abilities = Abilities(replace=not read_only, flush=not read_only)

    def read(self, offset: int, length: int) -> Generator[Sequence[memoryview], None, None]:
        """The span in pieces, as large as the buffer that is free."""
        with transfer_buffer(length) as buffer:
            while length:
                try:
                    got = os.preadv(self._file, [buffer[: min(len(buffer), length)]], offset)
                except OSError as error:
                    raise StorageError(self._path, offset, length, error.strerror or str(error)) from error
                if not got:
                    raise StorageError(self._path, offset, length, "the file has become shorter")
                yield (buffer[:got],)
                offset += got
                length -= got

    def extents(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        """Holes as the file system knows them; a file has no dirty bitmap, so all of it counts as dirty."""
        end = offset + length
        while offset < end:
            data = self._seek(offset, os.SEEK_DATA, end)
            if data > offset:
                yield ImageExtent(offset, data - offset, zero=True, hole=True)
            offset = data
            if offset < end:
                hole = self._seek(offset, os.SEEK_HOLE, end)
                yield ImageExtent(offset, hole - offset, zero=False)
                offset = hole

    def _seek(self, offset: int, what: int, end: int) -> int:
        try:
            return min(os.lseek(self._file, offset, what), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                return end
            raise StorageError(self._path, offset, end - offset, error.strerror or str(error)) from error

    def flush(self) -> None:
        """Put the file on the disk."""
        os.fsync(self._file)

    def replace(self, length: int) -> Replacement:
        """Write aside what is to become the file."""
        if not self.abilities.replace:
            return super().replace(length)
        return _Aside(self._path)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class _Aside(Replacement):
    """A file beside the image that takes its name in the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._aside: str | None = os.path.join(
            os.path.dirname(path), f".{os.path.basename(path)[:200]}.{secrets.token_hex(8)}"
        )
        try:
            self._file = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            old = os.stat(path)
            os.fchmod(self._file, stat.S_IMODE(old.st_mode))
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):  # only root may; the data is what counts
                    os.fchown(self._file, old.st_uid, old.st_gid)
        except OSError as error:
            raise FileFull(path, f"cannot write beside it: {error.strerror}") from error

    def write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise FileFull(self._path, error.strerror or str(error)) from error
            raise BackendError(self._path, error.strerror or str(error)) from error

    def commit(self, flush: bool) -> None:
        assert self._aside is not None
        # Always, not only on `flush`: else the name could come to stand for a file that is not on the disk yet.
        os.fsync(self._file)
        os.rename(self._aside, self._path)
        self._aside = None
        if flush:
            folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        aside, self._aside = self._aside, None
        if aside is not None:
            with contextlib.suppress(FileNotFoundError):  # somebody cleaned up
                os.unlink(aside)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
