"""An overlay's two files: who may use them, and the journal as it is written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from hexz.images.errors import JournalError, OverlayError, OverlayInUse
from hexz.images.folder import FileLocation, Folder
from hexz.images.overlay.blockmap import BlockMap, BlockRun
from hexz.images.overlay.journal import HEAD_SIZE, RECORD_SIZE, Head, build_head, build_mark, build_record
from hexz.images.overlay.journal import record_seed as seed_of
from hexz.images.overlay.recovery import JOURNAL_SUFFIX

__all__ = ["JournalFile", "OverlayFiles", "pwrite_all"]

CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
"""Why a file cannot be opened for writing, or made, and may still be read."""
_FLOCK = struct.Struct("hhqqi4x")


class OverlayFiles:
    """The folder, the data file and the locks.

    Who writes, or is going to, has the data file's ``flock`` alone; who only reads shares it.  Who gave writing up and
    still reads has instead a lock of its open file (``F_OFD_SETLK``), which tells the next writer to use no slot again.
    """

    def __init__(self, place: FileLocation, read_only: bool) -> None:
        """Open the data file, or make it if it may be written.

        Raises: OverlayInUse, OverlayError, OSError.
        """
        self.path = place.path
        self._name = place.name
        self.journal_name = place.name + JOURNAL_SUFFIX
        self.folder = Folder(place)
        self.data = self._writable = -1
        """The data file to read, and to write; -1 where there is none (yet)."""
        try:
            self._open(read_only)
        except BaseException:
            self.close()
            raise

    def _open(self, read_only: bool) -> None:
        if not read_only:
            try:
                self.data = self._writable = self.folder.open(self._name, os.O_RDWR | os.O_CREAT)
            except OSError as error:
                if error.errno not in CANNOT_WRITE:
                    raise
        if self.data < 0:
            with contextlib.suppress(FileNotFoundError):
                self.data = self.folder.open(self._name, os.O_RDONLY)
        if self.data >= 0:
            self._lock(fcntl.LOCK_SH if read_only else fcntl.LOCK_EX)

    def _lock(self, kind: int) -> None:
        try:
            fcntl.flock(self.data, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OverlayInUse(self.path, "another process has this overlay open") from None

    def writable(self) -> int:
        """The data file to write to, if it can be written by now.

        Raises: OverlayError, OSError.
        """
        if self._writable < 0 and self.data < 0:
            try:
                self.data = self._writable = self.folder.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                raise OverlayInUse(self.path, "another process has made this overlay") from None
            self._lock(fcntl.LOCK_EX)
        elif self._writable < 0:
            file = self.folder.open(self._name, os.O_RDWR)
            if not os.path.samestat(os.fstat(file), os.fstat(self.data)):
                os.close(file)
                raise OverlayError(self.path, "the data file was replaced: reopen it")
            self._writable = file
        return self._writable

    def data_blocks(self, block_size: int) -> int:
        """How many slots the data file has, the last perhaps in part."""
        return -(-os.fstat(self.data).st_size // block_size) if self.data >= 0 else 0

    def alone(self) -> bool:
        """Nobody reads any more who had the overlay before.  Raises: OSError."""
        try:
            _open_file_lock(self._writable, fcntl.F_WRLCK)
        except (BlockingIOError, PermissionError):
            return False
        _open_file_lock(self._writable, fcntl.F_UNLCK)
        return True

    def let_go(self) -> None:
        """Give writing up to whoever comes, and go on reading.  Raises: OSError."""
        if self.data >= 0:
            _open_file_lock(self.data, fcntl.F_RDLCK)
            fcntl.flock(self.data, fcntl.LOCK_UN)

    def open_journal(self) -> int:
        """The journal that is there, for reading.  Raises: FileNotFoundError, OSError."""
        return self.folder.open(self.journal_name, os.O_RDONLY)

    def close(self) -> None:
        """Close everything, and with it give back the locks."""
        for file in {self.data, self._writable} - {-1}:
            os.close(file)
        self.data = self._writable = -1
        self.folder.close()


class JournalFile:
    """The journal as this process writes it; `sound` once `begin` made it anew, until something went wrong with it."""

    def __init__(self, files: OverlayFiles) -> None:
        self._files = files
        self._file = -1
        self._seed = 0
        self.records = 0
        self.sound = False

    def begin(self, head: Head, written: BlockMap) -> None:
        """Write it anew from the map, aside, and let it take the old one's place; the data is on the disk already.

        Raises: OverlayError, OSError, and then it is not sound.
        """
        self.sound = False
        try:
            start = build_head(head)
        except JournalError as error:
            raise OverlayError(self._files.path, str(error)) from None
        seed = seed_of(start)
        parts = [start, *(build_record(run, 0, seed) for run in written)]
        parts.append(build_mark(len(parts) - 1, seed))
        folder, name = self._files.folder, self._files.journal_name
        aside = f"{name}.new"
        file = folder.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            pwrite_all(file, memoryview(b"".join(parts)), 0)
            os.fsync(file)
            folder.rename(aside, name)
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):  # it is written over the next time
                folder.remove(aside)
            raise
        old, self._file = self._file, file
        self._seed, self.records = seed, len(parts) - 1
        if old >= 0:
            os.close(old)
        # Only now may what the old one referred to be overwritten: it is gone for good.
        folder.sync()
        self.sound = True

    def append(self, records: list[tuple[BlockRun, int]]) -> None:
        """Append runs with their CRC-32.

        Raises: OSError; nothing of them counts then, unless it is not `sound` any more: then only `begin` is sure.
        """
        data = b"".join(build_record(run, crc, self._seed) for run, crc in records)
        try:
            pwrite_all(self._file, memoryview(data), self._end)
        except OSError:
            self.sound = False
            os.ftruncate(self._file, self._end)
            self.sound = True
            raise
        self.records += len(records)

    def mark(self) -> None:
        """Say that everything before is on the disk, and put that there too.

        Raises: OSError, and then it is not sound.
        """
        self.sound = False
        pwrite_all(self._file, memoryview(build_mark(self.records, self._seed)), self._end)
        os.fdatasync(self._file)
        self.records += 1
        self.sound = True

    @property
    def _end(self) -> int:
        return HEAD_SIZE + self.records * RECORD_SIZE

    def close(self) -> None:
        """Close it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def pwrite_all(file: int, data: memoryview, position: int) -> None:
    """Write all of `data`.  Raises: OSError."""
    while data:
        done = os.pwrite(file, data, position)
        position += done
        data = data[done:]


def _open_file_lock(file: int, kind: int) -> None:
    """Lock byte 0 for this open file description (fcntl(2), "Open file description locks"), without waiting."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0))
