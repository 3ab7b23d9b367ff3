"""The pid file: a lock that ends with the process, and a number for people.

Whoever asks trusts the lock, never the number: after ``kill -9`` the file stays,
but the lock is free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time

from hexz.errors import ConfigError, HexzError

__all__ = ["AlreadyRunning", "PidFile", "running_pid", "stop_running"]

POLL_S = 0.05


class AlreadyRunning(HexzError):
    """Another daemon holds the pid file."""

    exit_status = 69

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(f"{path}: a daemon is running already, pid {pid}")
        self.pid = pid


class PidFile:
    """The pid file of this process, locked until `remove` or the process's end."""

    def __init__(self, path: str) -> None:
        """Create or take over the file and write the pid.

        Raises: AlreadyRunning; ConfigError when it cannot be written safely.
        """
        self.path = os.path.abspath(path)
        while True:
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
                raise ConfigError(f"{path}: cannot write the pid file: {reason}") from None
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _read(self._fd)
                os.close(self._fd)
                raise AlreadyRunning(path, pid) from None
            if self._is_the_one():
                break
            os.close(self._fd)  # the last owner removed it in between
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _is_the_one(self) -> bool:
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        with contextlib.suppress(OSError):  # its folder may be gone
            if self._is_the_one():
                os.unlink(self.path)
        os.close(self._fd)


def _read(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def running_pid(path: str) -> int | None:
    """The pid of the daemon that holds the file, None when nobody does.

    Raises: ConfigError when the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the pid file: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read(fd) or None
    finally:
        os.close(fd)


def stop_running(path: str, timeout: float) -> bool:
    """Send SIGTERM to the daemon that holds the file and wait up to `timeout` seconds; True once it has gone."""
    pid = running_pid(path)
    if pid is None:
        return True
    with contextlib.suppress(ProcessLookupError):  # it ends just now
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while running_pid(path) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
