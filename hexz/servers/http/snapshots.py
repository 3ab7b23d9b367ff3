"""The routes of the catalog: streams, facts, extents, archived files, and the snapshot files themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote

from hexz.catalog import Catalog, Lease
from hexz.errors import NoSuchSnapshot
from hexz.format.metadata import ArchivedFile
from hexz.metrics import Purpose
from hexz.metrics.process import process_figures
from hexz.metrics.prometheus import CONTENT_TYPE, exposition
from hexz.metrics.summary import snapshot_line
from hexz.metrics.words import EXTENTS, INFO, LIST, READ
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.head import RequestError, RequestHead, decode_path
from hexz.protocol.http.responses import (
    IMMUTABLE,
    REVALIDATE,
    VOLATILE,
    Representation,
    Response,
    error_response,
    json_response,
    represent,
)
from hexz.servers.http.connection import Request
from hexz.servers.http.objects import (
    ARCHIVED_GUARD,
    OCTETS,
    Contents,
    archived_contents,
    file_contents,
    public_facts,
)
from hexz.servers.http.page import index_page
from hexz.snapshot import Effort, Stream

__all__ = ["CatalogApplication"]

READING = "GET, HEAD, OPTIONS"
MAX_EXTENTS = 65536
"""Most extents in one answer; `next` then says where to go on."""
MAX_BLOCKS = 1 << 20
"""Blocks of the index that are looked at for one answer, to the end of a page: 64 GiB of blocks of 64 KiB."""


class CatalogApplication:
    """Everything under ``/`` that comes from snapshots."""

    def __init__(self, catalog: Catalog, max_range: int = 0, ready: Callable[[], bool] = lambda: True) -> None:
        """`max_range` clamps one ranged answer, in bytes; `ready` says whether the daemon takes requests."""
        self._catalog = catalog
        self._max_range = max_range
        self._ready = ready
        self._plain = {
            "/disk": lambda head: self._stream(head, None, "disk"),
            "/memory": lambda head: self._stream(head, None, "memory"),
            "/info": lambda head: self._info(head, None),
            "/extents": lambda head: self._extents(head, None),
            "/": self._index,
            "/snapshots": lambda head: json_response({"snapshots": self._names()}),
            "/snapshots/": lambda head: json_response({"snapshots": self._names()}),
            "/healthz": lambda head: json_response({"status": "ok"}),
            "/readyz": self._readiness,
            "/metrics": self._metrics,
        }

    def respond(self, request: Request) -> Response:
        """The response to any request."""
        head = request.head
        if head.method not in ("GET", "HEAD"):
            return self._other_method(head)
        found = self._plain.get(head.path)
        return found(head) if found is not None else self._route(head)

    def _other_method(self, head: RequestHead) -> Response:
        allow = (("Allow", READING),)
        if head.method == "OPTIONS":
            return Response(204, allow)
        return error_response(405, f"{head.method} is not possible here: snapshots are read-only", allow)

    def _route(self, head: RequestHead) -> Response:
        name, path = _file_asked_for(head)
        if path is not None:
            return self._archived(head, name, path)
        segments = head.segments
        if len(segments) == 1 and segments[0].endswith(".hxz") and segments[0] != ".hxz":
            return self._file(head, segments[0][: -len(".hxz")])
        if segments[0] == "snapshots" and len(segments) >= 2 and segments[1]:
            name = segments[1]
            if len(segments) == 3 and segments[2] in ("disk", "memory"):
                return self._stream(head, name, segments[2])
            if len(segments) == 2 or (len(segments) == 3 and segments[2] == "info"):
                return self._info(head, name)
            if len(segments) == 3 and segments[2] == "extents":
                return self._extents(head, name)
        raise NoSuchSnapshot(f"there is nothing at {head.path}")

    def _stream(self, head: RequestHead, name: str | None, which: str) -> Response:
        lease = self._catalog.lease(name)
        snapshot = lease.snapshot
        stream = snapshot.streams.get(which)
        if stream is None:
            lease.release()
            raise NoSuchSnapshot(f"snapshot {lease.name!r} has no {which} stream")
        contents = Contents(stream, stream.size, OCTETS, stream.etag)
        return self._represent(head, lease, contents, lambda: self._catalog.serves(name, snapshot))

    def _represent(
        self, head: RequestHead, lease: Lease, contents: Contents, valid: Callable[[], bool] | None = None
    ) -> Response:
        source, size, content_type, etag = contents
        versions = parse_qs(head.query).get("v") if head.query else None
        if versions is not None and versions != [etag]:
            lease.release()
            raise NoSuchSnapshot("the content that v= names is not served here now")
        kept = REVALIDATE if versions is None else IMMUTABLE
        representation = Representation(
            source, size, content_type, Validators(etag, lease.snapshot.mtime), (kept,), valid
        )
        response = represent(head, representation, self._max_range, lease.release)
        stream = source.name if isinstance(source, Stream) else ""
        return response._replace(purpose=Purpose(lease.metrics, READ, stream))

    def _file(self, head: RequestHead, name: str) -> Response:
        lease = self._catalog.lease(name)
        return self._represent(head, lease, file_contents(lease.snapshot))

    def _info(self, head: RequestHead, name: str | None) -> Response:
        lease = self._catalog.lease(name)
        with lease as snapshot:
            facts = {**public_facts(lease.name, snapshot), "default": lease.name == self._catalog.default}
        return json_response(facts)._replace(purpose=Purpose(lease.metrics, INFO))

    def _extents(self, head: RequestHead, name: str | None) -> Response:
        query = parse_qs(head.query, keep_blank_values=True)
        which = query.get("stream", ["disk"])[0]
        lease = self._catalog.lease(name)
        with lease as snapshot:
            stream = snapshot.streams.get(which)
            if stream is None:
                raise NoSuchSnapshot(f"snapshot {lease.name!r} has no {which} stream")
            start = _number(query, "start", 0)
            if start > stream.size:
                raise RequestError(416, f"the stream has {stream.size} bytes")
            length = min(_number(query, "length", stream.size), stream.size - start)
            extents = list(islice(stream.extents(start, length, Effort(MAX_BLOCKS)), MAX_EXTENTS))
            end = extents[-1].start + extents[-1].length if extents else start
            answer = {
                "stream": which,
                "size": stream.size,
                "start": start,
                "length": end - start,
                "next": end if end < start + length else None,
                "extents": [extent._asdict() for extent in extents],
            }
        return json_response(answer)._replace(purpose=Purpose(lease.metrics, EXTENTS, which))

    def _archived(self, head: RequestHead, name: str, path: str) -> Response:
        lease = self._catalog.lease(name)
        try:
            files = lease.snapshot.files
            if files is None:
                raise NoSuchSnapshot(f"snapshot {lease.name!r} lists no files")
            if not path or path.endswith("/"):
                entries = list(_listing(files, path))
                if path and not entries:
                    raise NoSuchSnapshot(f"{path!r} is not in the archive")
                lease.release()
                listing = json_response({"path": path, "entries": entries})
                return listing._replace(purpose=Purpose(lease.metrics, LIST))
            found = next((file for file in files if file.path == path), None)
            if found is None:
                raise NoSuchSnapshot(f"{path!r} is not in the archive")
            response = self._represent(head, lease, archived_contents(lease.snapshot, found))
            return response._replace(headers=(*response.headers, *ARCHIVED_GUARD))
        except BaseException:
            lease.release()
            raise

    def _names(self) -> list[dict[str, Any]]:
        listed = []
        for name in self._catalog.names():
            try:
                lease = self._catalog.lease(name)
            except NoSuchSnapshot:
                continue  # taken away a moment ago
            with lease as snapshot:
                base = f"/snapshots/{quote(name, safe='')}"
                listed.append(
                    {
                        "name": name,
                        "default": name == self._catalog.default,
                        "file": f"/{quote(name, safe='')}.hxz",
                        "file_size": snapshot.file_size,
                        "compression": snapshot.header.compression.name.lower(),
                        "thin": snapshot.thin,
                        "encrypted": snapshot.encrypted,
                        "archive": snapshot.files is not None,
                        "info": f"{base}/info",
                        "streams": {
                            stream.name: {"size": stream.size, "etag": stream.etag, "url": f"{base}/{stream.name}"}
                            for stream in snapshot.streams.values()
                        },
                    }
                )
        return listed

    def _index(self, head: RequestHead) -> Response:
        """A page for people, JSON for programs."""
        names = self._names()
        if "text/html" not in head.headers.get("accept", ""):
            return json_response({"snapshots": names}, headers=(("Vary", "Accept"),))
        found = self._catalog.context.metrics.collect().snapshots
        notes = {name: snapshot_line(figures) for name, figures in found.items()}
        body = index_page(names, notes).encode()
        headers = (
            ("Content-Type", "text/html; charset=utf-8"),
            VOLATILE,
            ("Vary", "Accept"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
        )
        return Response(200, headers, (body,), len(body))

    def _metrics(self, head: RequestHead) -> Response:
        body = exposition(self._catalog.context.metrics.collect(), process_figures()).encode()
        return Response(200, (("Content-Type", CONTENT_TYPE), VOLATILE), (body,), len(body))

    def _readiness(self, head: RequestHead) -> Response:
        if self._ready():
            return json_response({"status": "ready", "snapshots": len(self._catalog)})
        return json_response({"status": "draining"}, 503, (("Retry-After", "5"),))


def _file_asked_for(head: RequestHead) -> tuple[str, str | None]:
    """Snapshot and path when the request is for a listed file; such a path may have any character."""
    parts = head.path.split("/", 4)
    if len(parts) < 4 or parts[1] != "snapshots" or not parts[2] or parts[3] != "files":
        return "", None
    return decode_path(parts[2]), decode_path(parts[4], any_character=True) if len(parts) == 5 else ""


def _number(query: dict[str, list[str]], key: str, default: int) -> int:
    text = query.get(key, [""])[0]
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise RequestError(400, f"{key} is not a number of bytes")
    return int(text)


def _listing(files: list[ArchivedFile], folder: str) -> Iterator[dict[str, Any]]:
    """The files and folders directly in `folder` (empty, or ending in a slash)."""
    seen: set[str] = set()
    for file in files:
        if not file.path.startswith(folder):
            continue
        name, slash, _ = file.path[len(folder) :].partition("/")
        if slash:
            if name not in seen:
                seen.add(name)
                yield {"name": f"{name}/", "type": "folder"}
        else:
            yield {"name": name, "type": "file", "size": file.size, "mode": file.mode, "mtime": file.mtime}
