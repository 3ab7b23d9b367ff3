"""The daemon's command: parse, wire the parts together, run, and turn any trouble into one line and a status."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from hexz.catalog import Catalog
from hexz.config import Settings, parse_arguments
from hexz.errors import HexzError
from hexz.secrets import read_password
from hexz.servers.base import Front, Listener, Service
from hexz.snapshot import new_context
from hexz.sources import find_sources
from hexz.units import format_size

__all__ = ["main"]

log = logging.getLogger("hexz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status (sysexits.h; 0 after a clean stop)."""
    try:
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        return _run(settings)
    except HexzError as error:
        return _fail(str(error), error.exit_status)
    except MemoryError:
        return _fail("out of memory", 71)
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", 71)
    except KeyboardInterrupt:
        return 130


def _fail(message: str, status: int) -> int:
    print(f"hexz-serve: {message}", file=sys.stderr)
    return status


def _run(settings: Settings) -> int:
    options = settings.options
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    catalog = _open_catalog(settings)
    if options.check:
        return _print_check(catalog)
    front = Front()
    _trap_signals(front)
    try:
        for protocol, addresses in settings.listen.items():
            service = _service(protocol, catalog, settings)
            for address in addresses:
                front.add(Listener.open(address, service, options.max_connections))
        sys.stdout.write("".join(f"listening {listener.url}\n" for listener in front.listeners))
        sys.stdout.flush()
        front.run()
    finally:
        front.drain(options.drain_timeout, hurry=_Stop.again)
        catalog.close()
        front.close()
    return 0


def _open_catalog(settings: Settings) -> Catalog:
    options = settings.options
    context = new_context(
        options.cache_size, read_password(options.password_file), tuple(map(os.path.abspath, options.parent_dir))
    )
    catalog = Catalog(context)
    for name, path in find_sources(settings.snapshots):
        catalog.add(name, path)
    return catalog


def _service(protocol: str, catalog: Catalog, settings: Settings) -> Service:
    # Imported here so that a host pays only for the protocols that it serves.
    from hexz.servers.tls import TlsContext

    options = settings.options
    tls = TlsContext(options.tls_cert, options.tls_key) if options.tls_cert else None
    if protocol == "nbd":
        from hexz.protocol.nbd.handshake import TlsMode
        from hexz.servers.nbd import NbdService

        mode = TlsMode(options.nbd_tls or ("required" if tls else "off"))
        return NbdService(catalog, options.nbd_pad, mode, tls)
    from hexz.access import AccessLog, Gate, Tokens, parse_rate_limit
    from hexz.servers.http import HttpService
    from hexz.servers.http_snapshots import CatalogApplication

    tokens = Tokens(options.token_file) if options.token_file else None
    limit = parse_rate_limit(options.rate_limit) if options.rate_limit else None
    access_log = AccessLog(options.access_log) if options.access_log else None
    application = CatalogApplication(catalog, options.max_range)
    return HttpService(application, Gate(tokens, limit), access_log, tls, options.cors)


def _print_check(catalog: Catalog) -> int:
    for name in catalog.names():
        with catalog.lease(name) as snapshot:
            streams = ", ".join(f"{stream.name} {format_size(stream.size)}" for stream in snapshot.streams.values())
            mark = " (default)" if name == catalog.default else ""
            print(f"{name}{mark}: {snapshot.path}: {snapshot.layout}, {streams or 'no streams'}")
    catalog.close()
    return 0


class _Stop:
    """How often the user asked to stop."""

    asked = 0

    @classmethod
    def again(cls) -> bool:
        return cls.asked > 1


def _trap_signals(front: Front) -> None:
    def stop(*_: object) -> None:
        _Stop.asked += 1
        front.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
