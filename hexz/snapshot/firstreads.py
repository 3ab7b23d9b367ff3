"""What was read of a file, in the order in which it was first wanted: what a prefetch list is made of."""

from __future__ import annotations

import threading
from array import array

__all__ = ["FirstReads"]

MAX_RECORDED = 65536
"""Spans remembered of one file, 16 bytes each; when there are more, those that came last are left out."""


class FirstReads:
    """The spans, bounded; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._spans = array("Q")
        self._full = False

    def note(self, start: int, length: int) -> None:
        """A span was read from where the file is."""
        with self._lock:
            if self._full:
                return
            self._spans.append(start)
            self._spans.append(length)
            if len(self._spans) >= 2 * MAX_RECORDED:
                kept = self._distinct()
                self._full = len(kept) > MAX_RECORDED * 3 // 4
                self._spans = array("Q", [number for span in kept for number in span])

    def _distinct(self) -> list[tuple[int, int]]:
        """Each (start, length) once.  Called with the lock."""
        numbers = iter(self._spans)
        return list(dict.fromkeys(zip(numbers, numbers)))

    def spans(self) -> list[tuple[int, int]]:
        """The spans (start, end) so far, each once."""
        with self._lock:
            kept = self._distinct()
        return [(start, start + length) for start, length in kept]
