"""The double fork, with a pipe through which the parent learns whether the daemon is ready.

The parent returns only when the daemon has opened everything and listens, or
has failed; either way it says what the daemon says.  The working directory stays,
so that relative paths go on meaning the same.  No thread may run before this.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from hexz.errors import JsonError, SystemFailure
from hexz.jsontext import load_json
from hexz.printable import printable

__all__ = ["Readiness", "Report", "detach", "fill_standard_descriptors"]

MAX_REPORT = 64 << 10
UMASK = 0o077


class Report(NamedTuple):
    """How the start went: exit status 0 and the lines to print, or a status and one line of error."""

    status: int
    lines: list[str]


class Readiness:
    """The daemon's end of the pipe; without a detached start it prints instead."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd

    @property
    def detached(self) -> bool:
        """There is a parent that waits for the report."""
        return self._fd is not None

    def report(self, report: Report) -> None:
        """Tell the parent, once; it ends then."""
        fd, self._fd = self._fd, None
        if fd is None:
            sys.stdout.write("".join(f"{printable(line)}\n" for line in report.lines))
            sys.stdout.flush()
            return
        with contextlib.suppress(BrokenPipeError):  # the parent was killed: nobody waits any more
            os.write(fd, json.dumps(report).encode())
        os.close(fd)


def detach() -> Readiness | Report:
    """Become a daemon: in it, its `Readiness`; in the process that was started, the daemon's `Report`.

    The standard descriptors must be open.
    Raises: SystemFailure.
    """
    reading, writing = os.pipe()
    child = _fork()
    if child:
        os.close(writing)
        os.waitpid(child, 0)
        return _await_report(reading)
    os.close(reading)
    os.setsid()
    try:
        if _fork():
            os._exit(0)  # not sys.exit: exit handlers and buffers belong to the first process
    except SystemFailure as error:
        Readiness(writing).report(Report(error.exit_status, [str(error)]))
        os._exit(error.exit_status)
    os.umask(UMASK)
    _close_others(keep=writing)
    with _null(os.O_RDONLY) as null:
        os.dup2(null, 0)
    return Readiness(writing)


def _fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        return os.fork()
    except OSError as error:
        raise SystemFailure(f"cannot fork: {error.strerror}") from error


def fill_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that whoever started us has closed: a listener would get the number, and our output."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
        os.set_inheritable(fd, True)
    # The interpreter leaves None where a descriptor was closed.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 (open as long as the process)
    sys.stderr = sys.stderr or open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _close_others(keep: int) -> None:
    """Close what was inherited, but for the standard three and `keep`."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone
                os.close(fd)


@contextlib.contextmanager
def _null(flags: int) -> Iterator[int]:
    fd = os.open(os.devnull, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _await_report(fd: int) -> Report:
    data = b""
    while len(data) < MAX_REPORT:
        part = os.read(fd, MAX_REPORT)
        if not part:
            break
        data += part
    os.close(fd)
    try:
        status, lines = load_json(data)
        return Report(status, lines)
    except (JsonError, TypeError, ValueError):
        return Report(71, ["the daemon died before it was ready"])
