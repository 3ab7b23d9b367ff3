"""The images API under ``/images/ID``, as backup tools of CloudStack and oVirt speak it.

A handler decides in this order: is there such an image (404), may this client see
it (401), can the image do that at all (405, or 403 where only its registration
forbids it), is the request sound (400, 415, 416), is there a turn (503).  Errors
are JSON: ``{"error": "..."}``.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

from hexz.errors import BadRequest, HexzError
from hexz.images import checksum
from hexz.images.backend import Session, coalesced
from hexz.images.hexz import HexzSession
from hexz.images.registry import Busy, Image, NoSuchImage, Registry
from hexz.images.writing import copy_body, replace_all
from hexz.metrics import Purpose
from hexz.metrics.words import EXTENTS, INFO, OTHER, READ, WRITE
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.head import RequestError
from hexz.protocol.http.ranges import Unsatisfiable, parse_range
from hexz.protocol.http.responses import Piece, Representation, Response, represent
from hexz.protocol.images import (
    MAX_OPERATION,
    Zero,
    extents_json,
    flag,
    number,
    parse_content_range,
    parse_operation,
    parse_query,
    span_of,
)
from hexz.servers.http_connection import Application, Request
from hexz.servers.images_bodies import SessionSource, Spool

__all__ = ["ImagesApplication", "PREFIX"]

log = logging.getLogger("hexz.images")

PREFIX = "images"
MAX_REFUSED_BODY = 256 << 20
"""A body that is not wanted is read away up to so many bytes: a client that is cut off while it sends, over TLS at
least, never sees why.  oVirt's client sends up to 128 MiB at once."""
RETRY_AFTER_S = 1
DISCARD = 64 << 10
WRITING = ("PUT", "PATCH")
ALL_FEATURES = ("checksum", "extents", "flush", "zero")


class _Refusal(Exception):
    """An answer that is an error, with headers of its own."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class ImagesApplication:
    """Answers ``/images/...`` and leaves every other path to the application behind it."""

    def __init__(self, registry: Registry, others: Application) -> None:
        self._registry = registry
        self._others = others
        self._resources = {"": _Whole, "extents": _Extents, "checksum": _Checksum, "flush": _Flush}

    def respond(self, request: Request) -> Response:
        """The response to any request."""
        path = request.head.path
        if path != f"/{PREFIX}" and not path.startswith(f"/{PREFIX}/"):
            return self._others.respond(request)
        try:
            response = self._respond(request)
            return response if response.purpose else response._replace(purpose=Purpose(None, OTHER, "", PREFIX))
        except _Refusal as refusal:
            response = _json({"error": str(refusal)}, refusal.status, *refusal.headers)
        except RequestError as error:
            response = _json({"error": str(error)}, error.status)
        except Busy as error:
            response = _json({"error": str(error)}, 503, ("Retry-After", str(RETRY_AFTER_S)))
        except HexzError as error:
            if error.http_status >= 500:
                log.warning("%s: %s: %s", request.peer, request.head.target, error)
            retry = (("Retry-After", str(RETRY_AFTER_S)),) if error.http_status == 503 else ()
            response = _json({"error": str(error)}, error.http_status, *retry)
        except OSError as error:
            log.warning("%s: %s: %s", request.peer, request.head.target, error)
            response = _json({"error": "the system failed"}, 500)
        _read_away(request)
        return response._replace(purpose=Purpose(None, OTHER, "", PREFIX))

    def _respond(self, request: Request) -> Response:
        segments = [segment for segment in request.head.segments if segment]
        if len(segments) == 2 and segments[1] == "*" and request.head.method == "OPTIONS":
            return _json({"features": list(ALL_FEATURES)}, 200, ("Allow", "OPTIONS,GET,HEAD,PUT,PATCH,POST"))
        if segments[2:] == ["checksum", "algorithms"]:
            return _json({"algorithms": list(checksum.ALGORITHMS)})
        resource = self._resources.get(segments[2] if len(segments) == 3 else "") if 2 <= len(segments) <= 3 else None
        if resource is None or (len(segments) == 3 and not segments[2]):
            raise NoSuchImage("not found")
        image = self._registry.find(segments[1])
        if not image.admits(_token(request)):
            raise _Refusal(401, "this image needs its token", ("WWW-Authenticate", 'Bearer realm="images"'))
        return resource(image, request).respond()


def _json(value: Any, status: int = 200, *headers: tuple[str, str]) -> Response:
    body = json.dumps(value, separators=(",", ":")).encode()
    kind = (("Content-Type", "application/json"), ("Accept-Ranges", "bytes"))
    return Response(status, (*kind, *headers), (body,), len(body))


def _token(request: Request) -> str | None:
    """The image's token: in a header of its own, since Authorization may have to carry the server's."""
    own = request.head.headers.get("x-image-token")
    if own is not None:
        return own
    scheme, _, token = request.head.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _read_away(request: Request) -> None:
    """Read what the client still sends of a body that is not wanted, within bounds."""
    body = request.body
    if body.finished or body.untouched or body.length is None or body.length > MAX_REFUSED_BODY:
        return
    with contextlib.suppress(RequestError, OSError):  # the connection is closed then, which the framework sees to
        while not body.finished:
            body.read(DISCARD)


class _Resource:
    """One request for one resource of one image: a method for each HTTP method that it knows."""

    methods: tuple[str, ...] = ()
    op = INFO
    """What GET is counted as."""

    def __init__(self, image: Image, request: Request) -> None:
        self.image = image
        self.request = request
        self.head = request.head
        self.stack = contextlib.ExitStack()
        """What the response needs until it was sent."""
        self.purpose = Purpose(None, WRITE if self.head.method in WRITING else self.op, "", PREFIX)

    def respond(self) -> Response:
        """The response; what was taken for it is given back when it was sent, or now if it is refused."""
        with self.stack:
            method = self.head.method
            if method not in self.methods:
                raise _Refusal(405, f"{method} is not possible here", *self.allow(self.methods))
            response: Response = getattr(self, "get" if method == "HEAD" else method.lower())()
            if any(isinstance(part, Piece) for part in response.body):
                response = response._replace(done=self.stack.pop_all().close)
            return response._replace(purpose=self.purpose)

    @staticmethod
    def allow(methods: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """The headers that say which methods are possible, for people and for pages."""
        return ("Allow", ",".join(methods)), ("Access-Control-Allow-Methods", ", ".join(methods))

    def query(self, *known: str) -> dict[str, str]:
        """The query's fields.  Raises: BadRequest."""
        return parse_query(self.head.query, known)

    def open(self, writing: bool = False, turn: bool = True) -> Session:
        """A session for as long as the response takes, when it is this request's turn.

        Raises: Busy, and what opening raises.
        """
        self.stack.enter_context(self.image.turn(writing) if turn else self.image.used())
        session = self.image.backend.open(writing)
        self.stack.callback(session.close)
        if isinstance(session, HexzSession):
            self.purpose = self.purpose._replace(metrics=session.metrics, stream=session.stream.name)
        return session


class _Whole(_Resource):
    """``/images/ID``: the bytes."""

    methods = ("OPTIONS", "GET", "HEAD", "PUT", "PATCH", "POST", "DELETE")
    op = READ

    def options(self) -> Response:
        """What this image can do, as it is now."""
        session = self.open(turn=False)
        able, image = session.abilities, self.image
        writable = able.write or able.replace
        features = ["checksum"]
        # An empty image has no extents, and oVirt's client cannot do with an empty list.
        features += ["extents"] if able.extents and session.size else []
        features += ["flush"] if able.flush else []
        features += ["zero"] if able.zero else []
        limits = image.registration
        return _json(
            {
                "unix_socket": None,
                "features": features,
                "max_readers": limits.max_readers,
                "max_writers": limits.max_writers if writable else 0,
                "size": session.size,
                "block_size": session.block_size,
                "dirty": able.dirty,
            },
            200,
            *self.allow(self.possible(session)),
        )

    @staticmethod
    def possible(session: Session) -> tuple[str, ...]:
        """The methods that this image answers with more than a refusal."""
        able = session.abilities
        put = ("PUT",) if able.write or able.replace else ()
        return ("OPTIONS", "GET", "HEAD", *put, *(("PATCH",) if able.write else ()))

    def get(self) -> Response:
        """The image or ranges of it, streamed; whatever length is asked."""
        session = self.open(turn=self.head.method == "GET")
        validators = None
        if isinstance(session, HexzSession):
            source: Any = session.stream
            validators = Validators(session.stream.etag, session.stream.snapshot.mtime)
        else:
            source = self.stack.enter_context(contextlib.closing(SessionSource(session)))
        disposition = ("Content-Disposition", "attachment")
        representation = Representation(source, session.size, "application/octet-stream", validators, (disposition,))
        response = represent(self.head, representation)
        if response.status >= 400:
            kept = [header for header in response.headers if header[0] != "Content-Type"]
            reason = "range not satisfiable" if response.status == 416 else "the precondition does not hold"
            raise _Refusal(response.status, reason, *kept)
        first = next((part for part in response.body if isinstance(part, Piece)), None)
        if first is not None and first.length and self.head.method == "GET":
            if isinstance(source, SessionSource):
                source.expect(first.offset, first.length)
            else:
                source.read(first.offset, min(first.length, DISCARD))
        return response

    def put(self) -> Response:
        """The whole image, or with Content-Range a part of it."""
        query = self.query("flush")
        session = self.writable("PUT")
        flush = flag(query, "flush", default=True)
        length = self.body_length()
        if "range" in self.head.headers:
            raise BadRequest("a PUT has no Range: use Content-Range, or PATCH")
        part = self.head.headers.get("content-range")
        if session.abilities.replace:
            if part is not None:
                raise BadRequest("full writes only: this image has no Content-Range")
            replace_all(session.replace(length), self.request.body, length, flush)
            return _json({"ok": True, "bytes_written": length, "flushed": True})
        start = 0
        if part is not None:
            start, span, size = parse_content_range(part)
            if span != length or size not in (None, session.size):
                raise BadRequest("Content-Range says otherwise than Content-Length, or than the image's size")
        if start + length > session.size:
            raise self.beyond(session)
        if part is None and length != session.size:
            raise BadRequest(f"the image has {session.size} bytes: a shorter body needs Content-Range")
        copy_body(session, start, self.request.body, length)
        if flush:
            session.flush()
        return _json({"ok": True, "bytes_written": length, "flushed": flush})

    def patch(self) -> Response:
        """A range of bytes, or an operation in JSON."""
        query = self.query("flush")
        session = self.writable("PATCH", session_needs_write=True)
        kind = self.head.headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = self.head.headers.get("range")
        if wanted is not None and kind != "application/json":
            return self.patch_range(session, wanted, flag(query, "flush", default=False))
        if kind not in ("", "application/json"):
            raise _Refusal(415, "PATCH takes application/json, or bytes with a Range header")
        if self.body_length() > MAX_OPERATION:
            raise BadRequest(f"the JSON body has to have 1 to {MAX_OPERATION} bytes")
        operation = parse_operation(self.read_all())
        flushed = True
        if isinstance(operation, Zero):
            if operation.offset >= session.size:
                raise BadRequest(f"offset is behind the image's {session.size} bytes")
            session.zero(operation.offset, min(operation.size, session.size - operation.offset))
            flushed = operation.flush
        if flushed:
            session.flush()
        return _json({"ok": True, "flushed": flushed})

    def patch_range(self, session: Session, wanted: str, flush: bool) -> Response:
        """The body into the one range that the Range header names."""
        length = self.body_length()
        try:
            spans = parse_range(wanted, session.size)
        except Unsatisfiable:
            raise self.beyond(session) from None
        if spans is None or len(spans) != 1:
            raise BadRequest("invalid Range header: PATCH writes one range, 'bytes=FIRST-LAST'")
        if not length or length != spans[0].length:
            raise BadRequest(f"Content-Length is not the range's {spans[0].length} bytes")
        copy_body(session, spans[0].start, self.request.body, length)
        if flush:
            session.flush()
        return _json({"ok": True, "bytes_written": length, "flushed": flush})

    def post(self) -> Response:
        """Nothing is posted to an image itself."""
        return self.delete()

    def delete(self) -> Response:
        """Images come and go with their registrations and snapshots."""
        session = self.open(turn=False)
        raise _Refusal(405, f"{self.head.method} is not possible here", *self.allow(self.possible(session)))

    def writable(self, method: str, session_needs_write: bool = False) -> Session:
        """A session that may write, decided before the body is looked at.

        Raises: _Refusal (403, 405), Busy, and what opening raises.
        """
        with contextlib.closing(self.image.backend.open()) as session:
            able = session.abilities
            if not (able.write or (able.replace and not session_needs_write)):
                if self.image.registration.read_only and self.image.registration.backend != "hexz":
                    raise _Refusal(403, "this image is registered read-only")
                raise _Refusal(405, f"{method} is not possible on this image", *self.allow(self.possible(session)))
        return self.open(writing=True)

    def body_length(self) -> int:
        """The body's length in bytes.  Raises: BadRequest when it is not announced."""
        length = self.request.body.length
        if length is None or "content-length" not in self.head.headers:
            raise BadRequest("Content-Length is missing")
        return length

    def read_all(self) -> bytes:
        """The whole body, which is short."""
        parts: list[bytes] = []
        while not self.request.body.finished:
            parts.append(self.request.body.read(MAX_OPERATION))
        return b"".join(parts)

    @staticmethod
    def beyond(session: Session) -> _Refusal:
        """What is asked lies behind the end."""
        return _Refusal(416, "range not satisfiable", ("Content-Range", f"bytes */{session.size}"))


class _Extents(_Resource):
    """``/images/ID/extents``: what the bytes consist of."""

    methods = ("OPTIONS", "GET", "HEAD")
    op = EXTENTS

    def options(self) -> Response:
        """Which methods there are."""
        return Response(204, self.allow(self.methods))

    def get(self) -> Response:
        """The list; ``context=dirty`` for what changed, ``start`` and ``length`` for a part."""
        query = self.query("context", "start", "length")
        context = query.get("context", "zero")
        if context not in ("zero", "dirty"):
            raise BadRequest(f"context {context!r} is neither 'zero' nor 'dirty'")
        session = self.open()
        start, length = span_of(query, session.size)
        dirty = context == "dirty"
        spool = Spool()
        self.stack.callback(spool.close)
        for part in extents_json(coalesced(session.extents(start, length, dirty)), dirty):
            spool.add(part)
        validators = None
        if isinstance(session, HexzSession):
            tag = f"{session.stream.etag}-{context}-{start}-{length}"
            validators = Validators(tag, session.stream.snapshot.mtime)
        return represent(self.head, Representation(spool, spool.length, "application/json", validators))


class _Checksum(_Resource):
    """``/images/ID/checksum``: oVirt's hash of hashes."""

    methods = ("OPTIONS", "GET", "HEAD")

    def options(self) -> Response:
        """Which methods there are."""
        return Response(204, self.allow(self.methods))

    def get(self) -> Response:
        """The checksum; ``algorithm`` and ``block_size`` may be given."""
        query = self.query("algorithm", "block_size")
        algorithm = query.get("algorithm", checksum.DEFAULT_ALGORITHM)
        if algorithm not in checksum.ALGORITHMS:
            raise BadRequest(f"algorithm {algorithm!r} is not known here: {', '.join(checksum.ALGORITHMS)}")
        size = number(query, "block_size", checksum.DEFAULT_BLOCK)
        if not checksum.MIN_BLOCK <= size <= checksum.MAX_BLOCK or size % checksum.BLOCK_MULTIPLE:
            raise BadRequest(
                f"block_size is not a multiple of {checksum.BLOCK_MULTIPLE} "
                f"from {checksum.MIN_BLOCK} to {checksum.MAX_BLOCK}"
            )
        session = self.open()
        value = checksum.checksum(session, algorithm, size)
        return _json({"algorithm": algorithm, "block_size": size, "checksum": value})


class _Flush(_Resource):
    """``/images/ID/flush``."""

    methods = ("OPTIONS", "POST")

    def options(self) -> Response:
        """Which methods there are."""
        return Response(204, self.allow(self.methods))

    def post(self) -> Response:
        """Put what was written on the disk; on a read-only image there is nothing to do."""
        self.open(writing=True).flush()
        return _json({"ok": True})
