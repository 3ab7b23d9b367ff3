"""The pid file: a lock that ends with the process, and a number for people.

Whoever asks trusts the lock, never the number: after ``kill -9`` the file stays,
but the lock is free.  Nor is a number believed that somebody else may have written:
in a folder like /tmp anybody can create, and lock, a file of our name.  And a number
that was left behind can have become another process's while somebody holds the lock:
so the process has to be the one that holds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import signal
import stat
import time
from typing import Any

from hexz.errors import AlreadyRunning, ConfigError, JsonError, SystemFailure
from hexz.jsontext import load_json

__all__ = ["PidFile", "facts_of", "running_pid", "stop_running"]

log = logging.getLogger("hexz.daemon")

POLL_S = 0.05
FACTS = ".json"
"""What the name of the file beside a pid file ends with in which the daemon says where it listens and logs."""
MAX_FACTS = 64 << 10
MAX_FDINFO = 64 << 10
MAX_STATUS = 64 << 10
_WRITE_LOCK = re.compile(rb"^lock:.*FLOCK.*WRITE", re.MULTILINE)
MODE = 0o600
"""Nobody else may open the file: whoever can read it can lock it (flock(2))."""
BUSY_TRIES = 10
"""How often a lock without a pid is tried again: another process may look at it just now, or take it."""


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

    def tell(self, facts: dict[str, Any]) -> None:
        """Say beside the file what whoever finds this daemon wants to know; without room for it, nothing is said."""
        try:
            fd = _open(self.path + FACTS)
            with open(fd, "w", encoding="utf-8") as file:
                file.truncate()
                json.dump({**facts, "pid": os.getpid()}, file)
        except (OSError, ConfigError) as error:
            log.debug("%s: %s", self.path + FACTS, error)

    def retire(self) -> None:
        """Remove the file and what was told beside it.

        The lock goes with the process, so that whoever waits for it sees the very end.
        """
        with contextlib.suppress(OSError):  # its folder may be gone
            if self._is_the_one():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path + FACTS)
                os.unlink(self.path)

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        self.retire()
        os.close(self._fd)


def _open(path: str) -> int:
    """The file, opened or created, if it can be a pid file of ours.  Raises: ConfigError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, MODE)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ConfigError(f"{path}: cannot write the pid file: {reason}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        os.close(fd)
        raise ConfigError(f"{path}: cannot write the pid file: it is no plain file of this user")
    os.fchmod(fd, MODE)  # it may be an old one
    return fd


def _lock(fd: int, path: str) -> None:
    for _ in range(BUSY_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = _read(fd)
            if pid and _holds(pid, fd):
                raise AlreadyRunning(path, pid) from None
        time.sleep(POLL_S)
    raise AlreadyRunning(path, 0)


def _read(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _holds(pid: int, fd: int) -> bool:
    """Whether process `pid` has the file of `fd` open, and locked for itself (proc(5), fdinfo).

    Raises: SystemFailure when that is not ours to see.
    """
    wanted = os.fstat(fd)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed in between
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                    with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
                        if _WRITE_LOCK.search(file.read(MAX_FDINFO)):
                            return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        # One's own process cannot be looked into any more while it ends.
        if not _is_ours(pid):
            raise SystemFailure(f"pid {pid} is another user's: not stopped") from None
    return False


def _is_ours(pid: int) -> bool:
    """Whether process `pid` runs as this user, or has gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            users = re.search(rb"^Uid:\t(\d+)\t(\d+)", file.read(MAX_STATUS), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return users is not None and int(users[2]) == os.geteuid()


def running_pid(path: str) -> int | None:
    """The pid of the daemon that holds the file, None when nobody does.

    Raises: ConfigError when the file cannot be read, or belongs to neither this user nor root; SystemFailure when
        its process is another user's.
    """
    fd = _open_to_ask(path)
    if fd is None:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def facts_of(path: str, pid: int) -> dict[str, Any]:
    """What the daemon `pid`, which holds this pid file, told beside it; nothing when it told nothing."""
    try:
        fd = _open_to_ask(path + FACTS)
        if fd is None:
            return {}
        with open(fd, "rb") as file:
            facts = load_json(file.read(MAX_FACTS))
    except (OSError, ConfigError, JsonError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("pid") == pid else {}


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
            if pid and _holds(pid, fd):
                return pid
            time.sleep(POLL_S)  # it is being written, or its process ends
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
            return None
    return None


def stop_running(path: str, timeout: float) -> bool:
    """Send SIGTERM to the daemon that holds the file and wait up to `timeout` seconds; True once it has gone.

    No other process gets a signal, whatever number the file has.

    Raises: ConfigError; SystemFailure when the daemon is another user's.
    """
    fd = _open_to_ask(path)
    if fd is None:
        return True
    try:
        pid = _terminate(fd)
        if pid is None:
            return True
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


def _terminate(fd: int) -> int | None:
    """Send SIGTERM to the holder; its number, None when there is none."""
    pid = _holder(fd)
    if pid is None:
        return None
    process = _descriptor_of(pid)
    try:
        # The number may have become another process's since it was looked at; the descriptor's process stays the same.
        if _holder(fd) != pid:
            return None
        with contextlib.suppress(ProcessLookupError):  # it ends just now
            if process is None:
                os.kill(pid, signal.SIGTERM)
            else:
                signal.pidfd_send_signal(process, signal.SIGTERM)
    finally:
        if process is not None:
            os.close(process)
    return pid


def _descriptor_of(pid: int) -> int | None:
    """A descriptor of the process; None when it is gone, or where the kernel or a container's filter has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
