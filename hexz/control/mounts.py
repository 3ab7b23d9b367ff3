"""Snapshots that come and go while the daemon runs, under mountpoints as Nydus clients write them.

The snapshot ``NAME`` of the catalog has the mountpoint ``/NAME``.  What is mounted at ``/``
gets the name of its file and is the default snapshot; while nothing is, ``/`` means the
default one all the same, but for umount: who asks twice must not take another one away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hexz.catalog import Catalog, Served
from hexz.catalog.sources import name_of
from hexz.control.roots import Roots
from hexz.errors import HexzError, NameTaken, NoSuchSnapshot, SnapshotError, UsageError
from hexz.protocol.nydus.bodies import MountRequest
from hexz.protocol.nydus.errors import ControlError, nested, other
from hexz.protocol.nydus.shapes import Instance
from hexz.storage.remote import is_remote

__all__ = ["DRAIN_S", "MountTable"]

DRAIN_S = 20.0
"""How long an unmounted snapshot's readers may take to end before the client is told so; clients wait for 30 s."""
PREFETCHED = 64 << 20
"""Bytes at the beginning of a snapshot's disk that are decompressed at once if its mount asks for it."""
MAX_MOUNTS = 65536

_Result = TypeVar("_Result")


class MountTable:
    """Mounts over a catalog; every method may be called from any thread, and opening a file holds up nobody else."""

    def __init__(
        self, catalog: Catalog, roots: Roots | None = None, refused: Callable[[str], None] | None = None
    ) -> None:
        """Sources have to be below `roots`.  `refused` is told of every mount that failed."""
        self._catalog = catalog
        self._roots = roots or Roots()
        self._refused = refused or (lambda text: None)
        self._root_name: str | None = None  # what "/" means; guarded by _lock
        self._lock = threading.Lock()

    def mount(self, mountpoint: str, request: MountRequest) -> None:
        """Open and check a snapshot, and publish it.

        Raises: ControlError.
        """
        path = self._allowed(request.source)
        at_root = mountpoint == "/"
        if at_root and self._root_name is not None and self._root_name in self._catalog:
            raise _there_already()
        name = name_of(path) if at_root else _name(mountpoint)
        if len(self._catalog) >= MAX_MOUNTS:
            raise other("Mount", "MountFilesystem", f"{MAX_MOUNTS} snapshots are served already", "TOO_MANY")
        self._attempt("Mount", mountpoint, lambda: self._catalog.add(name, path, mounted=True))
        if at_root:
            self._catalog.make_default(name)
            with self._lock:
                self._root_name = name
        if request.prefetch:
            self._prefetch(name)

    def remount(self, mountpoint: str, request: MountRequest) -> None:
        """Let another file take a mount's place; readers under way finish on the old one.

        Raises: ControlError.
        """
        name = self.name_at(mountpoint)
        path = self._allowed(request.source)
        if request.options.get("strict"):
            self._check_sizes(name, path)
        self._attempt("Mount", mountpoint, lambda: self._catalog.replace(name, path, mounted=True))

    def umount(self, mountpoint: str, drain_s: float = DRAIN_S) -> None:
        """Take a snapshot away, and wait until its file is closed.

        Raises: ControlError, also when readers go on after `drain_s` seconds; the name is gone then as well.
        """
        if mountpoint == "/" and self._root_name is None:
            raise _not_there(mountpoint)
        name = self.name_at(mountpoint)
        try:
            gone = self._catalog.remove(name, drain_s, end_leases=True)
        except NoSuchSnapshot:
            raise _not_there(mountpoint) from None
        with self._lock:
            if self._root_name == name:
                self._root_name = None
        if not gone:
            text = f"{mountpoint} is unmounted, but still read after {drain_s:g} s: it closes with its last reader"
            raise other("Mount", "UmountFilesystem", text, "BUSY")

    def name_at(self, mountpoint: str) -> str:
        """The catalog's name of what is mounted there.

        Raises: ControlError.
        """
        name = self._root_name or self._catalog.default if mountpoint == "/" else _name(mountpoint)
        if name is None or name not in self._catalog:
            raise _not_there(mountpoint)
        return name

    def has(self, name: str) -> bool:
        """Whether the catalog has such a snapshot."""
        return name in self._catalog

    def instances(self) -> list[Instance]:
        """Everything that is mounted, with its facts; no file is read."""
        return [self._instance(one) for one in self._catalog.served()]

    def facts(self, mountpoint: str) -> dict[str, Any]:
        """The facts of one mount.  Raises: ControlError."""
        name = self.name_at(mountpoint)
        for one in self._catalog.served():
            if one.name == name:
                return one.snapshot.info()
        raise _not_there(mountpoint)

    def _instance(self, one: Served) -> Instance:
        mountpoint = "/" if one.name == self._root_name else f"/{one.name}"
        facts = {**one.snapshot.info(), "name": one.name, "readers": one.leases, "mounted_while_running": one.mounted}
        return Instance(mountpoint, one.since, facts)

    def export(self) -> dict[str, Any]:
        """What a successor needs to serve the same."""
        return {
            "default": self._catalog.default,
            "root": self._root_name,
            "snapshots": [
                {"name": one.name, "path": _whole_path(one.path), "mounted": one.mounted}
                for one in self._catalog.served()
            ],
        }

    def restore(self, exported: dict[str, Any]) -> None:
        """Open everything that another process served.

        Raises: HexzError of the first that cannot be opened or must not be, and then nothing is served.
        """
        try:
            for one in exported["snapshots"]:
                self._catalog.add(one["name"], self._roots.inherited(one["path"]), bool(one.get("mounted")))
            if exported.get("default") is not None:
                self._catalog.make_default(exported["default"])
        except HexzError:
            self._catalog.close()
            raise
        with self._lock:
            self._root_name = exported.get("root")

    def _allowed(self, source: str) -> str:
        try:
            return self._roots.allowed(source)
        except SnapshotError as error:
            raise other("Mount", "InvalidArguments", str(error)) from None

    def _attempt(self, wrapper: str, mountpoint: str, action: Callable[[], _Result]) -> _Result:
        """Do `action`; its failure as a refusal."""
        try:
            return action()
        except NameTaken:
            raise _there_already() from None
        except NoSuchSnapshot:
            raise _not_there(mountpoint) from None
        except UsageError as error:
            raise other(wrapper, "InvalidArguments", str(error), "INVALID_ARGUMENT") from None
        except (SnapshotError, HexzError) as error:
            self._refused(f"mount {mountpoint}: {error}")
            raise other(wrapper, "MountFilesystem", str(error), "BAD_SOURCE") from None

    def _check_sizes(self, name: str, path: str) -> None:
        def look() -> dict[str, int]:
            with self._catalog.open_aside(path) as fresh:
                return {stream.name: stream.size for stream in fresh.streams.values()}

        fresh = self._attempt("Mount", f"/{name}", look)
        with self._catalog.lease(name) as snapshot:
            present = {stream.name: stream.size for stream in snapshot.streams.values()}
        if fresh != present:
            raise other("Mount", "MountFilesystem", "the new file's streams have other sizes", "OTHER_SIZE")

    def _prefetch(self, name: str) -> None:
        with self._catalog.lease(name) as snapshot:
            if snapshot.disk is not None and snapshot.disk.size:
                snapshot.disk.prefetch(0, min(snapshot.disk.size, PREFETCHED))


def _whole_path(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(path)


def _name(mountpoint: str) -> str:
    name = mountpoint.strip("/")
    if not mountpoint.startswith("/") or not name:
        raise other("Mount", "InvalidArguments", f"mountpoint {mountpoint!r} must begin with /", "INVALID_ARGUMENT")
    return name


def _there_already() -> ControlError:
    return nested("Mount", "MountFilesystem", "object or filesystem already exists", "ALREADY_EXISTS")


def _not_there(mountpoint: str) -> ControlError:
    return other("Mount", "MountFilesystem", f"{mountpoint}: object or filesystem doesn't exist", "NOT_FOUND")
