"""All servers that snapshots of this process are read from, and what they share."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from hexz.errors import ConfigError, CredentialsUnavailable, OriginUnavailable, UsageError
from hexz.storage.diskcache.cache import DiskCache
from hexz.storage.remote.file import RemoteFile
from hexz.storage.remote.keys.credentials import Credentials
from hexz.storage.remote.places import AMAZON, DEFAULT_REGION, OriginName, StoreNames, parse_place, public_name
from hexz.storage.remote.server import Server, ServerAccess
from hexz.storage.remote.settings import RemoteSettings
from hexz.storage.remote.table import Memory
from hexz.storage.remote.tokens import HostTokens
from hexz.storage.remote.transport import clock

__all__ = ["Stores"]

log = logging.getLogger("hexz.storage")

SMALLEST_MEMORY = 16 << 20
LARGEST_MEMORY = 128 << 20
REST_S = 5.0
"""So long after a server did not answer nothing else is opened on it: each try would take its whole time."""
MAX_SERVERS = 256
"""Servers that snapshots are opened from."""
MAX_LED_TO = 64
"""Servers that redirects led to and that are remembered, with their connections."""


class Stores:
    """Opens remote files; thread-safe."""

    def __init__(self, settings: RemoteSettings, memory: int) -> None:
        """`memory` bounds what is kept of all files, in bytes.  Raises: ConfigError, UsageError."""
        self.settings = settings
        self._memory = Memory(min(max(memory, SMALLEST_MEMORY), LARGEST_MEMORY))
        credentials = Credentials(settings.credentials_file, settings.profile, settings.instance_credentials)
        self._credentials = credentials
        tokens = HostTokens(settings.token_file)
        self._access = ServerAccess(_tls(settings.ca_file), tokens.of, credentials)
        self.disk = _disk_cache(settings)
        self._failed: dict[OriginName, float] = {}
        """When a server last failed to open something; entries come and go, at most one for each server."""
        self._lock = threading.Lock()
        self._servers: dict[OriginName, Server] = {}  # guarded by _lock
        self._led_to: OrderedDict[OriginName, Server] = OrderedDict()  # guarded by _lock

    def open(self, address: str) -> RemoteFile:
        """The object at `address`.

        Raises: UsageError, SnapshotNotFound, SnapshotUnreadable, OriginUnavailable, ConfigError.
        """
        try:
            place = parse_place(address, self._names() if address[:5].lower() == "s3://" else AMAZON)
        except CredentialsUnavailable as error:
            raise OriginUnavailable(public_name(address), str(error)) from None
        server = self.server(place.origin)
        if place.signed:
            server.sign_for(self._names().region)
        failed = self._failed.get(place.origin)
        if failed is not None and clock() - failed < REST_S:
            raise OriginUnavailable(place.name, f"{place.origin.authority} did not answer a moment ago")
        try:
            file = RemoteFile(place, server, self._memory, self.settings, self.disk)
        except OriginUnavailable as error:
            if error.silent:
                self._failed[place.origin] = clock()
            raise
        self._failed.pop(place.origin, None)
        return file

    def _names(self) -> StoreNames:
        """What ``s3://`` means; what the command line does not say, the environment may.  Raises: ConfigError."""
        names = self.settings.stores
        endpoint = names.endpoint or self._credentials.endpoint() or ""
        return names._replace(endpoint=endpoint, region=names.region or self._credentials.region() or DEFAULT_REGION)

    def server(self, origin: OriginName) -> Server:
        """The server, the same one every time.  Raises: UsageError."""
        with self._lock:
            server = self._servers.get(origin)
            if server is None:
                if len(self._servers) >= MAX_SERVERS:
                    raise UsageError(f"snapshots from more than {MAX_SERVERS} servers")
                server = self._servers[origin] = Server(origin, self._access, self.led_to)
            return server

    def led_to(self, origin: OriginName) -> Server:
        """The server, for who was redirected there: any number of those come and go."""
        with self._lock:
            server = self._servers.get(origin) or self._led_to.pop(origin, None)
            if server is None:
                server = Server(origin, self._access, self.led_to)
            left = None
            if origin not in self._servers:
                self._led_to[origin] = server
                left = self._led_to.popitem(last=False)[1] if len(self._led_to) > MAX_LED_TO else None
        if left is not None:
            left.close()
        return server

    def servers(self) -> list[Server]:
        """Every server that was asked for something."""
        with self._lock:
            return [*self._servers.values(), *self._led_to.values()]

    def close(self) -> None:
        """Close every connection that is kept, and give the disk cache back."""
        for server in self.servers():
            server.close()
        if self.disk is not None:
            self.disk.close()


def _disk_cache(settings: RemoteSettings) -> DiskCache | None:
    """Raises: ConfigError."""
    if settings.disk_cache is None:
        return None
    try:
        return DiskCache(settings.disk_cache, settings.disk_cache_size)
    except ConfigError as error:
        if settings.disk_cache_needed:
            raise
        log.warning("no disk cache until the next start: %s", error)
        return None


def _tls(ca_file: str | None) -> Callable[[], ssl.SSLContext]:
    """How certificates are checked.  The system's are read when a server first has one: that takes 25 ms.

    Raises: ConfigError, at once, when `ca_file` cannot be used.
    """
    if not ca_file:
        return lru_cache(maxsize=1)(ssl.create_default_context)
    try:
        context = ssl.create_default_context(cafile=os.path.abspath(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca_file}: no certificates can be read from it: {error.strerror or error}") from None
    return lambda: context
