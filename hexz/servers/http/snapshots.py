"""The routes of the catalog: streams, facts, extents, archived files, and the snapshot files themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from urllib.parse import parse_qs

from hexz.catalog import Catalog, Lease
from hexz.errors import NoSuchSnapshot
from hexz.format.prefetch import PrefetchList, format_prefetch
from hexz.metrics import Purpose
from hexz.metrics.labels import EXTENTS, INFO, LIST, READ
from hexz.metrics.process import process_figures
from hexz.metrics.prometheus import CONTENT_TYPE, exposition
from hexz.metrics.summary import snapshot_line
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead, decode_path
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
from hexz.servers.http.application import Request
from hexz.servers.http.listings import list_folder, list_snapshots, number_of, parse_limit
from hexz.servers.http.objects import (
    ARCHIVE_FOLDER,
    ARCHIVED_GUARD,
    OCTETS,
    Contents,
    archive_of,
    archived_contents,
    file_contents,
    public_facts,
)
from hexz.servers.http.page import index_page
from hexz.servers.spool import building
from hexz.snapshot import Effort, Stream

__all__ = ["CatalogApplication"]

READING = "GET, HEAD, OPTIONS"
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
            "/": self._index,
            "/snapshots": self._list,
            "/snapshots/": self._list,
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
        return found(head) if found is not None else self._route(head, request.watch)

    def _other_method(self, head: RequestHead) -> Response:
        allow = (("Allow", READING),)
        if head.method == "OPTIONS":
            return Response(204, allow)
        return error_response(405, f"{head.method} is not possible here: snapshots are read-only", allow)

    def _route(self, head: RequestHead, watch: Callable[[], None]) -> Response:
        if head.path == "/extents":
            return self._extents(head, None, watch)
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
            if len(segments) == 3 and segments[2] == "prefetch":
                return self._prefetch(head, name)
            if len(segments) == 3 and segments[2] == "extents":
                return self._extents(head, name, watch)
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
        return response._replace(purpose=Purpose(lease.metrics, READ, stream), when_ended=lease.when_ended)

    def _file(self, head: RequestHead, name: str) -> Response:
        lease = self._catalog.lease(name)
        return self._represent(head, lease, file_contents(lease.snapshot))

    def _info(self, head: RequestHead, name: str | None) -> Response:
        lease = self._catalog.lease(name)
        with lease as snapshot:
            facts = {**public_facts(lease.name, snapshot), "default": lease.name == self._catalog.default}
        return json_response(facts)._replace(purpose=Purpose(lease.metrics, INFO))

    def _prefetch(self, head: RequestHead, name: str) -> Response:
        """What was read so far of a remote snapshot and its ancestors, as a list that can be fetched ahead."""
        lease = self._catalog.lease(name)
        with lease as snapshot:
            lists = [
                PrefetchList(file.storage.size, file.fingerprint, file.first_reads.spans())
                for file in snapshot.family()
                if file.first_reads is not None
            ]
        if not lists:
            raise NoSuchSnapshot(f"{lease.name!r} is a local file: there is nothing to fetch ahead")
        text = format_prefetch(lists).encode()
        headers = (("Content-Type", "text/plain; charset=utf-8"), VOLATILE)
        return Response(200, headers, (text,), len(text))._replace(purpose=Purpose(lease.metrics, INFO))

    def _extents(self, head: RequestHead, name: str | None, watch: Callable[[], None]) -> Response:
        query = _query(head)
        which = query.get("stream", ["disk"])[0]
        lease = self._catalog.lease(name)
        with lease as snapshot:
            stream = snapshot.streams.get(which)
            if stream is None:
                raise NoSuchSnapshot(f"snapshot {lease.name!r} has no {which} stream")
            start = number_of(query, "start", 0)
            if start > stream.size:
                raise RequestError(416, f"the stream has {stream.size} bytes")
            length = min(number_of(query, "length", stream.size), stream.size - start)
            extents = list(islice(stream.extents(start, length, Effort(MAX_BLOCKS, watch)), parse_limit(query)))
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
            archive = archive_of(lease.snapshot)
            if archive is None:
                raise NoSuchSnapshot(f"snapshot {lease.name!r} lists no files")
            if not path or path.endswith("/"):
                query = _query(head)
                listed = list_folder(archive, path, query)
                if path and not listed.entries and "after" not in query:
                    raise NoSuchSnapshot(f"{path!r} is not in the archive")
                lease.release()
                listing = json_response({"path": path, "entries": listed.entries, "next": listed.next})
                return listing._replace(purpose=Purpose(lease.metrics, LIST))
            found = archive.files.get(f"{ARCHIVE_FOLDER}{path}")
            if found is None:
                raise NoSuchSnapshot(f"{path!r} is not in the archive")
            response = self._represent(head, lease, archived_contents(lease.snapshot, found))
            return response._replace(headers=(*response.headers, *ARCHIVED_GUARD))
        except BaseException:
            lease.release()
            raise

    def _list(self, head: RequestHead) -> Response:
        listed = list_snapshots(self._catalog, _query(head))
        return json_response({"snapshots": listed.entries, "next": listed.next})

    def _index(self, head: RequestHead) -> Response:
        """A page for people, JSON for programs."""
        with building:
            listed = list_snapshots(self._catalog, _query(head))
        if "text/html" not in head.headers.get("accept", ""):
            facts = {"snapshots": listed.entries, "next": listed.next}
            return json_response(facts, headers=(("Vary", "Accept"),))
        with building:
            found = self._catalog.context.metrics.collect().snapshots
            notes = {name: snapshot_line(figures) for name, figures in found.items()}
            body = index_page(listed.entries, notes, len(self._catalog), listed.next).encode()
        headers = (
            ("Content-Type", "text/html; charset=utf-8"),
            VOLATILE,
            ("Vary", "Accept"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
        )
        return Response(200, headers, (body,), len(body))

    def _metrics(self, head: RequestHead) -> Response:
        with building:
            body = exposition(self._catalog.context.metrics.collect(), process_figures()).encode()
        return Response(200, (("Content-Type", CONTENT_TYPE), VOLATILE), (body,), len(body))

    def _readiness(self, head: RequestHead) -> Response:
        if self._ready():
            catalog = self._catalog
            troubles = {
                "stale": catalog.stale,
                "changed": catalog.changed,
                "skipped": len(catalog.skipped),
                "unreachable": len(catalog.unreachable),
            }
            found = {what: count for what, count in troubles.items() if count}
            return json_response({"status": "ready", "snapshots": len(self._catalog), **found})
        return json_response({"status": "draining"}, 503, (("Retry-After", "5"),))


def _file_asked_for(head: RequestHead) -> tuple[str, str | None]:
    """Snapshot and path when the request is for a listed file; such a path may have any character."""
    parts = head.path.split("/", 4)
    if len(parts) < 4 or parts[1] != "snapshots" or not parts[2] or parts[3] != "files":
        return "", None
    return decode_path(parts[2]), decode_path(parts[4], any_character=True) if len(parts) == 5 else ""


def _query(head: RequestHead) -> dict[str, list[str]]:
    return parse_qs(head.query, keep_blank_values=True)
