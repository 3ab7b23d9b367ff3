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
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hexz.catalog.leases import Lease, Published, Served
from hexz.catalog.names import Source, check_name
from hexz.catalog.openings import Openings
from hexz.errors import (
    HexzError,
    NameTaken,
    NoSuchSnapshot,
    OriginUnavailable,
    SnapshotAwaited,
    SnapshotUnreadable,
    UsageError,
)
from hexz.snapshot import OpenContext, Opener, Snapshot, Stream, doubt
from hexz.storage.remote import is_remote

__all__ = ["Catalog", "SyncResult"]

log = logging.getLogger("hexz.catalog")


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
        self.unreachable: dict[str, Source] = {}
        """By name, what is not served because its server did not answer; entries are replaced and taken away."""
        self.require_origins = False
        """Such a snapshot is an error like any other."""
        self.when_opened: Callable[[Snapshot], None] = _nothing
        """Is told of each snapshot that is published, once it is."""
        context.metrics.default = lambda: self.default
        context.metrics.skipped = lambda: len(self.skipped)
        context.metrics.unreachable = lambda: len(self.unreachable)
        self._published: dict[str, Published] = {}  # replaced as entries under _lock; read without it
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

        Raises: NoSuchSnapshot; SnapshotAwaited where its server did not answer yet.
        """
        while True:
            wanted = name or self.default
            published = self._published.get(wanted or "")
            if published is None:
                awaited = name or next(iter(self.unreachable), "")
                if awaited in self.unreachable:
                    raise SnapshotAwaited(
                        f"{awaited!r} is not served yet, for its server does not answer: ask again later"
                    )
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

    def _publish(
        self, name: str, path: str, mounted: bool, replace: bool, opened: Callable[[str], Snapshot] | None = None
    ) -> None:
        """`opened` gives the snapshot at a path, where it is not just opened."""
        with self._lock:
            if replace and name not in self._published:
                raise NoSuchSnapshot(f"there is no snapshot called {name!r}")
            if name in self._reserved or (name in self._published and not replace):
                raise NameTaken(f"a snapshot called {name!r} is already served: use NAME=FILE to choose another name")
            self._reserved.add(name)
        try:
            snapshot = (opened or self._opener.open)(path)
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
        self.when_opened(snapshot)
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

    def _put(self, name: str, path: str, snapshot: Snapshot, mounted: bool, replace: bool) -> Published | None:
        """Publish an open snapshot; what had its name, to be withdrawn.  Raises: NoSuchSnapshot."""
        with self._lock:
            old = self._published.get(name)
            if replace and old is None:
                raise NoSuchSnapshot(f"there is no snapshot called {name!r} any more")
            # The figures of a name go on when another file takes its place.
            metrics = old.metrics if old is not None else self.context.metrics.publish(name)
            metrics.file = snapshot.counts
            published = Published(name, path, snapshot, metrics, mounted)
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

    def _unname(self, published: Published) -> None:
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
        listed = list(sources)
        with Openings(self._opener.open, listed) as openings:
            for source in listed:
                try:
                    if source.trouble:
                        raise UsageError(source.trouble)
                    self._publish(check_name(source.name), source.path, False, False, openings.take)
                except HexzError as error:
                    if not source.gathered and not self._waits_for(source, error):
                        raise
                    skipped[source.path] = source.said(error)
        self.skipped = skipped

    def _waits_for(self, source: Source, error: HexzError) -> bool:
        """Whether `source` is to be tried again, since only its server's answer is missing, or its permission.

        Keys expire, and are renewed by others; stores say so with a refusal.
        """
        passing = is_remote(source.path) and isinstance(error, (OriginUnavailable, SnapshotUnreadable))
        waits = passing and not self.require_origins and source.name not in self
        if waits:
            self.unreachable[source.name] = source
        return waits

    def reach(self, source: Source) -> None:
        """Try one of the `unreachable` again; it is none any more unless its server still does not answer.

        Raises: what `add` raises.
        """
        try:
            self.add(source.name, source.path)
        except (OriginUnavailable, SnapshotUnreadable):
            raise
        except NameTaken:
            if source.name in self:  # else a reload is just opening it
                self._reached(source)
            raise
        except HexzError as error:
            log.error("not served: %s", source.said(error), extra={"each": True})
            self._reached(source)
            raise
        self._reached(source)
        self.skipped = {path: line for path, line in self.skipped.items() if path != source.path}

    def _reached(self, source: Source) -> None:
        if self.unreachable.get(source.name) is source:
            self.unreachable = {name: one for name, one in self.unreachable.items() if one is not source}

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
        listed = find_sources()
        self.unreachable = {}
        with Openings(self._opener.open, listed) as openings:
            for source in listed:
                try:
                    if source.trouble:
                        raise UsageError(source.trouble)
                    wanted.add(source.name)
                    self._sync_one(source.name, source.path, result, openings)
                except HexzError as error:
                    skipped[source.path] = source.said(error)
                    result.failed.append(f"{source.name}: {error}")
                    self._waits_for(source, error)
                    if self._lost_folder(source):
                        del skipped[source.path]
                        missing.setdefault(_folder_of(source.path), []).append(source.name)
                        continue
                    log.warning("not reloaded: %s", skipped[source.path], extra={"each": True})
        self.skipped = skipped
        for one in self.served():
            if one.name not in wanted and not one.mounted:
                folder = _folder_of(one.path)
                if not is_remote(one.path) and not os.path.isdir(folder):
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
        if published is None or published.mounted or published.path != source.path or is_remote(source.path):
            return False
        return not os.path.isdir(_folder_of(source.path))

    def _sync_one(self, name: str, path: str, result: SyncResult, openings: Openings) -> None:
        published = self._published.get(name)
        if published is None:
            self._publish(check_name(name), path, False, False, openings.take)
            result.added.append(name)
            return
        if published.mounted:
            raise NameTaken(f"{path}: a snapshot that was mounted while running is called {name!r} already")
        fresh = openings.take(path)

        def once_more(path: str) -> Snapshot:
            fresh.retain()
            return fresh

        try:
            if fresh is not published.snapshot:
                self._publish(name, path, False, True, once_more)
                result.replaced.append(name)
        finally:
            fresh.close()

    def close(self, timeout: float = 0.0) -> None:
        """Take every name away and wait up to `timeout` seconds for each one's leases."""
        deadline = time.monotonic() + timeout
        for name in self.names():
            with contextlib.suppress(NoSuchSnapshot):  # somebody else was faster
                self.remove(name, max(0.0, deadline - time.monotonic()))


def _nothing(snapshot: Snapshot) -> None:
    return


def _folder_of(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))
