"""What the operating system says of this process (proc(5))."""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

__all__ = ["ProcessFigures", "process_figures"]


class ProcessFigures(NamedTuple):
    """CPU time in seconds, memory in bytes, descriptors open and allowed, and threads."""

    cpu: float
    resident: int
    virtual: int
    open_fds: int
    max_fds: int
    threads: int


def process_figures() -> ProcessFigures | None:
    """The figures now; None where they cannot be had, as when no descriptor is left."""
    try:
        return _read()
    except OSError:
        return None


def _read() -> ProcessFigures:
    with open("/proc/self/stat", "rb") as file:
        # The name of the program comes second, in parentheses, and may hold anything: count from behind it.
        fields = file.read().rpartition(b")")[2].split()
    user, system, threads, virtual, resident = (int(fields[number - 3]) for number in (14, 15, 20, 23, 24))
    return ProcessFigures(
        (user + system) / os.sysconf("SC_CLK_TCK"),
        resident * os.sysconf("SC_PAGE_SIZE"),
        virtual,
        len(os.listdir("/proc/self/fd")) - 1,  # the listing itself has one open
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        threads,
    )
