"""What may be a snapshot's name, and which file is to be served under it."""

from __future__ import annotations

from typing import NamedTuple

from hexz.errors import HexzError, UsageError
from hexz.printable import NO_UTF8
from hexz.storage.remote import public_name

__all__ = ["MAX_NAME", "Source", "check_name"]

MAX_NAME = 255
"""Longest snapshot name, bytes of UTF-8: it has to fit an NBD export name with room for ``/memory``."""


def check_name(name: str) -> str:
    """`name` itself if a snapshot may be called so.

    Raises: UsageError.
    """
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{name!r} cannot be a snapshot's name: no control characters, no part empty, '.' or '..'")
    if len(parts) > 1 and parts[-1] == "memory":
        raise UsageError(f"{name!r} cannot be a snapshot's name: it means the memory of {'/'.join(parts[:-1])!r}")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise UsageError(f"{name[:40]!r}...: a snapshot's name has at most {MAX_NAME} bytes")
    return name


class Source(NamedTuple):
    """A file to be served as `name`.

    `gathered` ones lie in a directory that was named; the others were named themselves.  `trouble` says why one
    cannot be served under its name.
    """

    name: str
    path: str
    gathered: bool = False
    trouble: str = ""

    def said(self, error: HexzError) -> str:
        """One line on what is wrong with it, which begins with its path also where a link leads elsewhere."""
        path = public_name(self.path)
        line = str(error) if str(error).startswith(path) else f"{path}: {error}"
        return line.translate(NO_UTF8)
