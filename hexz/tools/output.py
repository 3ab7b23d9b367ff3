"""Files that appear under their name whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from hexz.errors import SystemFailure, UsageError

__all__ = ["check_output", "hidden_name", "whole_file"]

BUFFER = 1 << 20


def check_output(path: str, inputs: Iterable[str]) -> None:
    """Refuse to replace what is not a regular file, and what is read to make the new one.

    Raises: UsageError.
    """
    try:
        status = os.stat(path)
    except OSError:
        return
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{path}: is a folder: name the file to write")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: is not a regular file: a device or pipe is not replaced")
    for source in inputs:
        if os.path.exists(source) and os.path.samefile(path, source):
            raise UsageError(f"{path}: is also read from: choose another name for the output")


def hidden_name(folder: str) -> str:
    """A new name in `folder` for something unfinished."""
    return os.path.join(folder, f".hexz-{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A new binary file, to write and read back, that takes the name `path` when the block ends well.

    Until then it has no name at all where the file system can do that, so that not
    even a killed process leaves anything; elsewhere it has a hidden one beside `path`.
    Raises: SystemFailure when the file cannot be written there.
    """
    folder = os.path.dirname(path) or "."
    temporary: str | None = None
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailure(f"{path}: cannot write: {error.strerror}") from None
    try:
        fd = _open_nameless(folder)
        if fd is None:
            temporary = hidden_name(folder)
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(fd, "w+b", buffering=BUFFER) as file:
            yield file
            file.flush()
            os.fsync(fd)
            if temporary is None:
                temporary = hidden_name(folder)
                # linkat follows /proc's link to the nameless file only when it is given a folder.
                os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=folder_fd)
        os.rename(temporary, path)
        os.fsync(folder_fd)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):  # renamed already, or never made
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise SystemFailure(f"{path}: cannot write: {error.strerror}") from error
        raise
    finally:
        os.close(folder_fd)


def _open_nameless(folder: str) -> int | None:
    """A descriptor of a file that has no name yet, or None where that is not possible."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    if os.path.exists(f"/proc/self/fd/{fd}"):
        return fd
    os.close(fd)
    return None
