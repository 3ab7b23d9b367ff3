"""Opening many snapshots at a start or reload: those on servers side by side, for each takes some round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hexz.catalog.names import Source
from hexz.snapshot import Snapshot
from hexz.storage.remote import is_remote

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Openings"]

AT_ONCE = 16


class Openings:
    """The snapshots of some sources; a context manager that closes those that nobody took."""

    def __init__(self, open_snapshot: Callable[[str], Snapshot], sources: Iterable[Source]) -> None:
        self._open = open_snapshot
        far = dict.fromkeys(one.path for one in sources if is_remote(one.path) and not one.trouble)
        self._threads: ThreadPoolExecutor | None = None
        self._begun: dict[str, Future[Snapshot]] = {}
        if len(far) > 1:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(AT_ONCE, "opening")
            self._begun = {path: self._threads.submit(open_snapshot, path) for path in far}

    def take(self, path: str) -> Snapshot:
        """The snapshot at `path`, for the caller to close.  Raises: what opening it raises."""
        begun = self._begun.pop(path, None)
        return begun.result() if begun is not None else self._open(path)

    def __enter__(self) -> Openings:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is None:
            return
        for begun in self._begun.values():
            begun.cancel()
        self._threads.shutdown()
        for begun in self._begun.values():
            if not begun.cancelled() and begun.exception() is None:
                begun.result().close()
