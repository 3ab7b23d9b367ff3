"""Lists over HTTP, a page at a time: snapshots, and what is in a folder of an archive.

A page has `limit` entries at most; its ``next`` is what to give as ``after`` for the page behind it, null at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from hexz.catalog import Catalog
from hexz.errors import NoSuchSnapshot, StorageError
from hexz.protocol.http.errors import RequestError
from hexz.protocol.pages import MAX_ENTRIES, list_page
from hexz.servers.http.objects import ARCHIVE_FOLDER, Archive
from hexz.snapshot import Snapshot
from hexz.units import parse_number

__all__ = ["Listed", "list_folder", "list_snapshots", "number_of", "parse_limit"]

Query = Mapping[str, Sequence[str]]


class Listed(NamedTuple):
    """One page: its entries, and the name behind which the next one begins, None at the end."""

    entries: list[dict[str, Any]]
    next: str | None


def number_of(query: Query, key: str, default: int) -> int:
    """The value of `key`, a number in decimal digits.  Raises: RequestError (400)."""
    text = query.get(key, [""])[0]
    if not text:
        return default
    number = parse_number(text, 19)
    if number is None:
        raise RequestError(400, f"{key} is not a number")
    return number


def parse_limit(query: Query) -> int:
    """How many entries are wanted: more than `MAX_ENTRIES` are that many.  Raises: RequestError (400)."""
    limit = min(number_of(query, "limit", MAX_ENTRIES), MAX_ENTRIES)
    if not limit:
        raise RequestError(400, "limit is at least 1")
    return limit


def list_snapshots(catalog: Catalog, query: Query) -> Listed:
    """A page of the snapshots in the order in which they came.

    Raises: RequestError (400), also when the page's predecessor ended with a snapshot that has gone.
    """
    names = catalog.names()
    start, limit = 0, parse_limit(query)
    after = query.get("after", [""])[0]
    if after:
        if after not in names:
            raise RequestError(400, "the snapshot that after= names is not served any more: begin again")
        start = names.index(after) + 1
    page = names[start : start + limit]
    entries = []
    for name in page:
        try:
            lease = catalog.lease(name)
        except NoSuchSnapshot:
            continue  # taken away a moment ago
        with lease as snapshot:
            base = f"/snapshots/{quote(name, safe='')}"
            archive = _is_archive(snapshot)  # first, since it may be the one that finds the file changed
            entries.append(
                {
                    "name": name,
                    "default": name == catalog.default,
                    "file": f"/{quote(name, safe='')}.hxz",
                    "file_size": snapshot.file_size,
                    "compression": snapshot.header.compression.name.lower(),
                    "thin": snapshot.thin,
                    "encrypted": snapshot.encrypted,
                    "changed": snapshot.changed,
                    "archive": archive,
                    "info": f"{base}/info",
                    "streams": {
                        stream.name: {"size": stream.size, "etag": stream.etag, "url": f"{base}/{stream.name}"}
                        for stream in snapshot.streams.values()
                    },
                }
            )
    return Listed(entries, page[-1] if start + limit < len(names) else None)


def _is_archive(snapshot: Snapshot) -> bool | None:
    """Whether it lists files; None where its file cannot be read, which keeps nobody from the list of the others."""
    try:
        return snapshot.lists_files
    except StorageError:
        return None


def list_folder(archive: Archive, folder: str, query: Query) -> Listed:
    """A page of the files and folders directly in `folder` (empty, or ending in a slash), by name.

    Raises: RequestError (400).
    """
    prefix = f"{ARCHIVE_FOLDER}{folder}"
    after = query.get("after", [""])[0]
    page = list_page(archive.keys, prefix, "/", f"{prefix}{after}" if after else "", parse_limit(query))
    entries: list[dict[str, Any]] = []
    for key in sorted([*page.keys, *page.prefixes]):
        name = key[len(prefix) :]
        if name.endswith("/"):
            entries.append({"name": name, "type": "folder"})
        else:
            file = archive.files[key]
            entries.append({"name": name, "type": "file", "size": file.size, "mode": file.mode, "mtime": file.mtime})
    return Listed(entries, page.last[len(prefix) :] if page.truncated else None)
