"""Open files that logs are appended to: plain ones, our own, under no other name."""

from __future__ import annotations

import errno
import os
import stat

from hexz.errors import ConfigError

__all__ = ["open_log"]


def open_log(path: str) -> int:
    """A descriptor that appends to `path`, which is created with mode 0600 and must be a plain file of our own.

    One that is there already keeps what its group may read, for programs that collect logs, and nothing more.

    Raises: ConfigError.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ConfigError(f"{path}: cannot log there: {reason}") from None
    status = os.fstat(fd)
    trouble = None
    if not stat.S_ISREG(status.st_mode):
        trouble = "is not a plain file"
    elif status.st_uid != os.geteuid():
        trouble = "belongs to somebody else"
    elif status.st_nlink != 1:
        trouble = "has several names"
    if trouble is not None:
        os.close(fd)
        raise ConfigError(f"{path}: cannot log there: {trouble}")
    os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o640)
    return fd
