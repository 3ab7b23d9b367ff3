"""The daemon's command: parse, start, and turn any trouble into one line and a status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hexz.daemon.advice import advised
from hexz.daemon.detach import Readiness, Report, detach, fill_standard_descriptors
from hexz.daemon.status_and_stop import ask
from hexz.daemon.systemd import Notifier
from hexz.daemon.unit_files import hidden_from_services, unit_file
from hexz.errors import HexzError, UsageError
from hexz.installation import check_packages
from hexz.options.parser import parse_arguments
from hexz.printable import printable

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status (sysexits.h; 0 after a clean stop)."""
    readiness = Readiness()
    notifier: Notifier | None = None
    try:
        fill_standard_descriptors()
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        options = settings.options
        if options.status or options.stop:
            return ask(settings)
        check_packages()
        if options.print_unit:
            return _print_unit(options.print_unit)
        if options.daemon:
            if os.environ.get("LISTEN_FDS"):
                raise UsageError("--daemon does not go with socket activation: the service manager detaches already")
            outcome = detach()
            if isinstance(outcome, Report):
                return _tell(outcome)
            readiness = outcome
        notifier = Notifier()
        # Only now: what reads snapshots imports the packages that were just looked for.
        from hexz.assembly.serving import serve

        return serve(settings, readiness, notifier)
    except HexzError as error:
        message, status = advised(str(error)), error.exit_status
    except MemoryError:
        message, status = "out of memory", 71
    except OSError as error:
        message, status = f"{error.filename or 'system'}: {error.strerror or error}", 71
    except KeyboardInterrupt:
        return 130
    if readiness.detached:
        readiness.report(Report(status, [message]))
    else:
        print(f"hexz-serve: {printable(message)}", file=sys.stderr)
        notifier = notifier or Notifier()
        notifier.status(message)
        notifier.settle()
    return status


def _tell(report: Report) -> int:
    """Say in the process that was started what the daemon reported."""
    if report.status:
        print(f"hexz-serve: {printable(report.lines[0])}", file=sys.stderr)
    else:
        print("\n".join(map(printable, report.lines)), flush=True)
    return report.status


def _print_unit(kind: str) -> int:
    print(unit_file(kind), end="", flush=True)
    hidden = hidden_from_services(kind)
    if hidden is not None:
        remedy = "install it below /opt or /usr/local, or take --print-unit user"
        print(f"hexz-serve: warning: {hidden} is hidden from services of the system: {remedy}", file=sys.stderr)
    return 0
