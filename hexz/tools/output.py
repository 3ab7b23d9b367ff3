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
PRIVATE = 0o600
"""Mode of what holds a machine's memory, or the plain text of something encrypted."""
SHARED = 0o666
"""Mode of anything else, less the umask."""


def check_output(path: str, inputs: Iterable[str], replace: bool = True) -> None:
    """Refuse to replace what is not a regular file, and what is read to make the new one; without `replace`, anything.

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
    if not replace:
        raise _there(path)


def _there(path: str) -> UsageError:
    return UsageError(f"{path}: exists already: choose another name, or replace it with --force")


def hidden_name(folder: str) -> str:
    """A new name in `folder` for something unfinished."""
    return os.path.join(folder, f".hexz-{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def whole_file(path: str, private: bool = False, replace: bool = True) -> Iterator[BinaryIO]:
    """A new binary file, to write and read back, that takes the name `path` when the block ends well.

    A `private` one is its owner's alone, others are as the umask has them.  Without `replace` nothing that has the
    name meanwhile is touched.

    Until then it has no name at all where the file system can do that, so that not
    even a killed process leaves anything; elsewhere it has a hidden one beside `path`.
    Raises: SystemFailure when the file cannot be written there; UsageError when something is there and is to stay.
    """
    mode = PRIVATE if private else SHARED
    folder = os.path.dirname(path) or "."
    temporary: str | None = None
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailure(f"{path}: cannot write: {error.strerror}") from None
    try:
        fd = _open_nameless(folder, mode)
        if fd is None:
            temporary = hidden_name(folder)
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "w+b", buffering=BUFFER) as file:
            yield file
            file.flush()
            os.fsync(fd)
            if temporary is None:
                temporary = hidden_name(folder)
                # linkat follows /proc's link to the nameless file only when it is given a folder.
                os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=folder_fd)
        _give_name(temporary, path, replace)
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


def _give_name(temporary: str, path: str, replace: bool) -> None:
    """Let the file `temporary` be `path`.  Raises: OSError; UsageError."""
    if not replace:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise _there(path) from None
        except PermissionError:  # a file system without hard links (link(2)): a look has to do
            if os.path.lexists(path):
                raise _there(path) from None
        else:
            os.unlink(temporary)
            return
    os.rename(temporary, path)


def _open_nameless(folder: str, mode: int) -> int | None:
    """A descriptor of a file that has no name yet, or None where that is not possible."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    except OSError:
        return None
    if os.path.exists(f"/proc/self/fd/{fd}"):
        return fd
    os.close(fd)
    return None
