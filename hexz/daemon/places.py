"""Which names a detached daemon takes for its logs and its pid file."""

from __future__ import annotations

from typing import NamedTuple

from hexz.daemon.logs import LogFiles, candidate_folders
from hexz.daemon.pidfile import AlreadyRunning, PidFile, running_pid
from hexz.errors import ConfigError

__all__ = ["Places", "default_pid_file", "take_places"]

STEM = "hexz-serve"


class Places(NamedTuple):
    """What was taken: pid files locked, output redirected; `notes` are lines for the user."""

    pid_files: list[PidFile]
    logs: LogFiles
    notes: list[str]


def take_places(pid_file: str | None, log_file: str | None, suffix: str) -> Places:
    """Take the pid file and open the logs.

    Without a `pid_file` or a `log_file` the names are ``hexz-serve.*`` in the first folder
    of `candidate_folders` that works, ``hexz-serve-SUFFIX.*`` where a live daemon holds those,
    and nothing (/dev/null) when there is no such folder.
    Raises: AlreadyRunning and ConfigError for names that were asked for.
    """
    notes: list[str] = []
    held = [PidFile(pid_file)] if pid_file is not None else []
    try:
        stem = _take_default(held, suffix, notes) if pid_file is None or log_file is None else None
        logs = _open_logs(log_file, stem, notes)
    except ConfigError:
        for file in held:
            file.remove()
        raise
    return Places(held, logs, notes)


def _open_logs(log_file: str | None, stem: str | None, notes: list[str]) -> LogFiles:
    if log_file is not None:
        notes.append(f"logging to {log_file}")
        return LogFiles(log_file, log_file)
    if stem is not None:
        notes.append(f"logging to {stem}.log and {stem}.err")
        return LogFiles(f"{stem}.log", f"{stem}.err")
    notes.append("no folder for logs: they are thrown away")
    return LogFiles(None, None)


def _take_default(held: list[PidFile], suffix: str, notes: list[str]) -> str | None:
    """The path without its ending of names that nobody else holds; the pid file of that name goes to `held`."""
    for folder in candidate_folders():
        for name in (STEM, f"{STEM}-{suffix}"):
            stem = f"{folder}/{name}"
            own: PidFile | None = None
            try:
                own = PidFile(f"{stem}.pid")
                LogFiles.check(f"{stem}.log", f"{stem}.err")
            except AlreadyRunning as error:
                notes.append(f"{error}; taking other names")
            except ConfigError as error:
                notes.append(str(error))
                if own is not None:
                    own.remove()
            else:
                held.append(own)
                return stem
    return None


def default_pid_file(port: int | None) -> str:
    """The pid file that a daemon started without --pid-file on `port` would hold, the live one first."""
    names = [STEM] if port is None else [f"{STEM}-{port}", STEM]
    paths = [f"{folder}/{name}.pid" for name in names for folder in candidate_folders()]
    for path in paths:
        if running_pid(path) is not None:
            return path
    return paths[0] if paths else f"/tmp/{STEM}.pid"
