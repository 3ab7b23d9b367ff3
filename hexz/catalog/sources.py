"""Which snapshots the command line names: files, ``NAME=FILE`` and directories."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from hexz.catalog.names import Source, check_name
from hexz.errors import SnapshotNotFound, SnapshotUnreadable, UsageError
from hexz.storage.remote import is_remote, public_name
from hexz.storage.remote.places import parse_place

__all__ = ["SUFFIX", "find_sources", "name_of"]

SUFFIX = ".hxz"


def find_sources(specs: Sequence[str]) -> list[Source]:
    """Every snapshot that `specs` name, in order.

    A directory stands for every ``*.hxz`` directly in it, sorted by name.  Who can put a file there decides over
    that file alone: one whose name cannot be used, or is that of another, comes with its `trouble`.
    Raises: UsageError when that is so of a file that is named itself, or an address is none; SnapshotNotFound for a
    missing file or a directory without snapshots; SnapshotUnreadable.
    """
    sources = [source for spec in specs for source in _expand(spec)]
    taken: dict[str, str] = {}
    for source in sorted(sources, key=lambda one: one.gathered):  # those named themselves have the first choice
        trouble = _trouble(source, taken)
        if not trouble:
            taken.setdefault(source.name, source.path)
        elif not source.gathered:
            raise UsageError(trouble)
    found: dict[tuple[str, str], Source] = {}
    for source in sources:
        gathered = source.gathered and found.get(source[:2], source).gathered
        found[source[:2]] = source._replace(gathered=gathered, trouble=_trouble(source, taken))
    return list(found.values())


def _trouble(source: Source, taken: Mapping[str, str]) -> str:
    """Why a source cannot have its name, for people; empty when it can."""
    if not source.name and is_remote(source.path):
        return f"{public_name(source.path)}: it does not end in a name: use NAME={public_name(source.path)}"
    if taken.get(source.name, source.path) != source.path:
        place = public_name(source.path)
        return f"{place}: another snapshot is called {source.name!r} already: use NAME=FILE to rename one"
    try:
        check_name(source.name)
    except UsageError as error:
        return f"{public_name(source.path)}: {error}"
    return ""


def _expand(spec: str) -> list[Source]:
    if is_remote(spec):
        parse_place(spec)
        return [Source(name_of(unquote(public_name(spec))), spec)]
    name, equals, path = spec.partition("=")
    if equals and name and "/" not in name and not os.path.exists(spec):
        if is_remote(path):
            parse_place(path)
        return [Source(name, path)]
    if not os.path.isdir(spec):
        return [Source(name_of(spec), spec)]
    try:
        inside = sorted(entry for entry in os.listdir(spec) if entry.endswith(SUFFIX))
    except PermissionError:
        raise SnapshotUnreadable(spec, "permission denied") from None
    if not inside:
        raise SnapshotNotFound(spec, f"no {SUFFIX} file in this directory")
    return [Source(name_of(entry), os.path.join(spec, entry), gathered=True) for entry in inside]


def name_of(path: str) -> str:
    """What the snapshot at `path` is called when nothing else is said."""
    base = os.path.basename(path)
    return base[: -len(SUFFIX)] if base.endswith(SUFFIX) and base != SUFFIX else base
