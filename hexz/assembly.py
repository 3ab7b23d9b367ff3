"""From settings to a daemon that can run: the catalog, the services, the listeners."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from hexz.catalog import Catalog
from hexz.config import DEFAULT_PORTS, Settings, access_of
from hexz.control.mounts import MountTable
from hexz.control.roots import Roots
from hexz.daemon.fd_store import FdStore
from hexz.daemon.lifecycle import Lifecycle, MakeListener
from hexz.daemon.running import Running
from hexz.daemon.systemd import Notifier
from hexz.errors import ConfigError, HexzError
from hexz.exposure import Place, Reach, tcp_place
from hexz.options import Options
from hexz.sealed import SealPolicy, Seals
from hexz.secrets import CREDENTIALS, read_password, read_seal_key, unused_credentials
from hexz.servers.accept_loop import AcceptLoop
from hexz.servers.addresses import Address, TcpAddress, UnixAddress, open_socket, place_of, url_at, url_of
from hexz.servers.base import Listener, Site
from hexz.servers.spare import SPARE_PLACES
from hexz.snapshot import new_context
from hexz.sources import find_sources

if TYPE_CHECKING:
    from hexz.access import AccessLog, RateLimit
    from hexz.servers.tls import TlsContext

__all__ = ["assemble", "describe_listeners", "open_catalog"]

log = logging.getLogger("hexz")

Served = tuple["type[Listener]", Site]
"""What listens for a protocol, and what all of its listeners have in common."""
RESERVED_DESCRIPTORS = 64
"""Descriptors that connections leave to snapshots to be opened, logs, and what reads need."""
CONTROL_PLACES = 32
"""Connections that the control socket may have."""
HTTP_ALPN = ("http/1.1",)
"""What HTTP and S3 speak under TLS (RFC 9112): whoever would rather have HTTP/2 then falls back cleanly."""


def open_catalog(settings: Settings) -> Catalog:
    """Open every snapshot that the command line names, but for a successor: it gets those of the other process.

    What cannot be opened of a directory is skipped.
    Raises: the SnapshotError of the first file that is named itself and cannot be opened; ConfigError, UsageError.
    """
    options = settings.options
    password = read_password(options.password_file)
    seals = SealPolicy(read_seal_key(options.seal_key_file), options.require_seal)
    folders = tuple(map(os.path.abspath, options.parent_dir))
    context = new_context(options.cache_size, password, folders, seals=seals)
    context = context._replace(follow_parents=not options.no_parents, require_encrypted=options.require_encrypted)
    catalog = Catalog(context)
    if not options.upgrade:
        catalog.open_all(find_sources(settings.options.snapshots))
    return catalog


def assemble(
    settings: Settings, catalog: Catalog, notifier: Notifier, passed: list[tuple[str, socket.socket]]
) -> Running:
    """Listen, on `passed` sockets where there are any, else on the addresses of `settings`.

    Raises: ListenError, ConfigError.
    """
    _raise_descriptors()
    front = AcceptLoop()
    running = Running(front, catalog, notifier, partial(find_sources, settings.options.snapshots))
    options = settings.options
    access = access_of(options)
    most = _fit_connections(options.max_connections, len(passed) or sum(map(len, settings.listen.values())))
    sites: dict[str, Served] = {}

    def served(protocol: str) -> Served:
        if protocol not in sites:
            sites[protocol] = _served(protocol, catalog, settings, running)
        return sites[protocol]

    def listener_on(protocol: str, sock: socket.socket, own_path: str | None, inode: int) -> Listener:
        place = place_of(sock, own_path)
        grant = access.grant(protocol, place)
        server, site = served(protocol)
        listener = server(sock, site, most, own_path, inode=inode, grant=grant)
        for line in access.warnings(listener.url, protocol, place):
            running.warn(line)
        return listener

    if options.seal_key_file:
        running.on_reload("seal key", partial(_reload_seal_key, catalog.context.seals, options.seal_key_file))
    for line in catalog.take_warnings():
        running.warn(line)
    for line in catalog.skipped.values():
        running.warn(f"skipped: {line}")
    if catalog.skipped and not len(catalog):
        running.warn(f"no snapshot is served: none of the {len(catalog.skipped)} files can be")
    catalog.context.metrics.listeners = front.figures
    roots = Roots(options.control_root, lambda: [source.path for source in find_sources(settings.options.snapshots)])
    mounts = MountTable(catalog, roots, catalog.context.metrics.events.add)
    lifecycle = Lifecycle(front, mounts, listener_on, options.supervisor, options.upgrade)
    try:
        if not options.upgrade:
            for protocol in settings.listen:
                served(protocol)  # what is wrong with its settings is told before anything listens
            for protocol, listener in _listeners(settings, notifier, passed, listener_on):
                lifecycle.add(protocol, listener)
        for name in unused_credentials(value for value in options if isinstance(value, str)):
            running.warn(f"the credential {name!r} means nothing here: {', '.join(CREDENTIALS)} do")
        control = (
            _control(options.control, settings, lifecycle, mounts, roots, running, catalog) if options.control else None
        )
    except HexzError:
        running.abandon()
        raise
    running.live_by(lifecycle, control)
    return running


def _reload_seal_key(seals: Seals, path: str) -> None:
    """Raises: ConfigError, and then the old key stays."""
    seals.change_key(read_seal_key(path))


def describe_listeners(settings: Settings, passed: list[tuple[str, socket.socket]]) -> list[str]:
    """A line for each listener that `assemble` would make: where it is, and who may read and write there.

    Raises: UsageError and ConfigError, as `assemble` would.
    """
    _check_secrets(settings.options)
    access = access_of(settings.options)
    activated = _sort(passed, settings, FdStore(Notifier()))
    places = [(url_of(protocol, sock), protocol, place_of(sock)) for protocol, sock in activated]
    if not activated:
        listen = [(protocol, address) for protocol, addresses in settings.listen.items() for address in addresses]
        places = [(url_at(protocol, address), protocol, _place_at(address)) for protocol, address in listen]
    return [f"{url} {access.describe(protocol, place)}" for url, protocol, place in places]


def _check_secrets(options: Options) -> None:
    """Raises: ConfigError when a file of tokens or keys cannot be used."""
    from hexz.access import Tokens
    from hexz.servers.s3.access import KeyFile

    if options.token_file:
        Tokens(options.token_file)
    if options.s3_keys_file:
        KeyFile(options.s3_keys_file)


def _place_at(address: Address) -> Place:
    if isinstance(address, TcpAddress):
        return tcp_place(address.host, f"--bind {address.host}")
    return Place(Reach.SOCKET, address.path)


def _raise_descriptors() -> None:
    """Use as many descriptors as the system lets this process have, rather than as few as it begins with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # more than the kernel's own limit: the old one stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fit_connections(wanted: int, listeners: int) -> int:
    """How many connections a listener may have, so that descriptors are left for everything else."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    used = len(os.listdir("/proc/self/fd"))
    reserved = min(RESERVED_DESCRIPTORS + CONTROL_PLACES + SPARE_PLACES, limit // 2)
    most = max((limit - used - reserved) // max(listeners, 1), 1)
    if most < wanted:
        log.warning(
            "--max-connections %d: %d for each listener, because this process may have %d descriptors",
            wanted,
            most,
            limit,
        )
    return min(wanted, most)


def _listeners(
    settings: Settings,
    notifier: Notifier,
    passed: list[tuple[str, socket.socket]],
    listener_on: MakeListener,
) -> Iterator[tuple[str, Listener]]:
    """The listeners, with their protocols.  Raises: ListenError, ConfigError."""
    kept = FdStore(notifier)
    activated = _sort(passed, settings, kept)
    if activated:
        for protocol, sock in activated:
            listener = listener_on(protocol, sock, None, 0)
            listener.shared = True
            yield protocol, listener
        return
    places = [
        (protocol, number, address, kept.take(protocol, number, address))
        for protocol, addresses in settings.listen.items()
        for number, address in enumerate(addresses)
    ]
    kept.drop_rest()
    for protocol, number, address, taken in places:
        own_path = address.path if isinstance(address, UnixAddress) else None
        listener = listener_on(protocol, taken or open_socket(address), own_path, 0)
        listener.shared = notifier.managed
        kept.keep(protocol, number, address, listener.socket)
        yield protocol, listener


def _control(
    path: str,
    settings: Settings,
    lifecycle: Lifecycle,
    mounts: MountTable,
    roots: Roots,
    running: Running,
    catalog: Catalog,
) -> AcceptLoop:
    """The control socket, with an accept loop of its own.  Raises: ListenError."""
    from hexz.control.blobs import BlobTable
    from hexz.control.figures import ControlFigures
    from hexz.servers.control.application import ControlApplication, Facts
    from hexz.servers.control.server import ControlServer, ControlSite
    from hexz.servers.http.snapshots import CatalogApplication

    options = settings.options
    facts = Facts(options.id, options.supervisor, running.facts, running.status)
    shared = CatalogApplication(catalog, 0, lambda: running.serving)
    application = ControlApplication(
        lifecycle, mounts, BlobTable(catalog, roots), ControlFigures(catalog, mounts), facts, shared
    )
    front = AcceptLoop()
    address = UnixAddress(path, options.control_mode)
    front.add(ControlServer.open(address, ControlSite(application, options.control_uid), CONTROL_PLACES))
    return front


def _sort(
    passed: list[tuple[str, socket.socket]], settings: Settings, kept: FdStore
) -> list[tuple[str, socket.socket]]:
    """Sockets of socket units, by protocol; those of our own that the manager kept over a restart go to `kept`."""
    activated: list[tuple[str, socket.socket]] = []
    for name, sock in passed:
        if name in DEFAULT_PORTS:
            activated.append((name, sock))
        elif name in ("", "unknown") and len(settings.listen) == 1:
            activated.append((next(iter(settings.listen)), sock))
        elif not kept.add(name, sock):
            known = " or ".join(DEFAULT_PORTS)
            raise ConfigError(f"a socket called {name!r} was passed: FileDescriptorName= must be {known}")
    return activated


def _served(protocol: str, catalog: Catalog, settings: Settings, running: Running) -> Served:
    if protocol not in DEFAULT_PORTS:
        raise ConfigError(f"there is no protocol {protocol!r} here")
    # Imported here so that a host pays only for the protocols that it serves.
    from hexz.servers.tls import TlsContext

    options = settings.options
    spoken = () if protocol == "nbd" else HTTP_ALPN
    tls = None
    if options.tls_cert and options.tls_key:
        tls = TlsContext(options.tls_cert, options.tls_key, spoken, options.tls_client_ca)
    if tls is not None:
        running.on_reload("certificate", tls.reload)
    if protocol == "nbd":
        from hexz.protocol.nbd.handshake import TlsMode
        from hexz.servers.nbd.server import NbdServer, NbdSite

        mode = TlsMode(options.nbd_tls or ("required" if tls else "off"))
        return NbdServer, NbdSite(catalog, options.nbd_pad, mode, tls)
    from hexz.access import AccessLog, parse_rate_limit

    limit = parse_rate_limit(options.rate_limit) if options.rate_limit else None
    access_log = AccessLog(options.access_log) if options.access_log else None
    if access_log is not None:
        running.on_reload("access log", access_log.reopen)
    serving = _Serving(catalog, options, running, tls, limit, access_log)
    return _s3(serving) if protocol == "s3" else _http(serving)


class _Serving(NamedTuple):
    """What the services over HTTP have in common."""

    catalog: Catalog
    options: Options
    running: Running
    tls: TlsContext | None
    limit: RateLimit | None
    access_log: AccessLog | None


def _http(serving: _Serving) -> Served:
    from hexz.access import Gate, Tokens
    from hexz.images.registry import Registry
    from hexz.servers.http.server import HttpServer, HttpSite
    from hexz.servers.http.snapshots import CatalogApplication
    from hexz.servers.images.application import ImagesApplication

    options, running = serving.options, serving.running
    tokens = Tokens(options.token_file) if options.token_file else None
    if tokens is not None:
        running.on_reload("tokens", tokens.reload)
    registry = Registry(serving.catalog, options.images_dir, options.images_allow)
    running.on_end(registry.close)
    running.on_hand_over(registry.hand_over)
    snapshots = CatalogApplication(serving.catalog, options.max_range, lambda: running.serving)
    # oVirt's client speaks plain HTTP there, whatever it speaks elsewhere.
    local = os.path.abspath(options.http_socket) if options.http_socket and serving.tls is None else None
    application = ImagesApplication(registry, snapshots, local)
    gate = Gate(tokens, serving.limit)
    metrics = serving.catalog.context.metrics
    return HttpServer, HttpSite(application, gate, serving.access_log, serving.tls, options.cors, metrics=metrics)


def _s3(serving: _Serving) -> Served:
    from hexz.access import Gate
    from hexz.servers.http.server import HttpServer, HttpSite
    from hexz.servers.s3.access import KeyFile, S3Policy
    from hexz.servers.s3.answers import RULES
    from hexz.servers.s3.application import S3Application

    options = serving.options
    keys = KeyFile(options.s3_keys_file) if options.s3_keys_file else None
    if keys is not None:
        serving.running.on_reload("S3 keys", keys.reload)
    policy = S3Policy(Gate(None, serving.limit), keys)
    application = S3Application(serving.catalog, keys, options.s3_domain)
    metrics = serving.catalog.context.metrics
    return HttpServer, HttpSite(
        application, policy, serving.access_log, serving.tls, options.cors, "s3", RULES, metrics
    )
