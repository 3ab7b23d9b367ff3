"""The snapshots being served, by name: look up, add, replace, remove.

A look-up hands out a lease.  Removing or replacing a snapshot takes its name away
at once, lets the leases that are out end in their own time, and closes the file
behind the last one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hexz.errors import HexzError, NameTaken, NoSuchSnapshot, UsageError
from hexz.metrics import SnapshotMetrics
from hexz.printable import NO_UTF8
from hexz.snapshot import OpenContext, Opener, Snapshot, Stream, doubt

__all__ = ["MAX_NAME", "Catalog", "Lease", "Served", "Source", "SyncResult", "check_name"]

log = logging.getLogger("hexz.catalog")

MAX_NAME = 255
"""Longest snapshot name, bytes of UTF-8: it has to fit an NBD export name with room for ``/memory``."""


def check_name(name: str) -> str:
    """`name` itself if a snapshot may be called so.

    Raises: UsageError.
    """
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{name!r} cannot be a snapshot's name: no control characters, no part empty, '.' or '..'")
    if len(parts) > 1 and parts[-1] == "memory":
        raise UsageError(f"{name!r} cannot be a snapshot's name: it means the memory of {'/'.join(parts[:-1])!r}")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise UsageError(f"{name[:40]!r}...: a snapshot's name has at most {MAX_NAME} bytes")
    return name


class _Published:
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
        self.older: weakref.WeakSet[_Published] = weakref.WeakSet()
        self.actions: dict[object, Callable[[], None]] = {}  # by lease; guarded by lock
        self.lock = threading.Lock()
        self.leases = 0  # guarded by lock
        self.gone = False  # guarded by lock
        self.ended = False  # guarded by lock
        self.idle = threading.Event()  # set when gone and the last lease ended

    def take(self) -> bool:
        with self.lock:
            if self.gone:
                return False
            self.leases += 1
            return True

    def give_back(self, lease: object) -> None:
        with self.lock:
            self.actions.pop(lease, None)
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

    def __init__(self, published: _Published) -> None:
        self._published: _Published | None = published
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


class Source(NamedTuple):
    """A file to be served as `name`.

    `gathered` ones lie in a directory that was named; the others were named themselves.  `trouble` says why one
    cannot be served under its name.
    """

    name: str
    path: str
    gathered: bool = False
    trouble: str = ""

    def said(self, error: HexzError) -> str:
        """One line on what is wrong with it, which begins with its path also where a link leads elsewhere."""
        line = str(error) if str(error).startswith(self.path) else f"{self.path}: {error}"
        return line.translate(NO_UTF8)


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
        self._opener = Opener(context)
        self.default: str | None = None
        self.missing: dict[str, list[str]] = {}
        """By directory that was missing at the last `sync`, what is still served of it."""
        self.skipped: dict[str, str] = {}
        """By path, one line on each file that cannot be served as it is now: of the last `open_all` or `sync`."""
        context.metrics.default = lambda: self.default
        context.metrics.skipped = lambda: len(self.skipped)
        self._published: dict[str, _Published] = {}  # replaced as entries under _lock; read without it
        self._names_of: dict[str, tuple[str, ...]] = {}  # by file; entries are replaced like those above
        self._reserved: set[str] = set()  # names being opened; guarded by _lock
        self._lock = threading.Lock()
        self._unsaid: list[str] | None = []  # until somebody takes them

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
        while True:
            wanted = name or self.default
            published = self._published.get(wanted or "")
            if published is None:
                if name or wanted == self.default:  # else there is another default by now
                    raise NoSuchSnapshot(f"there is no snapshot called {name!r}" if name else "no snapshot is served")
            elif published.take():
                return Lease(published)

    def serves(self, name: str | None, snapshot: Snapshot) -> bool:
        """Whether `name` (None or "" for the default one) means `snapshot` at this moment."""
        published = self._published.get(name or self.default or "")
        return published is not None and published.snapshot is snapshot

    def names_of(self, path: str) -> tuple[str, ...]:
        """The names under which the file at this real path is served."""
        return self._names_of.get(path, ())

    def stream(self, export: str) -> tuple[Lease, Stream]:
        """The stream behind ``""``, ``NAME`` (disk) or ``NAME/memory``, with a lease to release.

        Raises: NoSuchSnapshot.
        """
        name, which = export, "disk"
        if export.endswith("/memory"):
            name, which = export[: -len("/memory")], "memory"
        lease = self.lease(name)
        stream = lease.snapshot.streams.get(which)
        if stream is None:
            lease.release()
            raise NoSuchSnapshot(f"snapshot {lease.name!r} has no {which} stream")
        return lease, stream

    def served(self) -> list[Served]:
        """Every snapshot with its facts."""
        return [
            Served(one.name, one.path, one.since, one.mounted, one.leases, one.snapshot)
            for one in list(self._published.values())
        ]

    def open_aside(self, path: str) -> Snapshot:
        """Open a file without publishing it; the caller closes it.  Raises: what `Opener.open` raises."""
        return self._opener.open(path)

    def make_default(self, name: str) -> None:
        """Let `name` be what is served where no name is given.  Raises: NoSuchSnapshot."""
        with self._lock:
            if name not in self._published:
                raise NoSuchSnapshot(f"there is no snapshot called {name!r}")
            self.default = name

    @property
    def stale(self) -> int:
        """How many snapshots are served whose directory was missing at the last `sync`."""
        return sum(map(len, self.missing.values()))

    @property
    def changed(self) -> int:
        """How many snapshots cannot be read whole because their files were written to: `sync` opens them anew."""
        return sum(published.snapshot.changed for published in list(self._published.values()))

    def exports(self) -> list[str]:
        """Every name that `stream` accepts, but for the empty one."""
        found = []
        for name, published in list(self._published.items()):
            if published.snapshot.disk is not None:
                found.append(name)
            if published.snapshot.memory is not None:
                found.append(f"{name}/memory")
        return found

    def add(self, name: str, path: str, mounted: bool = False) -> None:
        """Open the file at `path` and publish it as `name`; a `mounted` one stays when the arguments are read again.

        Raises: NameTaken; UsageError when the name is impossible; what `Opener.open` raises.
        """
        self._publish(check_name(name), path, mounted, replace=False)

    def replace(self, name: str, path: str, mounted: bool = False) -> None:
        """Open the file at `path` and let it take the place of `name`; reads under way finish on the old one.

        Raises: NoSuchSnapshot, also when the name is taken away meanwhile; NameTaken; what `open_snapshot`
        raises, and then the old one stays.
        """
        self._publish(name, path, mounted, replace=True)

    def _publish(self, name: str, path: str, mounted: bool, replace: bool) -> None:
        with self._lock:
            if replace and name not in self._published:
                raise NoSuchSnapshot(f"there is no snapshot called {name!r}")
            if name in self._reserved or (name in self._published and not replace):
                raise NameTaken(f"a snapshot called {name!r} is already served: use NAME=FILE to choose another name")
            self._reserved.add(name)
        try:
            snapshot = self._opener.open(path)
            doubted = doubt(snapshot)
            try:
                old = self._put(name, path, snapshot, mounted, replace)
            except NoSuchSnapshot:
                snapshot.close()
                raise
        finally:
            with self._lock:
                self._reserved.discard(name)
        if old is not None:
            old.withdraw()
        if doubted:
            self._warn(doubted)

    def _warn(self, line: str) -> None:
        if self._unsaid is None:
            log.warning("%s", line, extra={"each": True})
        else:
            self._unsaid.append(line)

    def take_warnings(self) -> list[str]:
        """What is to be said of the snapshots so far, a line each; of those to come it is logged at once."""
        unsaid, self._unsaid = self._unsaid or [], None
        return unsaid

    def _put(self, name: str, path: str, snapshot: Snapshot, mounted: bool, replace: bool) -> _Published | None:
        """Publish an open snapshot; what had its name, to be withdrawn.  Raises: NoSuchSnapshot."""
        with self._lock:
            old = self._published.get(name)
            if replace and old is None:
                raise NoSuchSnapshot(f"there is no snapshot called {name!r} any more")
            # The figures of a name go on when another file takes its place.
            metrics = old.metrics if old is not None else self.context.metrics.publish(name)
            metrics.file = snapshot.counts
            published = _Published(name, path, snapshot, metrics, mounted)
            if old is not None:
                published.older.update((*old.older, old))
            self._published[name] = published
            # A file that is replaced by itself goes on having its name at every moment.
            if old is None or old.snapshot.path != snapshot.path:
                self._names_of[snapshot.path] = (*self.names_of(snapshot.path), name)
                if old is not None:
                    self._unname(old)
            if self.default is None:
                self.default = name
            return old

    def _unname(self, published: _Published) -> None:
        """Let its name not mean its file any more; `_lock` is held."""
        path = published.snapshot.path
        left = tuple(name for name in self.names_of(path) if name != published.name)
        if left:
            self._names_of[path] = left
        else:
            self._names_of.pop(path, None)

    def remove(self, name: str, timeout: float = 0.0, end_leases: bool = False) -> bool:
        """Take `name` away; True when its last lease ended within `timeout` seconds, also of what it meant before.

        `end_leases` asks those who hold it for long to let go; otherwise they end in their own time.
        Raises: NoSuchSnapshot.
        """
        with self._lock:
            if self.default == name:  # first, so that nobody finds a default that has gone
                self.default = next((other for other in self._published if other != name), None)
            published = self._published.pop(name, None)
            if published is not None:
                self._unname(published)
        if published is None:
            raise NoSuchSnapshot(f"there is no snapshot called {name!r}")
        self.context.metrics.withdraw(published.metrics)
        published.withdraw()
        every = (published, *published.older)
        if end_leases:
            for one in every:
                one.end_leases()
        deadline = time.monotonic() + timeout
        return all([one.idle.wait(max(0.0, deadline - time.monotonic())) for one in every])

    def open_all(self, sources: Iterable[Source]) -> None:
        """Publish `sources`; what is wrong with gathered ones is found in `skipped`, and keeps nothing else away.

        Raises: what `add` raises for one that was named itself.
        """
        skipped: dict[str, str] = {}
        for source in sources:
            try:
                if source.trouble:
                    raise UsageError(source.trouble)
                self.add(source.name, source.path)
            except HexzError as error:
                if not source.gathered:
                    raise
                skipped[source.path] = source.said(error)
        self.skipped = skipped

    def sync(self, find_sources: Callable[[], Sequence[Source]]) -> SyncResult:
        """Make the catalog hold just the sources that `find_sources` gives.

        What lies in a directory that is not there stays, named itself or with the directory, and is `missing`: a disk
        that is not mounted takes nothing away.
        What cannot be opened is reported, logged, and leaves the old state of its name.
        Raises: what `find_sources` raises, and then nothing changed.
        """
        result = SyncResult([], [], [], [])
        missing: dict[str, list[str]] = {}
        skipped: dict[str, str] = {}
        wanted = set()
        for source in find_sources():
            try:
                if source.trouble:
                    raise UsageError(source.trouble)
                wanted.add(source.name)
                self._sync_one(source.name, source.path, result)
            except HexzError as error:
                skipped[source.path] = source.said(error)
                result.failed.append(f"{source.name}: {error}")
                if self._lost_folder(source):
                    del skipped[source.path]
                    missing.setdefault(_folder_of(source.path), []).append(source.name)
                    continue
                log.warning("not reloaded: %s", skipped[source.path], extra={"each": True})
        self.skipped = skipped
        for one in self.served():
            if one.name not in wanted and not one.mounted:
                folder = _folder_of(one.path)
                if not os.path.isdir(folder):
                    missing.setdefault(folder, []).append(one.name)
                    continue
                with contextlib.suppress(NoSuchSnapshot):  # somebody else was faster
                    self.remove(one.name)
                    result.removed.append(one.name)
        for folder, names in missing.items():
            log.warning("%s: this directory is missing: its %d snapshots stay as they are", folder, len(names))
        self.missing = missing
        return result

    def _lost_folder(self, source: Source) -> bool:
        """Whether what is served as this source was in a directory that is not there any more."""
        published = self._published.get(source.name)
        if published is None or published.mounted or published.path != source.path:
            return False
        return not os.path.isdir(_folder_of(source.path))

    def _sync_one(self, name: str, path: str, result: SyncResult) -> None:
        published = self._published.get(name)
        if published is None:
            self.add(name, path)
            result.added.append(name)
            return
        if published.mounted:
            raise NameTaken(f"{path}: a snapshot that was mounted while running is called {name!r} already")
        fresh = self._opener.open(path)
        same = fresh is published.snapshot
        fresh.close()
        if not same:
            self.replace(name, path)
            result.replaced.append(name)

    def close(self, timeout: float = 0.0) -> None:
        """Take every name away and wait up to `timeout` seconds for each one's leases."""
        deadline = time.monotonic() + timeout
        for name in self.names():
            with contextlib.suppress(NoSuchSnapshot):  # somebody else was faster
                self.remove(name, max(0.0, deadline - time.monotonic()))


def _folder_of(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))
