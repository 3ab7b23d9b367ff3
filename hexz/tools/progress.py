"""A progress bar for long work: only on a terminal, and gone when the work is done."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from hexz.printable import printable
from hexz.units import format_size

__all__ = ["Progress"]

REDRAW_S = 0.1
BAR = 20


class Progress:
    """Counts bytes towards `total` and draws them; a context manager that clears the line at the end."""

    def __init__(self, label: str, total: int, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._label = printable(label)
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._drawn = 0.0
        # Without a standard error there is none to draw on.
        self._shown = self._out is not None and self._out.isatty()

    def advance(self, size: int) -> None:
        """`size` more bytes are done."""
        self._done += size
        now = time.monotonic()
        if self._shown and now - self._drawn >= REDRAW_S:
            self._drawn = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        share = self._done / self._total if self._total else 1.0
        rate = self._done / max(now - self._began, 1e-3)
        left = (self._total - self._done) / rate if rate else 0.0
        bar = ("#" * int(share * BAR)).ljust(BAR, ".")
        line = (
            f"{self._label} [{bar}] {share:4.0%} {format_size(self._done)} "
            f"{format_size(int(rate))}/s {int(left) // 60}:{int(left) % 60:02} left"
        )
        # A line that wraps could not be drawn over.
        self._out.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        self._out.flush()

    def clear(self) -> None:
        """Take the bar away, until it is drawn again."""
        if self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
