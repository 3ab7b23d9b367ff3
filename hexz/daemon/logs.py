"""Where the log goes: standard error, the journal, or a detached daemon's files, which nobody else can redirect."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

from hexz.daemon.log_limits import LimitedHandler
from hexz.logfile import open_log
from hexz.printable import CONTROLS

__all__ = ["LogFiles", "candidate_folders", "set_up_logging"]

_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _Plain(logging.Formatter):
    """Text that came from a client or a file name can neither end the line nor move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(CONTROLS)


class _Journal(_Plain):
    """One record a line, with the priority that the journal understands and no time, which it adds itself."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\\n")
        return f"<{_PRIORITIES.get(record.levelname, 6)}>{text}"


class _Below(logging.Filter):
    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < self._level


def set_up_logging(level: str, split: bool) -> None:
    """Log to standard error; with `split`, what is below a warning goes to standard output.

    Either has a bound for the lines of one kind.
    """
    logging.raiseExceptions = False  # a full disk under the log must not become a traceback
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in list(root.handlers):
        root.removeHandler(handler)
    errors = LimitedHandler(sys.stderr)
    errors.setFormatter(_Journal("%(name)s: %(message)s") if _in_journal() else _Plain(_PLAIN))
    root.addHandler(errors)
    if split:
        errors.setLevel(logging.WARNING)
        notes = LimitedHandler(sys.stdout)
        notes.setFormatter(_Plain(_PLAIN))
        notes.addFilter(_Below(logging.WARNING))
        root.addHandler(notes)


def _in_journal() -> bool:
    """Standard error is the journal's stream (systemd.exec(5), $JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
        return bool(inode) and (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


def candidate_folders() -> Iterator[str]:
    """$XDG_RUNTIME_DIR, $TMPDIR, /tmp: those that are folders."""
    for folder in (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp"):
        if folder and os.path.isabs(folder) and os.path.isdir(folder):
            yield folder


class LogFiles:
    """Standard output and error in files, opened again by their names on `reopen`; None is /dev/null."""

    def __init__(self, out: str | None, err: str | None) -> None:
        """Redirect both.

        Raises: ConfigError.
        """
        self._paths = {1: out, 2: err}
        self.names = sorted({os.path.abspath(path) for path in (out, err) if path is not None})
        """The files, once each."""
        self.reopen()

    @staticmethod
    def check(*paths: str) -> None:
        """See that files could be opened.  Raises: ConfigError."""
        for path in paths:
            os.close(open_log(path))

    def reopen(self) -> None:
        """Open the files by their names and let descriptors 1 and 2 be them.

        Raises: ConfigError, and then the old files go on being used.
        """
        opened = {}
        for number, path in self._paths.items():
            opened[number] = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if path is None else open_log(path)
        sys.stdout.flush()
        for number, fd in opened.items():
            os.dup2(fd, number, inheritable=True)
            os.close(fd)
