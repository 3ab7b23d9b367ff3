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
from hexz.images.backend import Abilities, Backend, ImageExtent, Replacement, Session
from hexz.images.buffers import transfer_buffer
from hexz.images.errors import BackendError, FileFull, NotRaw
from hexz.images.folder import FileLocation, Folder

__all__ = ["FileBackend"]

log = logging.getLogger("hexz.images")

DEFAULT_BLOCK = 4096
QCOW2_MAGIC = b"QFI\xfb"


class FileBackend(Backend):
    """The raw image at `path`, which a whole PUT of up to `quota` bytes (0 = any) may replace unless `read_only`."""

    def __init__(self, path: str | FileLocation, read_only: bool = False, quota: int = 0) -> None:
        self._place = FileLocation.of(path) if isinstance(path, str) else path
        self._read_only = read_only
        self._quota = quota

    def open(self, writing: bool = False) -> Session:
        """A session on the file that has the name now; replacing it later does not disturb the session."""
        path = self._place.path
        with contextlib.ExitStack() as on_failure:
            try:
                folder = Folder(self._place)
                on_failure.callback(folder.close)
                file = folder.open(self._place.name, os.O_RDONLY)
                on_failure.callback(os.close, file)
            except FileNotFoundError:
                log.warning("%s: the image's file is missing", path)
                raise NoSuchSnapshot("the image's file is missing") from None
            except OSError as error:
                raise NotRaw(path, error.strerror or str(error)) from error
            session = FileSession(self._place, folder, file, self._read_only, self._quota)
            on_failure.pop_all()
            return session


class FileSession(Session):
    """An open raw file, and the folder that it is in."""

    def __init__(self, place: FileLocation, folder: Folder, file: int, read_only: bool, quota: int) -> None:
        status = os.fstat(file)
        if os.pread(file, 4, 0) == QCOW2_MAGIC:
            raise NotRaw(place.path, "a qcow2 image: export it with qemu-nbd and register backend nbd instead")
        self._place = place
        self._path = place.path
        self._folder = folder
        self._file = file
        self._quota = quota
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
        """Write aside what is to become the file; no more than the quota, nor than the file system has room for."""
        if not self.abilities.replace:
            return super().replace(length)
        if self._quota and length > self._quota:
            raise FileFull(self._path, f"the quota is {self._quota} bytes")
        try:
            if length > self._folder.free_bytes():
                raise FileFull(self._path, "the file system has no room for so many bytes")
        except OSError as error:
            raise BackendError(self._path, error.strerror or str(error)) from error
        return _Aside(self._place, self._folder)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
            self._folder.close()


class _Aside(Replacement):
    """A file beside the image that takes its name in the end; the folder stays open meanwhile."""

    def __init__(self, place: FileLocation, folder: Folder) -> None:
        self._path = place.path
        self._name = place.name
        self._folder = folder
        self._aside: str | None = None
        self._file = -1
        aside = f".{place.name[:200]}.{secrets.token_hex(8)}"
        try:
            old = folder.stat(place.name)
            self._file = folder.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            self._aside = aside
            os.fchmod(self._file, stat.S_IMODE(old.st_mode))
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):  # only root may; the data is what counts
                    os.fchown(self._file, old.st_uid, old.st_gid)
        except OSError as error:
            self.abort()
            raise FileFull(self._path, f"cannot write beside it: {error.strerror}") from error

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
        self._folder.rename(self._aside, self._name)
        self._aside = None
        if flush:
            self._folder.sync()

    def abort(self) -> None:
        aside, self._aside = self._aside, None
        if aside is not None:
            self._folder.remove(aside)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
