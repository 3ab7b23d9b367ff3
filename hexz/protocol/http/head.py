"""Parse a request's head, strictly: what is ambiguous is refused, since a proxy may read it otherwise."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from hexz.protocol.http.errors import RequestError

__all__ = [
    "MAX_HEAD",
    "MAX_HEADERS",
    "MAX_TARGET",
    "Framing",
    "RequestHead",
    "decode_path",
    "framing_of",
    "parse_head",
]

MAX_HEAD = 16 << 10
"""Longest request line and header section together, bytes."""
MAX_TARGET = 8 << 10
"""Longest request target, bytes (RFC 9112 section 3 asks for at least 8000)."""
MAX_HEADERS = 100

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT"})
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"%(?:2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])", re.IGNORECASE)
"""An escape that means the same as the character itself: a letter, a digit, ``-``, ``.``, ``_`` or ``~``."""
_DIGITS = re.compile(r"[0-9]{1,18}")
_SINGLE = frozenset({"host", "content-length", "transfer-encoding", "range", "authorization", "content-range",
                     "if-modified-since", "if-unmodified-since", "if-range", "content-type"})  # fmt: skip


class RequestHead(NamedTuple):
    """A request's head.

    `path` is as sent, without the query; of its escapes only those of unreserved characters are decoded,
    so that no two spellings of one path differ (RFC 9110 section 4.2.3, RFC 3986 section 6.2.2.2).
    `segments` are its parts wholly decoded.
    Header names are in lower case; a repeated header's values are joined by commas.
    """

    method: str
    target: str
    path: str
    query: str
    headers: dict[str, str]
    minor: int

    @property
    def segments(self) -> list[str]:
        """The path's parts between slashes, percent-decoded one by one.

        Raises: RequestError (400) when a part is not UTF-8 or has a control character.
        """
        return [decode_path(part) for part in self.path.split("/")[1:]]

    @property
    def shown(self) -> str:
        """The target as logs may have it: a signed URL is good for whoever reads it, so its signature is blank.

        Spec: Signature Version 4, "Authenticating requests: using query parameters".
        """
        before, mark, query = self.target.partition("?")
        if not mark:
            return self.target
        return before + mark + "&".join(map(_blanked, query.split("&")))

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants another request on this connection (RFC 9112 section 9.3)."""
        connection = self.headers.get("connection")
        if connection is None:
            return self.minor > 0
        options = {option.strip().lower() for option in connection.split(",")}
        return "close" not in options and (self.minor > 0 or "keep-alive" in options)


def _blanked(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    # An escaped name signs as well as the plain one.
    secret = equals and unquote_to_bytes(name).lower() == b"x-amz-signature"
    return f"{name}=..." if secret else pair


class Framing(NamedTuple):
    """How the request's body is delimited: `length` bytes, or chunks."""

    length: int
    chunked: bool


def parse_head(head: bytes) -> RequestHead:
    """The head in `head`, which ends before the empty line.

    Raises: RequestError with 400, 414, 431, 501 or 505.
    Spec: RFC 9112 sections 2.2, 3 and 5.
    """
    lines = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise RequestError(400, "the request line is malformed")
    method, target = line[1].decode("ascii"), line[2].decode("ascii")
    if line[3] != b"1":
        raise RequestError(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    if len(target) > MAX_TARGET:
        raise RequestError(414, f"the request target has more than {MAX_TARGET} bytes")
    if len(lines) > MAX_HEADERS + 1:
        raise RequestError(431, f"more than {MAX_HEADERS} header lines")
    headers: dict[str, str] = {}
    for raw in lines[1:]:
        name_bytes, colon, value_bytes = raw.partition(b":")
        # No blank before the colon, no line folding, no bare CR or LF (RFC 9112 sections 5.1, 5.2, 2.2).
        if not colon or _TOKEN.fullmatch(name_bytes) is None or _BAD_VALUE.search(value_bytes) is not None:
            raise RequestError(400, "a header line is malformed")
        name = name_bytes.decode("ascii").lower()
        value = value_bytes.strip(b" \t").decode("latin-1")
        if name in headers:
            if name in _SINGLE:
                raise RequestError(400, f"the header {name} comes more than once")
            value = f"{headers[name]},{value}"  # no blank: so do those who sign header values
        headers[name] = value
    minor = 1 if line[4] != b"0" else 0
    _check_host(headers, minor)
    if method not in METHODS:
        raise RequestError(501, f"the method {method[:32]} is unknown here")
    path, query = _split_target(method, target)
    return RequestHead(method, target, path, query, headers, minor)


def _check_host(headers: dict[str, str], minor: int) -> None:
    host = headers.get("host")
    if host is None:
        if minor:
            raise RequestError(400, "HTTP/1.1 requests need a Host header")
    elif _HOST.fullmatch(host) is None:
        raise RequestError(400, "the Host header is malformed")


def _split_target(method: str, target: str) -> tuple[str, str]:
    """Path and query of a target in origin, absolute or asterisk form (RFC 9112 section 3.2)."""
    if target[0] != "/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None and _HOST.fullmatch(absolute[1]) is not None:
            target = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"
        elif target == "*" and method == "OPTIONS":
            return "*", ""
        else:
            raise RequestError(400, "the request target is malformed")
    if "#" in target:
        raise RequestError(400, "the request target has a fragment")
    path, _, query = target.partition("?")
    if "%" in path:
        if _BAD_ESCAPE.search(path):
            raise RequestError(400, "the request target has a malformed escape")
        path = _UNRESERVED.sub(lambda escape: chr(int(escape[0][1:], 16)), path)
    return path, query


def decode_path(part: str, any_character: bool = False) -> str:
    """A part of a path, percent-decoded; control characters only with `any_character`.

    Raises: RequestError (400).
    """
    if "%" not in part:
        return part
    try:
        text = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError(400, "the path is not UTF-8") from None
    if not any_character and not text.isprintable():
        raise RequestError(400, "the path has a control character")
    return text


def framing_of(head: RequestHead) -> Framing:
    """How long the request's body is.

    Raises: RequestError for every shape that two parsers could read in two ways
    (RFC 9112 sections 6.1 to 6.3); the connection has to be closed then.
    """
    coding = head.headers.get("transfer-encoding")
    length = head.headers.get("content-length")
    if coding is not None:
        if length is not None:
            raise RequestError(400, "both Content-Length and Transfer-Encoding")
        if not head.minor:
            raise RequestError(400, "Transfer-Encoding in HTTP/1.0")
        if coding.lower() != "chunked":
            raise RequestError(501, "the only transfer coding known here is chunked")
        return Framing(0, True)
    if length is None:
        return Framing(0, False)
    if _DIGITS.fullmatch(length) is None:
        raise RequestError(400, "Content-Length is not a number")
    return Framing(int(length), False)
