"""The snapshots being served, by name: look up, add, replace, remove.

A look-up hands out a lease.  Removing or replacing a snapshot takes its name away
at once, lets the leases that are out end in their own time, and closes the file
behind the last one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from hexz.errors import HexzError, NoSuchSnapshot, UsageError
from hexz.metrics import SnapshotMetrics
from hexz.snapshot import OpenContext, Snapshot, Stream, open_snapshot

__all__ = ["MAX_NAME", "Catalog", "Lease", "SyncResult", "check_name"]

log = logging.getLogger("hexz.catalog")

MAX_NAME = 255
"""Longest snapshot name, bytes of UTF-8: it has to fit an NBD export name with room for ``/memory``."""


def check_name(name: str) -> str:
    """`name` itself if a snapshot may be called so.

    Raises: UsageError.
    """
    if not name or name in (".", "..") or "/" in name or not name.isprintable():
        raise UsageError(f"{name!r} cannot be a snapshot's name: no '/', no control characters, not empty, '.' or '..'")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise UsageError(f"{name[:40]!r}...: a snapshot's name has at most {MAX_NAME} bytes")
    return name


class _Published:
    """A snapshot under its name, and how many leases of it are out."""

    __slots__ = ("gone", "idle", "leases", "lock", "metrics", "name", "path", "since", "snapshot")

    def __init__(self, name: str, path: str, snapshot: Snapshot, metrics: SnapshotMetrics) -> None:
        self.name = name
        self.path = path
        self.snapshot = snapshot
        self.metrics = metrics
        self.since = time.time()
        self.lock = threading.Lock()
        self.leases = 0  # guarded by lock
        self.gone = False  # guarded by lock
        self.idle = threading.Event()  # set when gone and the last lease ended

    def take(self) -> bool:
        with self.lock:
            if self.gone:
                return False
            self.leases += 1
            return True

    def give_back(self) -> None:
        with self.lock:
            self.leases -= 1
            last = self.gone and not self.leases
        if last:
            self._close()

    def withdraw(self) -> None:
        with self.lock:
            last = not self.gone and not self.leases
            self.gone = True
        if last:
            self._close()

    def _close(self) -> None:
        self.snapshot.close()
        self.idle.set()


class Lease:
    """The right to read a snapshot until `release`; also a context manager that gives the snapshot."""

    __slots__ = ("_published", "metrics", "name", "snapshot")

    def __init__(self, published: _Published) -> None:
        self._published: _Published | None = published
        self.name = published.name
        self.snapshot = published.snapshot
        self.metrics = published.metrics

    def release(self) -> None:
        """Give the lease back; a second time does nothing."""
        published, self._published = self._published, None
        if published is not None:
            published.give_back()

    def __enter__(self) -> Snapshot:
        return self.snapshot

    def __exit__(self, *_: object) -> None:
        self.release()


class SyncResult(NamedTuple):
    """What `Catalog.sync` did: names, and for failures one line each."""

    added: list[str]
    replaced: list[str]
    removed: list[str]
    failed: list[str]


class Catalog:
    """Names to open snapshots; all methods are thread-safe, and none holds a lock while a file is opened."""

    def __init__(self, context: OpenContext) -> None:
        self.context = context
        self.default: str | None = None
        context.metrics.default = lambda: self.default
        self._published: dict[str, _Published] = {}  # replaced as entries under _lock; read without it
        self._reserved: set[str] = set()  # names being opened; guarded by _lock
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names now, in the order in which they came."""
        return list(self._published)

    def __contains__(self, name: str) -> bool:
        return name in self._published

    def __len__(self) -> int:
        return len(self._published)

    def lease(self, name: str | None = None) -> Lease:
        """A lease of the snapshot called `name`; None or "" means the default one.

        Raises: NoSuchSnapshot.
        """
        wanted = name or self.default
        while wanted is not None:
            published = self._published.get(wanted)
            if published is None:
                break
            if published.take():
                return Lease(published)
        raise NoSuchSnapshot(f"there is no snapshot called {name!r}" if name else "no snapshot is served")

    def serves(self, name: str | None, snapshot: Snapshot) -> bool:
        """Whether `name` (None or "" for the default one) means `snapshot` at this moment."""
        published = self._published.get(name or self.default or "")
        return published is not None and published.snapshot is snapshot

    def stream(self, export: str) -> tuple[Lease, Stream]:
        """The stream behind ``""``, ``NAME`` (disk) or ``NAME/memory``, with a lease to release.

        Raises: NoSuchSnapshot.
        """
        name, slash, which = export.partition("/")
        lease = self.lease(name)
        stream = lease.snapshot.streams.get(which if slash else "disk")
        if stream is None:
            lease.release()
            raise NoSuchSnapshot(f"snapshot {lease.name!r} has no {which if slash else 'disk'} stream")
        return lease, stream

    def exports(self) -> list[str]:
        """Every name that `stream` accepts, but for the empty one."""
        found = []
        for name, published in list(self._published.items()):
            if published.snapshot.disk is not None:
                found.append(name)
            if published.snapshot.memory is not None:
                found.append(f"{name}/memory")
        return found

    def add(self, name: str, path: str) -> None:
        """Open the file at `path` and publish it as `name`.

        Raises: UsageError when the name is taken or impossible; what `open_snapshot` raises.
        """
        self._publish(check_name(name), path, replace=False)

    def replace(self, name: str, path: str) -> None:
        """Open the file at `path` and let it take the place of `name`; reads under way finish on the old one.

        Raises: NoSuchSnapshot; what `open_snapshot` raises, and then the old one stays.
        """
        self._publish(name, path, replace=True)

    def _publish(self, name: str, path: str, replace: bool) -> None:
        with self._lock:
            if name in self._reserved or (name in self._published) is not replace:
                if replace and name not in self._published:
                    raise NoSuchSnapshot(f"there is no snapshot called {name!r}")
                raise UsageError(f"a snapshot called {name!r} is already served: use NAME=FILE to choose another name")
            self._reserved.add(name)
        try:
            snapshot = open_snapshot(path, self.context)
            with self._lock:
                old = self._published.get(name)
                # The figures of a name go on when another file takes its place.
                metrics = old.metrics if old is not None else self.context.metrics.publish(name)
                metrics.file = snapshot.counts
                published = _Published(name, path, snapshot, metrics)
                self._published[name] = published
                if self.default is None:
                    self.default = name
        finally:
            with self._lock:
                self._reserved.discard(name)
        if old is not None:
            old.withdraw()

    def remove(self, name: str, timeout: float = 0.0) -> bool:
        """Take `name` away; True when its last lease ended within `timeout` seconds.

        Raises: NoSuchSnapshot.
        """
        with self._lock:
            published = self._published.pop(name, None)
            if self.default == name:
                self.default = next(iter(self._published), None)
        if published is None:
            raise NoSuchSnapshot(f"there is no snapshot called {name!r}")
        self.context.metrics.withdraw(published.metrics)
        published.withdraw()
        return published.idle.wait(timeout)

    def sync(self, find_sources: Callable[[], list[tuple[str, str]]]) -> SyncResult:
        """Make the catalog hold just the (name, path) pairs that `find_sources` gives.

        What cannot be opened is reported, logged, and leaves the old state of its name.
        Raises: what `find_sources` raises, and then nothing changed.
        """
        result = SyncResult([], [], [], [])
        sources = dict(find_sources())
        for name, path in sources.items():
            try:
                self._sync_one(name, path, result)
            except HexzError as error:
                result.failed.append(f"{name}: {error}")
                log.warning("not reloaded: %s", error)
        for name in self.names():
            if name not in sources:
                self.remove(name)
                result.removed.append(name)
        return result

    def _sync_one(self, name: str, path: str, result: SyncResult) -> None:
        published = self._published.get(name)
        if published is None:
            self.add(name, path)
            result.added.append(name)
            return
        fresh = open_snapshot(path, self.context)
        same = fresh is published.snapshot
        fresh.close()
        if not same:
            self.replace(name, path)
            result.replaced.append(name)

    def close(self, timeout: float = 0.0) -> None:
        """Take every name away and wait up to `timeout` seconds for each one's leases."""
        deadline = time.monotonic() + timeout
        for name in self.names():
            self.remove(name, max(0.0, deadline - time.monotonic()))
