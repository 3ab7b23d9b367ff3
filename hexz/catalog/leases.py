"""A snapshot under its name, and the leases of those who read it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

from hexz.metrics import SnapshotMetrics
from hexz.snapshot import Snapshot

__all__ = ["Lease", "Published", "Served"]


class Published:
    """A snapshot under its name, and how many leases of it are out."""

    __slots__ = (
        "__weakref__",
        "actions",
        "ended",
        "gone",
        "idle",
        "leases",
        "lock",
        "metrics",
        "mounted",
        "name",
        "older",
        "path",
        "since",
        "snapshot",
    )  # fmt: skip

    def __init__(self, name: str, path: str, snapshot: Snapshot, metrics: SnapshotMetrics, mounted: bool) -> None:
        self.name = name
        self.path = path
        self.snapshot = snapshot
        self.metrics = metrics
        self.mounted = mounted
        self.since = time.time()
        # Those whose place it took, as far as somebody still holds a lease of them.
        self.older: weakref.WeakSet[Published] = weakref.WeakSet()
        self.actions: dict[object, Callable[[], None]] = {}  # by lease; guarded by lock
        self.lock = threading.Lock()
        self.leases = 0  # guarded by lock
        self.gone = False  # guarded by lock
        self.ended = False  # guarded by lock
        self.idle = threading.Event()  # set when gone and the last lease ended

    def take(self) -> bool:
        """One more reads it; False when it was withdrawn."""
        with self.lock:
            if self.gone:
                return False
            self.leases += 1
            return True

    def give_back(self, lease: object) -> None:
        """One of them has ended; behind the last of what was withdrawn the file is closed."""
        with self.lock:
            self.actions.pop(lease, None)
            self.leases -= 1
            last = self.gone and not self.leases
        if last:
            self._close()

    def withdraw(self) -> None:
        """Nobody may take it any more."""
        with self.lock:
            last = not self.gone and not self.leases
            self.gone = True
        if last:
            self._close()

    def end_leases(self) -> None:
        """Ask those who hold long leases to give them back."""
        with self.lock:
            self.ended = True
            actions = list(self.actions.values())
        for action in actions:
            action()

    def _close(self) -> None:
        self.snapshot.close()
        self.idle.set()


class Lease:
    """The right to read a snapshot until `release`; also a context manager that gives the snapshot."""

    __slots__ = ("_published", "metrics", "name", "snapshot")

    def __init__(self, published: Published) -> None:
        self._published: Published | None = published
        self.name = published.name
        self.snapshot = published.snapshot
        self.metrics = published.metrics

    def release(self) -> None:
        """Give the lease back; a second time does nothing."""
        published, self._published = self._published, None
        if published is not None:
            published.give_back(self)

    def when_ended(self, action: Callable[[], None]) -> None:
        """Do `action`, from another thread, when the snapshot is taken away for good: the lease should end soon."""
        published = self._published
        if published is not None:
            with published.lock:
                published.actions[self] = action
                ended = published.ended
            if ended:
                action()

    def __enter__(self) -> Snapshot:
        return self.snapshot

    def __exit__(self, *_: object) -> None:
        self.release()


class Served(NamedTuple):
    """A snapshot under its name: the file, since when (seconds since 1970), and how many leases are out.

    `mounted` ones came while the daemon ran, the others with its arguments.
    """

    name: str
    path: str
    since: float
    mounted: bool
    leases: int
    snapshot: Snapshot
