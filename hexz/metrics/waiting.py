"""How many bytes the thread's reads had to wait for, because they were not in the cache.

A server takes the figure before and after a request; the difference tells a hit from a miss::

    before = waited.size
    stream.read(offset, length)
    meter.add(OK, length, seconds, waited.size - before)
"""

from __future__ import annotations

import threading

__all__ = ["waited"]


class _Waited(threading.local):
    size = 0


waited = _Waited()
