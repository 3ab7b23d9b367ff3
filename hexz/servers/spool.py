"""Long answers that their peers have not read yet: in files without names, all of them together bounded."""

from __future__ import annotations

import os
import tempfile
import threading

from hexz.errors import Overloaded

__all__ = ["IN_MEMORY", "MAX_SPOOLED_BY_ALL", "Held", "Spool", "building"]

IN_MEMORY = 64 << 10
"""What is spooled is kept in memory up to this size, bytes, and in a file without a name beyond it."""
MAX_SPOOLED_BY_ALL = 1 << 30
"""Most bytes in the files of all spools together: they lie in the system's folder for temporary files."""
building = threading.Lock()
"""Held while an answer about everything is put together, which waits for nothing: however many ask for one at once, it
takes the memory of one, and no longer, since only one thread computes at a time anyway."""
_lock = threading.Lock()
_spooled = 0  # bytes in all files; guarded by _lock


class Spool:
    """Bytes that come in pieces and are read back in any order; one thread writes and then reads."""

    def __init__(self) -> None:
        self._memory: list[bytes] = []
        self._file: int | None = None
        self._counted = 0
        self.length = 0

    def add(self, data: bytes) -> None:
        """Append.

        Raises: Overloaded beyond `MAX_SPOOLED_BY_ALL`; OSError.
        """
        self.length += len(data)
        if self._file is None:
            self._memory.append(data)
            if self.length <= IN_MEMORY:
                return
            data, self._memory = b"".join(self._memory), []
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        self._count(len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def _count(self, size: int) -> None:
        global _spooled
        with _lock:
            if _spooled + size > MAX_SPOOLED_BY_ALL:
                raise Overloaded("too many long answers wait to be read: ask again later")
            _spooled += size
        self._counted += size

    def read(self, offset: int, length: int) -> list[bytes]:
        """Up to 64 KiB of the span."""
        length = min(length, IN_MEMORY)
        if self._file is None:
            return [b"".join(self._memory)[offset : offset + length]]
        return [os.pread(self._file, length, offset)]

    def close(self) -> None:
        """Free it; a second time does nothing."""
        global _spooled
        if self._file is not None:
            os.close(self._file)
            self._file = None
            with _lock:
                _spooled -= self._counted
        self._memory = []


class Held:
    """A long answer that was built whole: in memory while its peer takes it, in a spool from when it does not."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._spool: Spool | None = None

    def read(self, offset: int, length: int) -> list[bytes] | list[memoryview]:
        """At least a part of the span."""
        if self._spool is not None:
            return self._spool.read(offset, length)
        return [memoryview(self._data)[offset : offset + length]]

    def put_aside(self) -> None:
        """Keep it in memory no longer.  Raises: Overloaded, OSError."""
        if self._spool is None:
            self._spool = Spool()
            self._spool.add(self._data)
            self._data = b""

    def close(self) -> None:
        """Free it."""
        self._data = b""
        if self._spool is not None:
            self._spool.close()
