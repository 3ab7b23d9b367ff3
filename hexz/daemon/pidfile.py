"""The pid file: a lock that ends with the process, and a number for people.

Whoever asks trusts the lock, never the number: after ``kill -9`` the file stays,
but the lock is free.  Nor is a number believed that somebody else may have written:
in a folder like /tmp anybody can create, and lock, a file of our name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import time

from hexz.errors import ConfigError, HexzError, SystemFailure

__all__ = ["AlreadyRunning", "PidFile", "running_pid", "stop_running"]

POLL_S = 0.05
BUSY_TRIES = 10
"""How often a lock without a pid is tried again: another process may look at it just now, or take it."""


class AlreadyRunning(HexzError):
    """Another daemon holds the pid file."""

    exit_status = 69

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(f"{path}: a daemon is running already{f', pid {pid}' if pid else ''}")
        self.pid = pid


class PidFile:
    """The pid file of this process, locked until `remove` or the process's end."""

    def __init__(self, path: str) -> None:
        """Create or take over the file and write the pid.

        Raises: AlreadyRunning; ConfigError when it cannot be written safely.
        """
        self.path = os.path.abspath(path)
        while True:
            self._fd = _open(path)
            try:
                _lock(self._fd, path)
                if self._is_the_one():
                    os.ftruncate(self._fd, 0)
                    os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
                    return
            except OSError as error:
                os.close(self._fd)
                raise ConfigError(f"{path}: cannot write the pid file: {error.strerror}") from None
            except AlreadyRunning:
                os.close(self._fd)
                raise
            os.close(self._fd)  # the last owner removed it in between

    def _is_the_one(self) -> bool:
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def retire(self) -> None:
        """Remove the file; the lock goes with the process, so that whoever waits for it sees the very end."""
        with contextlib.suppress(OSError):  # its folder may be gone
            if self._is_the_one():
                os.unlink(self.path)

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        self.retire()
        os.close(self._fd)


def _open(path: str) -> int:
    """The file, opened or created, if it can be a pid file of ours.  Raises: ConfigError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ConfigError(f"{path}: cannot write the pid file: {reason}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        os.close(fd)
        raise ConfigError(f"{path}: cannot write the pid file: it is no plain file of this user")
    return fd


def _lock(fd: int, path: str) -> None:
    for _ in range(BUSY_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = _read(fd)
            if pid and os.path.exists(f"/proc/{pid}"):
                raise AlreadyRunning(path, pid) from None
        time.sleep(POLL_S)
    raise AlreadyRunning(path, 0)


def _read(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def running_pid(path: str) -> int | None:
    """The pid of the daemon that holds the file, None when nobody does.

    Raises: ConfigError when the file cannot be read, or belongs to neither this user nor root.
    """
    fd = _open_to_ask(path)
    if fd is None:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _open_to_ask(path: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ConfigError(f"{path}: cannot read the pid file: {reason}") from None
    if os.fstat(fd).st_uid not in (0, os.geteuid()):
        os.close(fd)
        raise ConfigError(f"{path}: the pid file belongs to somebody else")
    return fd


def _holder(fd: int) -> int | None:
    for _ in range(BUSY_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read(fd)
            if pid:
                return pid
            time.sleep(POLL_S)  # it is being written
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
            return None
    return None


def stop_running(path: str, timeout: float) -> bool:
    """Send SIGTERM to the daemon that holds the file and wait up to `timeout` seconds; True once it has gone.

    Raises: ConfigError; SystemFailure when the daemon is another user's.
    """
    fd = _open_to_ask(path)
    if fd is None:
        return True
    try:
        pid = _holder(fd)
        if pid is None:
            return True
        with contextlib.suppress(ProcessLookupError):  # it ends just now
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        # Its lock goes when its process does, which is later than its file.
        while _holder(fd) == pid:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True
    except PermissionError:
        raise SystemFailure(f"pid {pid} is another user's: not stopped") from None
    finally:
        os.close(fd)
