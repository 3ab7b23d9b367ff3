"""The pid file: whose word is taken, and whose is not."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hexz.daemon import pidfile
from hexz.daemon.pidfile import PidFile, running_pid, stop_running
from hexz.errors import AlreadyRunning, ConfigError

HOLD = """
import sys
from hexz.daemon.pidfile import PidFile
held = PidFile(sys.argv[1])
print(flush=True)
sys.stdin.read()
held.retire()
print(flush=True)
sys.stdin.close()
import os, time
while os.getppid() == int(sys.argv[2]):
    time.sleep(0.05)
"""


def locked(path: Path, how: int = fcntl.LOCK_EX) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, how)
    return fd


def test_a_lock_without_a_number_is_nobody_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    fd = locked(path)
    assert running_pid(str(path)) is None
    assert stop_running(str(path), 1)  # and above all, no signal to process 0, which would be the whole group
    with pytest.raises(AlreadyRunning, match="another process has locked it"):
        PidFile(str(path))
    os.close(fd)


@pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_a_number_that_became_another_processs_is_not_believed(tmp_path: Path, how: int) -> None:
    path = tmp_path / "pid"
    with subprocess.Popen(["sleep", "60"]) as innocent:
        path.write_text(f"{innocent.pid}\n")
        fd = locked(path, how)  # by this process, not by the one whose number it is
        assert running_pid(str(path)) is None
        assert stop_running(str(path), 1)
        with pytest.raises(AlreadyRunning, match="another process has locked it"):
            PidFile(str(path))
        assert innocent.poll() is None
        # Nor is a process believed that has the file open and not locked.
        with subprocess.Popen(["sleep", "60"], stdin=path.open()) as reader:
            path.write_text(f"{reader.pid}\n")
            assert running_pid(str(path)) is None and stop_running(str(path), 1)
            assert reader.poll() is None
            reader.kill()
        innocent.kill()
        os.close(fd)


def test_nobody_else_can_open_it(tmp_path: Path) -> None:
    for left in (None, 0o666):
        path = tmp_path / "pid"
        if left is not None:
            path.write_text("")
            path.chmod(left)
        own = PidFile(str(path))
        assert path.stat().st_mode & 0o777 == 0o600
        own.remove()


def test_a_signal_goes_to_the_holder_also_without_process_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(pidfile.os, "pidfd_open", refuse)
    path = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert stop_running(str(path), 30)
        assert holder.wait(30) == -signal.SIGTERM


def test_a_number_without_a_lock_is_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getpid()}\n")
    assert running_pid(str(path)) is None
    assert stop_running(str(path), 1)
    own = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    own.remove()
    assert not path.exists()


def test_who_only_looks_keeps_nobody_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    looking = locked(path, fcntl.LOCK_SH)
    waits: list[float] = []

    def look_away(seconds: float) -> None:
        waits.append(seconds)
        fcntl.flock(looking, fcntl.LOCK_UN)

    monkeypatch.setattr(pidfile.time, "sleep", look_away)
    PidFile(str(path)).remove()
    assert len(waits) == 1
    os.close(looking)


def test_the_end_is_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        assert running_pid(str(path)) == holder.pid
        watch = os.open(path, os.O_RDONLY)
        holder.stdin.close()
        holder.stdout.readline()
        assert not path.exists()
        with pytest.raises(BlockingIOError):  # it has removed the file and still runs
            fcntl.flock(watch, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder.send_signal(signal.SIGTERM)
        fcntl.flock(watch, fcntl.LOCK_SH)
        os.close(watch)
        assert holder.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["symbolic link", "fifo", "second name", "folder", "stranger"])
def test_what_cannot_be_a_pid_file_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "pid", tmp_path / "other"
    other.write_text("1\n")
    if kind == "symbolic link":
        path.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "second name":
        os.link(other, path)
    elif kind == "folder":
        path.mkdir()
    else:
        if os.geteuid():
            pytest.skip("only root can make another user's file")
        path.write_text("1\n")
        os.chown(path, 12345, 12345)
        with pytest.raises(ConfigError, match="somebody else"):
            running_pid(str(path))
    with pytest.raises(ConfigError, match="cannot write the pid file"):
        PidFile(str(path))
    assert other.read_text() == "1\n"
