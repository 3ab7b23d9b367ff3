"""``/images/ID``: the image's bytes, read and written."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable

from hexz.errors import BadRequest
from hexz.images.backend import Session
from hexz.images.hexz import HexzSession
from hexz.images.upload import copy_body, replace_all
from hexz.metrics.labels import READ
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.errors import RequestError, Unsatisfiable
from hexz.protocol.http.ranges import parse_range
from hexz.protocol.http.responses import REVALIDATE, VOLATILE, ByteSource, Piece, Representation, Response, represent
from hexz.protocol.images import MAX_OPERATION, Zero, flag, parse_content_range, parse_operation
from hexz.servers.images.bodies import SessionSource
from hexz.servers.images.errors import Refusal
from hexz.servers.images.requests import Resource, json_answer

__all__ = ["ImageData"]

FIRST_READ = 64 << 10
"""Bytes read before the head is sent, so that trouble is an error and not a short body."""
TURN_S = 10.0
"""Seconds that a writer may take while others wait, whatever it sends."""
SLOWEST_WRITER = 64 << 10
"""Bytes a second that it has to send beyond them."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+")


class ImageData(Resource):
    """``/images/ID``: the bytes."""

    methods = ("OPTIONS", "GET", "HEAD", "PUT", "PATCH", "POST", "DELETE")
    op = READ

    def options(self) -> Response:
        """What this image can do, as it is now."""
        session = self.open(turn=False)
        able, image = session.abilities, self.image
        writable = self.may_write and (able.write or able.replace)
        features = ["checksum"]
        # An empty image has no extents, and oVirt's client cannot do with an empty list.
        features += ["extents"] if able.extents and session.size else []
        features += ["flush"] if able.flush and self.may_write else []
        features += ["zero"] if able.zero and self.may_write else []
        limits = image.registration
        return json_answer(
            {
                "unix_socket": self.unix_socket,
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

    def possible(self, session: Session) -> tuple[str, ...]:
        """The methods that this image answers with more than a refusal."""
        if not self.may_write:
            return ("OPTIONS", "GET", "HEAD")
        able = session.abilities
        put = ("PUT",) if able.write or able.replace else ()
        return ("OPTIONS", "GET", "HEAD", *put, *(("PATCH",) if able.write else ()))

    def get(self) -> Response:
        """The image or ranges of it, streamed; whatever length is asked."""
        session = self.open(turn=self.head.method == "GET")
        source = self.stack.enter_context(contextlib.closing(SessionSource(session)))
        validators, kept = None, VOLATILE
        if isinstance(session, HexzSession):
            validators, kept = Validators(session.stream.etag, session.stream.file.mtime), REVALIDATE
        named = f'; filename="{self.image.id}"' if _PLAIN_NAME.fullmatch(self.image.id) else ""
        headers = (("Content-Disposition", f"attachment{named}"), kept)
        representation = Representation(
            source, session.size, "application/octet-stream", validators, headers, refuses_empty=True
        )
        response = represent(self.head, representation)
        if response.status >= 400:
            left = [header for header in response.headers if header[0] not in ("Content-Type", "Cache-Control")]
            reason = "range not satisfiable" if response.status == 416 else "the precondition does not hold"
            raise Refusal(response.status, reason, *left)
        pieces = [part for part in response.body if isinstance(part, Piece) and part.length]
        if pieces and self.head.method == "GET":
            first = pieces[0]
            if isinstance(session, HexzSession):
                longest = max(piece.length for piece in pieces)
                if not self.stack.enter_context(session.passing(longest)):
                    session.stream.load(first.offset, min(first.length, FIRST_READ))
                    return _from(session.stream, response)
            source.expect(first.offset, first.length)
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
            return json_answer({"ok": True, "bytes_written": length, "flushed": True})
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
        return json_answer({"ok": True, "bytes_written": length, "flushed": flush})

    def patch(self) -> Response:
        """A range of bytes, or an operation in JSON."""
        query = self.query("flush")
        session = self.writable("PATCH", session_needs_write=True)
        kind = self.head.headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = self.head.headers.get("range")
        if wanted is not None and kind != "application/json":
            return self.patch_range(session, wanted, flag(query, "flush", default=False))
        if kind not in ("", "application/json"):
            raise Refusal(415, "PATCH takes application/json, or bytes with a Range header")
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
        return json_answer({"ok": True, "flushed": flushed})

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
        return json_answer({"ok": True, "bytes_written": length, "flushed": flush})

    def post(self) -> Response:
        """Nothing is posted to an image itself."""
        return self.delete()

    def delete(self) -> Response:
        """Images come and go with their registrations and snapshots."""
        session = self.open(turn=False)
        raise Refusal(405, f"{self.head.method} is not possible here", *self.allow(self.possible(session)))

    def writable(self, method: str, session_needs_write: bool = False) -> Session:
        """A session that may write, decided before the body is looked at.

        Raises: Refusal (403, 405), Busy, and what opening raises.
        """
        with contextlib.closing(self.image.backend.open()) as session:
            able = session.abilities
            if not (able.write or (able.replace and not session_needs_write)):
                if self.image.registration.read_only and self.image.registration.backend != "hexz":
                    raise Refusal(403, "this image is registered read-only")
                raise Refusal(405, f"{method} is not possible on this image", *self.allow(self.possible(session)))
        self.check_writer()
        session = self.open(writing=True)
        self.request.body.ask(self._mind_others(time.monotonic()))
        return session

    def _mind_others(self, began: float) -> Callable[[], None]:
        """What ends a body that comes too slowly while others wait for their turn to write."""

        def look() -> None:
            allowed = TURN_S + self.request.body.taken / SLOWEST_WRITER
            if self.image.writers_wait and time.monotonic() - began > allowed:
                raise RequestError(408, "others wait to write: send the body faster, or in smaller parts")

        return look

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
    def beyond(session: Session) -> Refusal:
        """What is asked lies behind the end."""
        return Refusal(416, "range not satisfiable", ("Content-Range", f"bytes */{session.size}"))


def _from(source: ByteSource, response: Response) -> Response:
    """The same response read from another source."""
    parts = (part._replace(source=source) if isinstance(part, Piece) else part for part in response.body)
    return response._replace(body=tuple(parts))
