"""What a test does until something that others do has come to pass: looks again and again, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 60.0
"""Long: what is late on a busy machine is no defect, and what never comes is one all the same."""
PAUSE_S = 0.005


def until(holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Return once `holds()` is true; AssertionError after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"it has not come to pass within {limit_s:g} s"
        time.sleep(PAUSE_S)
