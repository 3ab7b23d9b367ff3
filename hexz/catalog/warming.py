"""Fetching ahead of all readers, as the command line asks for it: what lists name, and whole files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from hexz.format.prefetch import PrefetchList
from hexz.snapshot import Snapshot
from hexz.storage.remote.fetchers import Urgency
from hexz.storage.remote.file import RemoteFile
from hexz.storage.remote.filling import Filling, whole

__all__ = ["Warming", "fillings"]

log = logging.getLogger("hexz.catalog")


def fillings(snapshot: Snapshot, lists: Iterable[PrefetchList], fill: bool, rate: int) -> list[Filling]:
    """What there is to fetch of a snapshot and its ancestors: what is listed of each, and with `fill` all the rest.

    `rate` bounds each in bytes a second, 0 for any.
    """
    by_file = {(one.size, one.fingerprint): one.spans for one in lists}
    found = []
    for file in snapshot.family():
        storage = file.storage
        if isinstance(storage, RemoteFile):
            listed = by_file.get((storage.size, file.fingerprint), ())
            if listed:
                found.append(Filling(storage, listed, Urgency.LISTED, rate))
            if fill:
                found.append(Filling(storage, list(whole(storage.size)), Urgency.SOME_TIME, rate))
    return found


class Warming:
    """Fetches for every snapshot that is published; each file once."""

    def __init__(self, lists: Sequence[PrefetchList], fill: bool, rate: int) -> None:
        """As `fillings` has them."""
        self._lists = lists
        self._fill = fill
        self._rate = rate
        self._lock = threading.Lock()
        self._begun: set[tuple[str, Urgency]] = set()  # identities; guarded by _lock
        self._running: list[Filling] = []  # guarded by _lock

    def begin(self, snapshot: Snapshot) -> None:
        """Begin what there is to fetch of a snapshot, in a thread for each file."""
        work = fillings(snapshot, self._lists, self._fill, self._rate)
        fresh = []
        with self._lock:
            for one in work:
                key = one.file.identity, one.urgency
                if key not in self._begun:
                    self._begun.add(key)
                    fresh.append(one)
            self._running += fresh
        if fresh:
            thread = threading.Thread(target=self._run, args=(fresh,), name="warming", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system is out of threads: it is a favour
                log.warning("%s: nothing is fetched ahead: no thread is left for it", snapshot.path)

    def _run(self, work: list[Filling]) -> None:
        for one in work:
            one.run()
            lacking = f", {one.failed} bytes could not be had" if one.failed else ""
            log.info("%s: fetched ahead, %d of %d bytes%s", one.file.name, one.done, one.total, lacking)
            with self._lock:
                self._running.remove(one)
                if one.failed:
                    self._begun.discard((one.file.identity, one.urgency))

    def end(self) -> None:
        """Begin nothing more."""
        with self._lock:
            running = list(self._running)
        for one in running:
            one.stop()
