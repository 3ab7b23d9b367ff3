"""Stored bytes of remote files, kept on a local disk over restarts."""

from hexz.storage.diskcache.cache import DiskCache
from hexz.storage.diskcache.cachedfile import CachedFile

__all__ = ["CachedFile", "DiskCache"]
