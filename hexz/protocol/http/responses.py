"""Responses as values, and the one place that turns a request for a representation into the right one.

A body is a list of parts: bytes as they are, or a `Piece` of something that is read
while it is sent (`ByteSource`), so that a response of any length is a few small values.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, Union

from hexz.protocol.http.conditions import Validators, evaluate, range_applies
from hexz.protocol.http.dates import format_date
from hexz.protocol.http.errors import Unsatisfiable
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.ranges import ByteRange, parse_range

__all__ = [
    "IMMUTABLE",
    "REVALIDATE",
    "VOLATILE",
    "Part",
    "Piece",
    "Repeat",
    "Representation",
    "Response",
    "ByteSource",
    "error_response",
    "json_response",
    "pack_head",
    "represent",
]


IMMUTABLE = ("Cache-Control", "max-age=31536000, immutable")
"""For a URL that names its content (RFC 8246); not public: a shared cache must not keep what needed a token."""
REVALIDATE = ("Cache-Control", "no-cache")
"""For a URL that may mean something else tomorrow: without it caches guess for how long it does not.

RFC 9111 section 4.2.2.
"""
VOLATILE = ("Cache-Control", "no-store")
"""For what is true now, and has nothing to ask about later."""


class ByteSource(Protocol):
    """Something that gives its bytes in spans."""

    def read(self, offset: int, length: int) -> Sequence[bytes | memoryview]:
        """Buffers that make up [offset, offset + length), or its beginning."""


class Piece(NamedTuple):
    """`length` bytes of `source` from `offset` on."""

    source: ByteSource
    offset: int
    length: int


Part = Union[bytes, Piece]


class Repeat(NamedTuple):
    """What a range was cut from: enough to answer the same request again with another single range.

    `headers` are those of the 206 but for Content-Range; `source` has a `read_cached`
    as streams have, and `valid` says whether asking anew would still find this source.
    """

    source: Any
    size: int
    headers: tuple[tuple[str, str], ...]
    valid: Callable[[], bool]


class Response(NamedTuple):
    """What to answer; `length` is the body's in bytes.  `done` runs once it was sent or given up.

    `when_ended` takes what is to be done when that which the body is read from is taken away meanwhile: the peer may
    go on reading, but not pause for long.
    `purpose` is for whoever counts responses, and means nothing to HTTP.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: tuple[Part, ...] = ()
    length: int = 0
    done: Callable[[], None] | None = None
    close: bool = False
    repeat: Repeat | None = None
    purpose: object = None
    when_ended: Callable[[Callable[[], None]], None] | None = None


class Representation(NamedTuple):
    """Some bytes under a URL: where they come from, how many, what kind, and what identifies them.

    Without `validators` the bytes may change: nothing can be asked on a condition.
    `valid` may be given for a stream: as long as it returns True, the URL goes on meaning these bytes,
    and the connection may answer further ranges of it from the cache without asking the application.
    `refuses_empty` answers a range of no bytes at all with 416, as S3 and the images API do; else that is 200, as
    RFC 9110 section 14.2 allows and clients that fetch in slices need.
    """

    source: ByteSource
    size: int
    content_type: str
    validators: Validators | None
    headers: tuple[tuple[str, str], ...] = ()
    valid: Callable[[], bool] | None = None
    refuses_empty: bool = False


_REASONS = {status.value: status.phrase for status in HTTPStatus}
_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable"}


def pack_head(response: Response, keep_alive: bool, date: str, extra: Sequence[tuple[str, str]] = ()) -> bytes:
    """The bytes of a response's head; `date` is the formatted present time."""
    status = response.status
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status) or _REASONS.get(status, '')}", f"Date: {date}"]
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines += [f"{name}: {value}" for name, value in extra]
    if status not in {304, 204} and status >= 200:
        lines.append(f"Content-Length: {response.length}")
    if not keep_alive:
        lines.append("Connection: close")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1")


def json_response(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`value` as JSON."""
    body = json.dumps(value).encode() + b"\n"
    return Response(status, (("Content-Type", "application/json"), VOLATILE, *headers), (body,), len(body))


def error_response(
    status: int, message: str, headers: tuple[tuple[str, str], ...] = (), close: bool = False
) -> Response:
    """One line for people, which no cache may repeat: what is missing now may be there soon."""
    body = message.encode() + b"\n"
    kind = ("Content-Type", "text/plain; charset=utf-8")
    return Response(status, (kind, VOLATILE, *headers), (body,), len(body), None, close)


def represent(
    head: RequestHead, representation: Representation, max_range: int = 0, done: Callable[[], None] | None = None
) -> Response:
    """The response to GET or HEAD of `representation`: 200, 206, 304, 412 or 416.

    `max_range` clamps what one ranged answer carries, in bytes; 0 does not.
    Spec: RFC 9110 sections 13, 14 and 15.3.7.
    """
    headers, validators = head.headers, representation.validators
    identity: tuple[tuple[str, str], ...] = (("Accept-Ranges", "bytes"), *representation.headers)
    decided = None
    if validators is not None:
        modified = format_date(validators.modified)
        identity = (("ETag", f'"{validators.etag}"'), ("Last-Modified", modified), *identity)
        decided = evaluate(headers, validators, reading=True)
    if decided == 304:
        return Response(304, identity, (), 0, done)
    if decided is not None:
        return _error(412, "the precondition does not hold", identity, done)
    kind = ("Content-Type", representation.content_type)
    wanted = headers.get("range")
    # Range means something for GET alone (RFC 9110 section 14.2).
    applies = "if-range" not in headers if validators is None else range_applies(headers, validators)
    answerable = representation.size > 0 or representation.refuses_empty
    if wanted is not None and head.method == "GET" and applies and answerable:
        try:
            spans = parse_range(wanted, representation.size)
        except Unsatisfiable:
            size = ("Content-Range", f"bytes */{representation.size}")
            return _error(416, f"the stream has {representation.size} bytes", (size, *identity), done)
        if spans is not None:
            return _partial(representation, spans, (*identity, kind), max_range, done)
    body = Piece(representation.source, 0, representation.size)
    return Response(200, (*identity, kind), (body,), representation.size, done)


def _error(
    status: int, message: str, headers: tuple[tuple[str, str], ...], done: Callable[[], None] | None
) -> Response:
    # How long the representation may be kept says nothing about the error.
    kept = tuple(header for header in headers if header[0] != "Cache-Control")
    return error_response(status, message, kept)._replace(done=done)


def _partial(
    representation: Representation,
    spans: list[ByteRange],
    headers: tuple[tuple[str, str], ...],
    max_range: int,
    done: Callable[[], None] | None,
) -> Response:
    source, size = representation.source, representation.size
    if max_range:
        spans = _clamp(spans, max_range)
    if len(spans) == 1:
        start, length = spans[0]
        position = ("Content-Range", f"bytes {start}-{start + length - 1}/{size}")
        repeat = None
        if representation.valid is not None and not max_range:
            repeat = Repeat(source, size, headers, representation.valid)
        return Response(206, (position, *headers), (Piece(source, start, length),), length, done, False, repeat)
    boundary = secrets.token_hex(16)
    parts: list[Part] = []
    total = 0
    for start, length in spans:
        text = (
            f"\r\n--{boundary}\r\nContent-Type: {representation.content_type}\r\n"
            f"Content-Range: bytes {start}-{start + length - 1}/{size}\r\n\r\n"
        ).encode("latin-1")
        parts += [text, Piece(source, start, length)]
        total += len(text) + length
    end = f"\r\n--{boundary}--\r\n".encode()
    parts.append(end)
    identity = tuple(header for header in headers if header[0] != "Content-Type")
    kind = ("Content-Type", f"multipart/byteranges; boundary={boundary}")
    return Response(206, (*identity, kind), tuple(parts), total + len(end), done)


def _clamp(spans: list[ByteRange], most: int) -> list[ByteRange]:
    kept: list[ByteRange] = []
    for start, length in spans:
        if most <= 0:
            break
        kept.append(ByteRange(start, min(length, most)))
        most -= length
    return kept
