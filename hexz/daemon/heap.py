"""One heap for all threads."""

from __future__ import annotations

import logging

__all__ = ["share_heap"]

log = logging.getLogger("hexz")

M_ARENA_MAX = -8  # glibc, malloc.h


def share_heap() -> None:
    """Let all threads allocate from one heap, where the C library is glibc; to be called before they start.

    glibc gives threads heaps of their own, and what is freed in one is of no use to the others. Blocks of
    the cache are made by one thread and evicted by another, so that a process grew to more than twice the
    size of its cache. Python allocates with the interpreter's lock held: one heap makes nobody wait.
    """
    try:
        import ctypes

        accepted = ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    except (ImportError, OSError, AttributeError) as error:
        log.debug("threads have heaps of their own: %s", error)
        return
    if not accepted:
        log.debug("threads have heaps of their own")
