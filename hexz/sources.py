"""Which snapshots the command line names: files, ``NAME=FILE`` and directories."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hexz.catalog import check_name
from hexz.errors import SnapshotNotFound, SnapshotUnreadable, UsageError

__all__ = ["SUFFIX", "find_sources", "name_of"]

SUFFIX = ".hxz"


def find_sources(specs: Sequence[str]) -> list[tuple[str, str]]:
    """(name, path) of every snapshot that `specs` name, in order.

    A directory stands for every ``*.hxz`` directly in it, sorted by name.
    Raises: UsageError for a name that comes twice; SnapshotNotFound for a missing
    file or a directory without snapshots; SnapshotUnreadable.
    """
    found: dict[str, str] = {}
    for spec in specs:
        for name, path in _expand(spec):
            if name in found and found[name] != path:
                raise UsageError(f"{path}: another snapshot is called {name!r} already: use NAME=FILE to rename one")
            found[check_name(name)] = path
    return list(found.items())


def _expand(spec: str) -> list[tuple[str, str]]:
    name, equals, path = spec.partition("=")
    if equals and name and "/" not in name and not os.path.exists(spec):
        return [(name, path)]
    if not os.path.isdir(spec):
        return [(name_of(spec), spec)]
    try:
        inside = sorted(entry for entry in os.listdir(spec) if entry.endswith(SUFFIX))
    except PermissionError:
        raise SnapshotUnreadable(spec, "permission denied") from None
    if not inside:
        raise SnapshotNotFound(spec, f"no {SUFFIX} file in this directory")
    return [(name_of(entry), os.path.join(spec, entry)) for entry in inside]


def name_of(path: str) -> str:
    """What the snapshot at `path` is called when nothing else is said."""
    base = os.path.basename(path)
    return base[: -len(SUFFIX)] if base.endswith(SUFFIX) and base != SUFFIX else base
