"""From settings to a daemon that can run: the catalog, the sites, the listeners, the control socket."""

from __future__ import annotations

import os
import socket
from functools import partial

from hexz.assembly.listeners import CONTROL_PLACES, fit_connections, listen, raise_descriptors, sort_passed
from hexz.assembly.sites import Sites
from hexz.catalog import Catalog
from hexz.catalog.recovery import Recovery
from hexz.catalog.sources import find_sources
from hexz.control.mounts import MountTable
from hexz.control.roots import Roots
from hexz.daemon.fd_store import FdStore
from hexz.daemon.lifecycle import Lifecycle
from hexz.daemon.running import Running
from hexz.daemon.systemd import Notifier
from hexz.errors import HexzError
from hexz.options.parser import Settings, access_of
from hexz.options.remote import remote_settings
from hexz.options.values import Options
from hexz.rights.secrets import CREDENTIALS, read_password, read_seal_key, unused_credentials
from hexz.servers.accept_loop import AcceptLoop
from hexz.servers.addresses import UnixAddress, place_of
from hexz.servers.base import Listener
from hexz.snapshot import new_context
from hexz.storage.sealed import SealPolicy, Seals

__all__ = ["assemble", "open_catalog"]


def open_catalog(settings: Settings) -> Catalog:
    """Open every snapshot that the command line names, but for a successor: it gets those of the other process.

    What cannot be opened of a directory is skipped.
    Raises: the SnapshotError of the first file that is named itself and cannot be opened; ConfigError, UsageError.
    """
    options = settings.options
    password = read_password(options.password_file)
    seals = SealPolicy(read_seal_key(options.seal_key_file), options.require_seal)
    folders = tuple(map(os.path.abspath, options.parent_dir))
    context = new_context(options.cache_size, password, folders, seals=seals, remote=remote_settings(options))
    context = context._replace(follow_parents=not options.no_parents, require_encrypted=options.require_encrypted)
    catalog = Catalog(context)
    catalog.require_origins = options.require_origin
    if not options.upgrade:
        catalog.open_all(find_sources(settings.options.snapshots))
    return catalog


def assemble(
    settings: Settings, catalog: Catalog, notifier: Notifier, passed: list[tuple[str, socket.socket]]
) -> Running:
    """Listen, on `passed` sockets where there are any, else on the addresses of `settings`.

    Raises: ListenError, ConfigError.
    """
    raise_descriptors()
    front = AcceptLoop()
    running = Running(front, catalog, notifier, partial(find_sources, settings.options.snapshots))
    options = settings.options
    access = access_of(options)
    most = fit_connections(options.max_connections, len(passed) or sum(map(len, settings.listen.values())))
    sites = Sites(catalog, options, running)

    def listener_on(protocol: str, sock: socket.socket, own_path: str | None, inode: int) -> Listener:
        place = place_of(sock, own_path)
        grant = access.grant(protocol, place)
        server, site = sites.of(protocol)
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
    _begin_warming(options, catalog, running)
    recovery = Recovery(catalog)
    running.on_recovery(recovery.begin)
    running.on_end(recovery.end)
    recovery.begin()
    catalog.context.metrics.listeners = front.figures
    roots = Roots(options.control_root, lambda: [source.path for source in find_sources(settings.options.snapshots)])
    mounts = MountTable(catalog, roots, catalog.context.metrics.events.add)
    lifecycle = Lifecycle(front, mounts, listener_on, options.supervisor, options.upgrade)
    try:
        if not options.upgrade:
            kept = FdStore(notifier)
            activated = sort_passed(passed, settings, kept)
            for protocol in [protocol for protocol, _ in activated] or settings.listen:
                sites.of(protocol)  # what is wrong with its settings is told before anything listens
            for protocol, listener in listen(settings, notifier, activated, kept, listener_on):
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


def _begin_warming(options: Options, catalog: Catalog, running: Running) -> None:
    """Fetch ahead what the command line asks for.  Raises: ConfigError for a list that cannot be read."""
    if not options.prefetch and not options.fill:
        return
    from hexz.catalog.warming import Warming
    from hexz.tools.prefetch import read_lists

    warming = Warming(read_lists(options.prefetch), options.fill, options.fetch_rate)
    catalog.when_opened = warming.begin
    running.on_end(warming.end)
    for one in catalog.served():
        warming.begin(one.snapshot)


def _reload_seal_key(seals: Seals, path: str) -> None:
    """Raises: ConfigError, and then the old key stays."""
    seals.change_key(read_seal_key(path))


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
    from hexz.servers.control.application import ControlApplication, DaemonFacts
    from hexz.servers.control.server import ControlServer, ControlSite
    from hexz.servers.http.snapshots import CatalogApplication

    options = settings.options
    facts = DaemonFacts(options.id, options.supervisor, running.facts, running.status)
    shared = CatalogApplication(catalog, 0, lambda: running.serving)
    application = ControlApplication(
        lifecycle, mounts, BlobTable(catalog, roots), ControlFigures(catalog, mounts), facts, shared
    )
    front = AcceptLoop()
    address = UnixAddress(path, options.control_mode)
    front.add(ControlServer.open(address, ControlSite(application, options.control_uid), CONTROL_PLACES))
    return front
