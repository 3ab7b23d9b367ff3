"""From settings to the end of the daemon: open, listen, say so, serve, put everything away."""

from __future__ import annotations

import logging
import os

from hexz import __version__
from hexz.assembly.check import describe_listeners
from hexz.assembly.daemon import assemble, open_catalog
from hexz.catalog import Catalog
from hexz.daemon.default_files import take_files, who_listens
from hexz.daemon.detach import Readiness, Report
from hexz.daemon.heap import share_heap
from hexz.daemon.logs import set_up_logging
from hexz.daemon.pidfile import PidFile
from hexz.daemon.running import Running
from hexz.daemon.systemd import Notifier, take_passed_sockets
from hexz.errors import ListenError
from hexz.options.parser import Settings
from hexz.printable import printable
from hexz.units import format_size

__all__ = ["serve"]

log = logging.getLogger("hexz.daemon")

NAMES_SHOWN = 8
"""Snapshots named in the first line of the log; the others are counted."""


def serve(settings: Settings, readiness: Readiness, notifier: Notifier) -> int:
    """Serve until told to stop; returns the exit status.  `readiness` and `notifier` learn when every listener answers.

    Raises: HexzError, OSError and MemoryError when it cannot begin.
    """
    options = settings.options
    set_up_logging(options.log_level, split=readiness.detached)
    share_heap()
    held: list[PidFile] = []
    catalog: Catalog | None = None
    running: Running | None = None
    try:
        passed = take_passed_sockets()
        catalog = open_catalog(settings)
        if options.check:
            return _print_check(catalog, describe_listeners(settings, passed))
        try:
            running = assemble(settings, catalog, notifier, passed)
        except ListenError as error:
            raise _explained(error) from None
        notes: list[str] = []
        logs: list[str] = []
        if readiness.detached:
            places = take_files(options.pid_file, options.log_file, _suffix(running))
            held, notes, logs = places.pid_files, places.notes, places.logs.names
            running.on_reload("logs", places.logs.reopen)
            set_up_logging(options.log_level, split=True)
        elif options.pid_file:
            held = [PidFile(options.pid_file)]
        _announce(running, catalog, held, logs)
        running.trap_signals()
        running.say_warnings()
        readiness.report(Report(0, [*(f"listening {url}" for url in running.urls()), *notes]))
        notifier.ready(running.summary())
        running.run(options.drain_timeout)
    finally:
        if running is not None:
            running.abandon()
        for pid_file in held:
            pid_file.retire()
        if catalog is not None:
            catalog.close()
    return 0


def _explained(error: ListenError) -> ListenError:
    """The same, saying which daemon it is that has the address, where its pid file tells."""
    found = who_listens(error.where) if error.taken else None
    if found is None:
        return error
    pid, path = found
    remedy = f"a daemon is running there already, pid {pid}: end it with hexz-serve --stop --pid-file {path}"
    return ListenError(error.where, error.reason, remedy, taken=True)


def _announce(running: Running, catalog: Catalog, held: list[PidFile], logs: list[str]) -> None:
    """Say in the log what begins here and where everything is, and beside the pid files for --status."""
    names = catalog.names()
    shown = ", ".join(names[:NAMES_SHOWN]) + (" and others" if len(names) > NAMES_SHOWN else "")
    counted = "1 snapshot" if len(names) == 1 else f"{len(names)} snapshots"
    paths = [file.path for file in held]
    urls = running.urls()
    log.info(
        "hexz-serve %s, pid %d: %s (%s) at %s; pid file %s; logging to %s",
        __version__, os.getpid(), counted, shown or "none yet", ", ".join(urls) or "no address yet",
        " and ".join(paths) or "none", " and ".join(logs) or "standard error",
    )  # fmt: skip
    for file in held:
        file.tell({"version": __version__, "listening": urls, "pid_files": paths, "logs": logs})


def _suffix(running: Running) -> str:
    """What tells this daemon's files from another's: the port, or the socket's name."""
    url = running.urls()[0].rstrip("/")
    return url.rpartition(":")[2] if url.rpartition(":")[2].isdigit() else str(os.getpid())


def _print_check(catalog: Catalog, listeners: list[str]) -> int:
    for name in catalog.names():
        with catalog.lease(name) as snapshot:
            streams = ", ".join(f"{stream.name} {format_size(stream.size)}" for stream in snapshot.streams.values())
            mark = " (default)" if name == catalog.default else ""
            seal = snapshot.storage.seal
            sealed = f", sealed ({seal.kind})" if seal is not None else ""
            line = f"{name}{mark}: {snapshot.path}: {snapshot.layout}, {streams or 'no streams'}{sealed}"
            print(printable(line))
    warnings = [f"warning: {line}" for line in catalog.take_warnings()]
    for line in [*warnings, *(f"skipped: {reason}" for reason in catalog.skipped.values()), *listeners]:
        print(printable(line))
    return 0
