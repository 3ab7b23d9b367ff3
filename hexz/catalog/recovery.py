"""Snapshots whose servers did not answer are tried again until they do: nobody has to restart for it."""

from __future__ import annotations

import contextlib
import logging
import random
import threading

from hexz.catalog.catalog import Catalog
from hexz.errors import HexzError

__all__ = ["Recovery"]

log = logging.getLogger("hexz.catalog")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Recovery:
    """A thread that opens what `Catalog.unreachable` has, there when there is something."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # guarded by _lock
        self._stop = threading.Event()

    def begin(self) -> None:
        """See that the thread runs, if there is anything for it to do."""
        with self._lock:
            runs = self._thread is not None and self._thread.is_alive()
            if not self._catalog.unreachable or runs or self._stop.is_set():
                return
            thread = threading.Thread(target=self._run, name="recovery", daemon=True)
            with contextlib.suppress(RuntimeError):  # the system is out of threads; the next reload tries again
                thread.start()
                self._thread = thread

    def end(self) -> None:
        """Let the thread end, once a server that it waits for has answered or not."""
        self._stop.set()

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stop.wait(pause * (0.5 + random.random() / 2)):
            for source in list(self._catalog.unreachable.values()):
                try:
                    self._catalog.reach(source)
                    log.info("%s is served now: its server answers", source.name)
                except HexzError as error:
                    log.debug("not yet: %s", source.said(error))
            pause = min(pause * 2, LONGEST_PAUSE_S)
            with self._lock:
                if not self._catalog.unreachable:
                    self._thread = None
                    return
