"""Files that appear under their name whole, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from hexz.errors import SystemFailure

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A new binary file that takes the name `path` when the block ends well, and vanishes when it doesn't.

    Raises: SystemFailure when the file cannot be written there.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        file = open(temporary, "xb", buffering=1 << 20)  # noqa: SIM115 - closed below, before the rename
    except OSError as error:
        raise SystemFailure(f"{path}: cannot write: {error.strerror}") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        _sync_folder(folder or ".")
    except OSError as error:
        _discard(temporary)
        raise SystemFailure(f"{path}: cannot write: {error.strerror}") from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: str) -> None:
    with contextlib.suppress(OSError):  # renamed already, or the folder is gone
        os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
