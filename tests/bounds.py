"""Limits that a test puts on the process around what it tries."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_MEMORY = 320 << 20
"""Address space that opening and reading may take, bytes: the largest block twice, the largest index, and threads."""


@contextmanager
def little_memory() -> Iterator[None]:
    """Within, the process cannot grow by more than `MOST_MEMORY`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
