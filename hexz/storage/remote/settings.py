"""How remote snapshots are reached: what the command line says of it, as one value."""

from __future__ import annotations

from typing import NamedTuple

from hexz.storage.remote.places import StoreNames

__all__ = ["DEADLINE_S", "LOCAL_ONLY", "RemoteSettings"]

DEADLINE_S = 30.0
"""How long one read of a store may take in all, with everything that is tried again, when nothing else is said."""


class RemoteSettings(NamedTuple):
    """Files are paths, times in seconds, sizes in bytes."""

    stores: StoreNames = StoreNames()
    credentials_file: str | None = None
    """S3 keys, and nothing else is looked at for them."""
    profile: str | None = None
    instance_credentials: bool = False
    """The metadata service of the machine is asked for S3 keys."""
    token_file: str | None = None
    """Bearer tokens: a ``HOST TOKEN`` line for each server."""
    ca_file: str | None = None
    """Certificates that servers may be signed by, instead of the system's."""
    parent_urls: tuple[str, ...] = ()
    """Addresses below which parents may be, besides the child's own folder."""
    trust_times: bool = False
    """Where a server gives no ETag, size and time of the last change are taken for one."""
    deadline_s: float = DEADLINE_S
    speculation: float = 0.4
    """Bytes that are fetched beside what is asked for are unused up to this share of those used."""
    disk_cache: str | None = None
    disk_cache_size: int = 0
    disk_cache_needed: bool = True
    """Without it nothing is read of a server; otherwise, as while a predecessor has it, it is done without."""


LOCAL_ONLY = RemoteSettings()
"""What holds where nothing was said."""
