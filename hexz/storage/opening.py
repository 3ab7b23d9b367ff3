"""From a snapshot's path or address to its bytes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hexz.metrics.figures import DiskCacheFigures, ServerFigures
from hexz.storage.interface import Storage
from hexz.storage.remote import RemoteSettings, is_remote
from hexz.storage.sealed import SealCache, SealPolicy, open_local, through_seal

if TYPE_CHECKING:
    from hexz.storage.remote.stores import Stores

__all__ = ["RemoteAccess", "open_storage"]


class RemoteAccess:
    """The way to servers, which is made when the first snapshot is on one: most daemons need none of it."""

    def __init__(self, settings: RemoteSettings, memory: int) -> None:
        """`memory` bounds what is kept of all remote files as it is stored, in bytes."""
        self.settings = settings
        self._memory = memory
        self._lock = threading.Lock()
        self._stores: Stores | None = None  # written under _lock

    def stores(self) -> Stores:
        """The servers.  Raises: ConfigError, UsageError."""
        if self._stores is None:
            from hexz.storage.remote.stores import Stores

            made = Stores(self.settings, self._memory)
            with self._lock:
                self._stores = self._stores or made
        return self._stores

    def server_figures(self) -> Sequence[ServerFigures]:
        """What the servers cost so far."""
        return [server.figures() for server in self._stores.servers()] if self._stores is not None else ()

    def disk_cache_figures(self) -> DiskCacheFigures | None:
        """What the disk cache has, if there is one."""
        disk = self._stores.disk if self._stores is not None else None
        return disk.figures() if disk is not None else None

    def close(self) -> None:
        """Close every connection that is kept."""
        if self._stores is not None:
            self._stores.close()


def open_storage(
    path: str, policy: SealPolicy, cache: SealCache, remote: RemoteAccess, resolved: bool = False
) -> Storage:
    """Open the file at `path`, through its seal if it has one, or the object at that address.

    On servers seals are looked for only with a policy that has a key or demands them.
    Raises: SnapshotNotFound, SnapshotUnreadable, SystemFailure; SealMissing, SealKeyNeeded, SealDamaged,
    StorageError; for an address also OriginUnavailable, UsageError, ConfigError.
    """
    if not is_remote(path):
        return open_local(path, policy, cache, resolved)
    stores = remote.stores()
    file = stores.open(path)
    if not policy.required and policy.key is None:
        return file  # to look for a seal takes a request, which most servers answer with 404
    return through_seal(file, stores.open, policy, cache)
