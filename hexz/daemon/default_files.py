"""Which names a detached daemon takes for its logs and its pid file."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import NamedTuple

from hexz.daemon.logs import LogFiles, candidate_folders
from hexz.daemon.pidfile import PidFile, facts_of, running_pid
from hexz.errors import AlreadyRunning, ConfigError, SystemFailure, UsageError

__all__ = ["TakenFiles", "default_pid_file", "take_files", "who_listens"]

STEM = "hexz-serve"


class TakenFiles(NamedTuple):
    """What was taken: pid files locked, output redirected; `notes` are lines for the user."""

    pid_files: list[PidFile]
    logs: LogFiles
    notes: list[str]


def take_files(pid_file: str | None, log_file: str | None, suffix: str) -> TakenFiles:
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
    if held:
        notes.append(f"pid file {' and '.join(file.path for file in held)}")
    else:
        notes.append(f"no folder for a pid file: --stop cannot find this daemon, pid {os.getpid()}")
    return TakenFiles(held, logs, notes)


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
                if name == STEM:
                    # The second name is for whoever asks by port; without it the first still serves.
                    with contextlib.suppress(AlreadyRunning, ConfigError):
                        held.append(PidFile(f"{folder}/{STEM}-{suffix}.pid"))
                return stem
    return None


def default_pid_file(port: int | None) -> str | None:
    """The pid file of the live daemon that serves `port`; without one, of that which has the plain name or is alone.

    None when there is no such daemon.  Raises: UsageError when several daemons could be meant.
    """
    folders = list(candidate_folders())
    for folder in folders:
        path = f"{folder}/{STEM}.pid" if port is None else f"{folder}/{STEM}-{port}.pid"
        if _alive(path):
            return path
    if port is not None:
        return None
    found = [path for folder in folders for path in glob.glob(f"{glob.escape(folder)}/{STEM}-*.pid") if _alive(path)]
    if len(found) > 1:
        raise UsageError("several daemons run: say which with --port or --pid-file")
    return found[0] if found else None


def who_listens(where: str) -> tuple[int, str] | None:
    """(pid, pid file) of the live daemon that said it listens at `where`, HOST:PORT."""
    for folder in candidate_folders():
        for path in sorted(glob.glob(f"{glob.escape(folder)}/{STEM}*.pid")):
            with contextlib.suppress(ConfigError, SystemFailure):
                pid = running_pid(path)
                urls = facts_of(path, pid).get("listening", []) if pid is not None else []
                if pid is not None and any(str(url).endswith(f"//{where}/") for url in urls):
                    return pid, path
    return None


def _alive(path: str) -> bool:
    # A stranger's file in a shared folder is not this user's daemon.
    with contextlib.suppress(ConfigError, SystemFailure):
        return running_pid(path) is not None
    return False
