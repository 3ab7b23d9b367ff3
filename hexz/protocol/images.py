"""The documents of the images API: registrations, operations, extents; bytes in, values out and back.

The API is that of Apache CloudStack's image server and of ovirt-imageio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from hexz.errors import BadRequest, ConfigError, JsonError
from hexz.jsontext import load_json
from hexz.units import parse_number

__all__ = [
    "MAX_OPERATION",
    "MAX_REGISTRATION",
    "ContentRange",
    "FlushRequest",
    "Registration",
    "Zero",
    "extents_json",
    "flag",
    "is_image_id",
    "parse_content_range",
    "parse_operation",
    "parse_query",
    "parse_registration",
    "span_of",
]

MAX_REGISTRATION = 4096
"""Longest registration, bytes."""
SHORTEST_TOKEN = 16
"""Shortest token of an image, characters: shorter ones can be found by trying."""
MAX_OPERATION = 65536
"""Longest JSON body of a PATCH, bytes."""
MAX_QUERY_FIELDS = 16
MAX_DIGITS = 19
"""Digits of the largest 63-bit number; longer ones are never converted."""
MAX_LIMIT = 1024
DEFAULT_READERS = 8
JSON_PART = 32 << 10
"""About the bytes in one part of a long JSON list."""

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\*|\d{1,19})", re.ASCII | re.IGNORECASE)
KEYS = {
    "nbd": ("socket", "host", "port", "export", "export_bitmap", "max_writers"),
    "file": ("file", "quota", "max_writers"),
    "hexz": ("snapshot", "stream"),
    "overlay": ("file", "snapshot", "stream", "quota", "max_writers"),
}
"""What each backend is told, besides what all are: mode, token, idle_timeout_seconds, max_readers."""
BACKENDS = tuple(KEYS)


def is_image_id(text: str) -> bool:
    """Whether a registration may have this name: letters, digits, ``._-``, no dot or dash first, 128 at most.

    Not with ``.json`` at the end, which is the name of a file: one registration must not be two images.
    """
    return _ID.fullmatch(text) is not None and not text.endswith(".json")


class Registration(NamedTuple):
    """One image as registered.  Sizes in bytes, times in seconds; 0 where there is no limit."""

    backend: str
    file: str = ""
    socket: str = ""
    host: str = ""
    port: int = 0
    export: str = ""
    export_bitmap: str | None = None
    snapshot: str = ""
    stream: str = "disk"
    quota: int = 0
    read_only: bool = False
    token: str = ""
    idle_timeout_seconds: int = 0
    max_readers: int = DEFAULT_READERS
    max_writers: int = 1
    unknown: tuple[str, ...] = ()


def parse_registration(data: bytes) -> Registration:
    """A registration's JSON object.

    Raises: ConfigError, whose text does not name the file.
    """
    if len(data) > MAX_REGISTRATION:
        raise ConfigError(f"longer than {MAX_REGISTRATION} bytes")
    try:
        fields = load_json(data)
    except JsonError:
        raise ConfigError("not JSON") from None
    if not isinstance(fields, dict):
        raise ConfigError("not a JSON object")
    backend = fields.pop("backend", "nbd")
    backend = backend.casefold() if isinstance(backend, str) else backend
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is unknown: {', '.join(BACKENDS)}")
    for name in sorted({key for keys in KEYS.values() for key in keys} - set(KEYS[backend])):
        if fields.get(name) is not None:
            raise ConfigError(f"{name} means nothing for backend {backend}")
    mode = fields.pop("mode", "ro" if backend == "hexz" else "rw")
    if mode not in ("ro", "rw"):
        raise ConfigError(f"mode {mode!r} is neither 'ro' nor 'rw'")
    if backend == "hexz" and mode == "rw":
        raise ConfigError("mode 'rw' is not possible for backend hexz: backend overlay is written")
    values: dict[str, Any] = {}
    for name in ("file", "socket", "host", "export", "export_bitmap", "snapshot", "stream", "token"):
        if fields.get(name) is not None:
            values[name] = _text(name, fields[name])
        fields.pop(name, None)
    for name, most in (
        ("port", 65535),
        ("quota", 1 << 62),
        ("idle_timeout_seconds", 1 << 31),
        ("max_readers", MAX_LIMIT),
        ("max_writers", MAX_LIMIT),
    ):
        if fields.get(name) is not None:
            values[name] = _whole(name, fields[name], most)
        fields.pop(name, None)
    if len(values.get("token", "")) < SHORTEST_TOKEN and "token" in values:
        raise ConfigError(f"token has fewer than {SHORTEST_TOKEN} characters")
    found = Registration(backend, read_only=mode == "ro", unknown=tuple(sorted(fields)), **values)
    _check_complete(found)
    return found


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{name} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise ConfigError(f"{name} is no text") from None
    return value


def _whole(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigError(f"{name} is not a whole number from 1 to {most}")
    return value


def _check_complete(found: Registration) -> None:
    if found.stream not in ("disk", "memory"):
        raise ConfigError("stream is neither 'disk' nor 'memory'")
    if found.backend == "nbd" and bool(found.socket) == bool(found.host and found.port):
        raise ConfigError("backend nbd needs either socket, or host and port")
    if found.backend in ("file", "overlay") and not found.file:
        raise ConfigError(f"backend {found.backend} needs file")
    if found.backend in ("hexz", "overlay") and not found.snapshot:
        raise ConfigError(f"backend {found.backend} needs snapshot")
    if not all(path.startswith("/") for path in (found.file, found.socket) if path):
        raise ConfigError("file and socket have to be absolute paths")


class ContentRange(NamedTuple):
    """Where a PUT's body goes: start and length in bytes; `size` of the whole if the client says it."""

    start: int
    length: int
    size: int | None


def parse_content_range(text: str) -> ContentRange:
    """A request's Content-Range, ``bytes A-B/SIZE`` or ``bytes A-B/*`` (RFC 9110 section 14.4).

    Raises: BadRequest.
    """
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise BadRequest("invalid Content-Range: it is written 'bytes FIRST-LAST/*'")
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    if last < first or (size is not None and last >= size):
        raise BadRequest("invalid Content-Range: it ends before it begins, or behind its size")
    return ContentRange(first, last - first + 1, size)


class Zero(NamedTuple):
    """Make `size` bytes from `offset` on zero, and flush if asked."""

    offset: int
    size: int
    flush: bool


class FlushRequest(NamedTuple):
    """Put what was written on the disk."""


def parse_operation(data: bytes) -> Zero | FlushRequest:
    """The JSON body of a PATCH; types are taken strictly: no text for numbers, no numbers for true and false.

    Raises: BadRequest.
    """
    if not 0 < len(data) <= MAX_OPERATION:
        raise BadRequest(f"the JSON body has to have 1 to {MAX_OPERATION} bytes")
    try:
        fields = load_json(data)
    except JsonError:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body is not a JSON object")
    operation = fields.get("op")
    if operation == "flush":
        return FlushRequest()
    if operation != "zero":
        raise BadRequest("op is neither 'zero' nor 'flush'")
    offset, size, flush = fields.get("offset", 0), fields.get("size"), fields.get("flush", False)
    if type(offset) is not int or offset < 0:
        raise BadRequest("offset is not a whole number from 0 on")
    if type(size) is not int or size <= 0:
        raise BadRequest("size is not a whole number above 0")
    if type(flush) is not bool:
        raise BadRequest("flush is neither true nor false")
    return Zero(offset, size, flush)


def parse_query(text: str, known: tuple[str, ...]) -> dict[str, str]:
    """The fields of a query string, of which those in `known` may come once each; others are ignored.

    Raises: BadRequest.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise BadRequest(f"the query has more than {MAX_QUERY_FIELDS} fields") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in known:
            if name in found:
                raise BadRequest(f"{name} comes twice")
            found[name] = value
    return found


def flag(query: Mapping[str, str], name: str, default: bool) -> bool:
    """``y`` or ``n`` of a query.

    Raises: BadRequest.
    """
    value = query.get(name)
    if value is None:
        return default
    if value not in ("y", "n"):
        raise BadRequest(f"{name} is neither y nor n")
    return value == "y"


def number(query: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of a query.

    Raises: BadRequest.
    """
    value = query.get(name)
    if value is None:
        return default
    number = parse_number(value, MAX_DIGITS)
    if number is None:
        raise BadRequest(f"{name} is not a whole number")
    return number


def span_of(query: Mapping[str, str], size: int) -> tuple[int, int]:
    """(start, length) of the part that ``start`` and ``length`` ask for, cut at the image's end.

    Raises: BadRequest.
    """
    start = min(number(query, "start", 0), size)
    return start, min(number(query, "length", size - start), size - start)


def extents_json(extents: Iterable[tuple[int, int, bool, bool, bool]], dirty: bool) -> Iterator[bytes]:
    """The JSON list of (start, length, zero, hole, dirty) in parts of about 32 KiB."""
    part: list[str] = []
    length = 0
    before = "["
    for start, size, zero, hole, changed in extents:
        kind = (
            f'"dirty":{_word(changed)},"zero":{_word(zero)}' if dirty else f'"zero":{_word(zero)},"hole":{_word(hole)}'
        )
        text = f'{before}{{"start":{start},"length":{size},{kind}}}'
        before = ","
        part.append(text)
        length += len(text)
        if length >= JSON_PART:
            yield "".join(part).encode()
            part, length = [], 0
    part.append("[]" if before == "[" else "]")
    yield "".join(part).encode()


def _word(value: bool) -> str:
    return "true" if value else "false"
