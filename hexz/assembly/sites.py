"""What each protocol serves, put together from the options: a function for each, and what they have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from hexz.catalog import Catalog
from hexz.daemon.running import Running
from hexz.errors import ConfigError
from hexz.options.values import Options
from hexz.servers.base import Listener, Site

if TYPE_CHECKING:
    from hexz.servers.http.access import AccessLog, RateLimit
    from hexz.servers.tls import Certificate, TlsContext

__all__ = ["Service", "Sites"]

# What a protocol needs is imported in its function, so that a host pays only for those that it serves.

HTTP_ALPN = ("http/1.1",)
"""What HTTP and S3 speak under TLS (RFC 9112): whoever would rather have HTTP/2 then falls back cleanly."""


class Service(NamedTuple):
    """What listens for a protocol, and what all of its listeners have in common."""

    server: type[Listener]
    site: Site


class SiteParts:
    """What sites are made of.  Several share one certificate and one access log, each made for the first of them."""

    def __init__(self, catalog: Catalog, options: Options, running: Running) -> None:
        self.catalog = catalog
        self.options = options
        self.running = running

    def tls(self, alpn: tuple[str, ...] = ()) -> TlsContext | None:
        """TLS for a protocol that goes by these names; None without a certificate.  Raises: ConfigError."""
        return self._certificate.context(alpn) if self._certificate is not None else None

    @cached_property
    def _certificate(self) -> Certificate | None:
        from hexz.servers.tls import Certificate

        options = self.options
        if not (options.tls_cert and options.tls_key):
            return None
        certificate = Certificate(options.tls_cert, options.tls_key, options.tls_client_ca)
        self.running.on_reload("certificate", certificate.reload)
        return certificate

    @cached_property
    def access_log(self) -> AccessLog | None:
        """Of HTTP and S3.  Raises: ConfigError."""
        from hexz.servers.http.access import AccessLog

        if not self.options.access_log:
            return None
        access_log = AccessLog(self.options.access_log)
        self.running.on_reload("access log", access_log.reopen)
        return access_log

    @property
    def limit(self) -> RateLimit | None:
        """What one client may use of HTTP, and as much of S3.  Raises: UsageError."""
        from hexz.servers.http.access import parse_rate_limit

        return parse_rate_limit(self.options.rate_limit) if self.options.rate_limit else None


def http_site(parts: SiteParts) -> Service:
    """Snapshots, and images where some can be registered.  Raises: ConfigError."""
    from hexz.images.registry import Registry
    from hexz.servers.http.access import Gate, Tokens
    from hexz.servers.http.routing import Router
    from hexz.servers.http.server import HttpServer
    from hexz.servers.http.site import HttpSite
    from hexz.servers.http.snapshots import CatalogApplication
    from hexz.servers.images.application import PREFIX, ImagesApplication

    options, running = parts.options, parts.running
    tls, limit, access_log = parts.tls(HTTP_ALPN), parts.limit, parts.access_log
    tokens = Tokens(options.token_file) if options.token_file else None
    if tokens is not None:
        running.on_reload("tokens", tokens.reload)
    registry = Registry(parts.catalog, options.images_dir, options.images_allow)
    running.on_end(registry.close)
    running.on_hand_over(registry.hand_over)
    snapshots = CatalogApplication(parts.catalog, options.max_range, lambda: running.serving)
    # oVirt's client speaks plain HTTP there, whatever it speaks elsewhere.
    local = os.path.abspath(options.http_socket) if options.http_socket and tls is None else None
    application = Router({PREFIX: ImagesApplication(registry, local)}, snapshots)
    gate = Gate(tokens, limit)
    metrics = parts.catalog.context.metrics
    return Service(HttpServer, HttpSite(application, gate, access_log, tls, options.cors, metrics=metrics))


def nbd_site(parts: SiteParts) -> Service:
    """Streams as exports.  Raises: ConfigError."""
    from hexz.protocol.nbd.handshake import TlsMode
    from hexz.servers.nbd.server import NbdServer
    from hexz.servers.nbd.site import NbdSite

    options, tls = parts.options, parts.tls()
    mode = TlsMode(options.nbd_tls or ("required" if tls else "off"))
    return Service(NbdServer, NbdSite(parts.catalog, options.nbd_pad, mode, tls))


def s3_site(parts: SiteParts) -> Service:
    """Snapshots as objects of buckets.  Raises: ConfigError."""
    from hexz.servers.http.access import Gate
    from hexz.servers.http.server import HttpServer
    from hexz.servers.http.site import HttpSite
    from hexz.servers.s3.access import KeyFile, S3Policy
    from hexz.servers.s3.answers import RULES
    from hexz.servers.s3.application import S3Application

    options = parts.options
    tls, limit, access_log = parts.tls(HTTP_ALPN), parts.limit, parts.access_log
    keys = KeyFile(options.s3_keys_file) if options.s3_keys_file else None
    if keys is not None:
        parts.running.on_reload("S3 keys", keys.reload)
    policy = S3Policy(Gate(None, limit), keys)
    application = S3Application(parts.catalog, keys, options.s3_domain)
    metrics = parts.catalog.context.metrics
    site = HttpSite(application, policy, access_log, tls, options.cors, "s3", RULES, metrics)
    return Service(HttpServer, site)


SITES: Mapping[str, Callable[[SiteParts], Service]] = {"http": http_site, "nbd": nbd_site, "s3": s3_site}


class Sites:
    """The sites by protocol, each made when it is first asked for: what nobody listens on is never made."""

    def __init__(self, catalog: Catalog, options: Options, running: Running) -> None:
        """Of `running` they learn when to read their files again, and when it is over."""
        self._parts = SiteParts(catalog, options, running)
        self._made: dict[str, Service] = {}

    def of(self, protocol: str) -> Service:
        """Raises: ConfigError, UsageError."""
        if protocol not in SITES:
            raise ConfigError(f"there is no protocol {protocol!r} here")
        if protocol not in self._made:
            self._made[protocol] = SITES[protocol](self._parts)
        return self._made[protocol]
