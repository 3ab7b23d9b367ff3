"""Trouble at a chosen system call of this process: a kill, a full disk, an I/O error."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["CALLS", "KINDS", "Faults"]

CALLS = ("open", "close", "fstat", "pread", "preadv", "pwrite", "fdatasync", "fsync", "ftruncate", "rename", "unlink")
"""What counts as a system call; all that the code under test makes on files."""
FAILING = {
    "ENOSPC": ("open", "pwrite", "fdatasync", "fsync", "rename"),
    "EIO": ("open", "pread", "preadv", "pwrite", "fdatasync", "fsync", "ftruncate", "rename"),
}
KINDS = ("kill", "torn", "ENOSPC", "EIO")
"""``kill`` before the call; ``torn``: in the middle of a write, before any other; errors as on a bad or full disk."""


class Faults:
    """Counts the calls from `install` on; from call number `at` on, for `length` calls, there is trouble."""

    def __init__(self, kind: str = "", at: int = 0, length: int = 1) -> None:
        self.kind = kind
        self.troubled = range(at, at + length) if kind else range(0)
        self.count = 0
        self._real: dict[str, Any] = {}

    def install(self) -> None:
        """Begin."""
        for name in CALLS:
            self._real[name] = getattr(os, name)
            setattr(os, name, self._wrapped(name, self._real[name]))

    def remove(self) -> None:
        """The disk is well again."""
        for name, real in self._real.items():
            setattr(os, name, real)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number not in self.troubled:
                return real(*arguments, **more)
            if self.kind == "torn" and name == "pwrite":
                file, data, position = arguments
                real(file, data[: len(data) // 2], position)
            if self.kind in ("kill", "torn"):
                os.kill(os.getpid(), signal.SIGKILL)
            if name not in FAILING[self.kind]:
                return real(*arguments, **more)
            code = getattr(errno, self.kind)
            if name == "pwrite" and len(arguments[1]) > 1 and number + 1 in self.troubled:
                file, data, position = arguments
                return real(file, data[: len(data) // 2], position)  # as much as fits; the next one fails
            raise OSError(code, os.strerror(code))

        return call
