"""The last errors, for whoever asks what went wrong."""

from __future__ import annotations

import threading
import time
from collections import deque

from hexz.metrics.figures import ErrorEvent

__all__ = ["MAX_EVENTS", "MAX_EVENT_BYTES", "ErrorLog"]

MAX_EVENTS = 500
MAX_EVENT_BYTES = 51_200
"""Errors kept, and the bytes of their texts together (Nydus API, `max_errors` and `max_size`)."""
MAX_TEXT = 2048
"""Longest text of one error, characters; what is longer is cut."""


class ErrorLog:
    """The last errors, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._kept: deque[ErrorEvent] = deque()
        self._size = 0
        self.seen = 0

    def add(self, text: str, snapshot: str = "") -> None:
        """Something went wrong just now."""
        raw = text[:MAX_TEXT].encode("utf-8", "replace")
        size, text = len(raw), raw.decode()
        with self._lock:
            self.seen += 1
            self._kept.append(ErrorEvent(self.seen, time.time(), snapshot, text))
            self._size += size
            while len(self._kept) > MAX_EVENTS or self._size > MAX_EVENT_BYTES:
                self._size -= len(self._kept.popleft().text.encode())

    def kept(self) -> list[ErrorEvent]:
        """The errors kept, the oldest first."""
        with self._lock:
            return list(self._kept)
