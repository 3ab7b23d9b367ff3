"""What a server answers to a ranged GET of ours: its head, and whether it is the span that was asked for.

Stores and the caches before them ignore conditions, answer with the whole, or with a page for people.  So nothing
is believed that the head of the very answer does not say.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from hexz.protocol.http.errors import NoSpan, OtherVersion, ReplyError

__all__ = [
    "MAX_REPLY_HEAD",
    "MAX_REPLY_HEADERS",
    "ReplyHead",
    "ReplySpan",
    "Version",
    "check_span",
    "check_version",
    "is_encoded",
    "is_part",
    "parse_reply_head",
    "total_of",
    "version_of",
]

MAX_REPLY_HEAD = 32 << 10
"""Longest status line and header section together, bytes."""
MAX_REPLY_HEADERS = 100
MAX_ETAG = 1024
"""Longest entity tag that is sent back with each request, bytes."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_DIGITS = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_TOTAL = re.compile(r"bytes (?:\*|[0-9]{1,18}-[0-9]{1,18})/([0-9]{1,18})")
_ETAG = re.compile(r"[!#-~\x80-\xff]+|\"[!#-~\x80-\xff]*\"")
_SINGLE = frozenset({"content-length", "content-range", "content-encoding", "etag", "last-modified", "location"})


class ReplyHead(NamedTuple):
    """The head of an answer; header names in lower case, and `length` of the body in bytes, None where it says none."""

    status: int
    headers: dict[str, str]
    minor: int
    length: int | None

    @property
    def keeps_connection(self) -> bool:
        """Whether another request may follow on this connection (RFC 9112 section 9.3)."""
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        return "close" not in options and (self.minor > 0 or "keep-alive" in options)


class Version(NamedTuple):
    """Which bytes a name stood for: the entity tag as it was sent, or the time of the last change; the size in bytes.

    One of the two texts may be empty.
    """

    etag: str
    modified: str
    size: int


class ReplySpan(NamedTuple):
    """Where the body of an answer lies in the whole, bytes; and of which version it is."""

    start: int
    length: int
    version: Version


def parse_reply_head(head: bytes) -> ReplyHead:
    """The head in `head`, which ends before the empty line.

    Raises: ReplyError.
    Spec: RFC 9112 sections 4, 5 and 6.
    """
    lines = head.split(b"\r\n")
    line = _STATUS_LINE.fullmatch(lines[0])
    if line is None:
        raise ReplyError("it does not begin like HTTP/1.1")
    if len(lines) > MAX_REPLY_HEADERS + 1:
        raise ReplyError(f"more than {MAX_REPLY_HEADERS} header lines")
    headers: dict[str, str] = {}
    for raw in lines[1:]:
        name, colon, value = raw.partition(b":")
        if not colon or _NAME.fullmatch(name) is None or _BAD_VALUE.search(value) is not None:
            raise ReplyError("a header line is malformed")
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key in _SINGLE and headers[key] != text:
                raise ReplyError(f"two different values of {key}")
            text = headers[key] if key in _SINGLE else f"{headers[key]}, {text}"
        headers[key] = text
    return ReplyHead(int(line[2]), headers, int(line[1]), _length(headers))


def _length(headers: dict[str, str]) -> int | None:
    if "transfer-encoding" in headers:
        return None  # no store sends a range in chunks; what does is read to its end by nobody
    length = headers.get("content-length")
    if length is None:
        return None
    if _DIGITS.fullmatch(length) is None:
        raise ReplyError("its Content-Length is no number")
    return int(length)


def check_span(head: ReplyHead, start: int | None, length: int, pinned: Version | None) -> ReplySpan:
    """See that an answer has just the span that was asked for, of the version that is `pinned`, if any is.

    `start` is None where the last `length` bytes were asked for.  A span may end where the whole does.  A 200 that
    says which range it has counts: one store in use (rclone's) means 206 by it.
    Raises: NoSpan when it is not; OtherVersion, which is for good.
    Spec: RFC 9110 sections 8.8.3, 14.4 and 15.3.7.
    """
    said = head.headers
    if not is_part(head):
        raise NoSpan(f"it answered {head.status} to a range")
    if is_encoded(head):
        raise NoSpan(f"the answer is encoded ({said['content-encoding'][:32]!r}), although that was not asked for")
    place = _CONTENT_RANGE.fullmatch(said.get("content-range", ""))
    if place is None:
        raise NoSpan("the answer does not say which range it is")
    first, last, size = int(place[1]), int(place[2]), int(place[3])
    version = version_of(head, size)
    if pinned is not None:
        check_version(version, pinned)
    wanted = (max(size - length, 0), size) if start is None else (start, min(start + length, size))
    if (first, last + 1) != wanted:
        raise NoSpan(f"the answer has bytes {first} to {last}, asked for were {wanted[0]} to {wanted[1] - 1}")
    if head.length is not None and head.length != last + 1 - first:
        raise NoSpan(f"the answer has {head.length} bytes, its range {last + 1 - first}")
    return ReplySpan(first, last + 1 - first, version)


def is_encoded(head: ReplyHead) -> bool:
    """Whether the body is not the bytes themselves (RFC 9110 section 8.4)."""
    return head.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")


def is_part(head: ReplyHead) -> bool:
    """Whether an answer is meant to be a part of the whole."""
    return head.status == 206 or (head.status == 200 and "content-range" in head.headers)


def total_of(head: ReplyHead) -> int | None:
    """The size of the whole in bytes, where a 206 or 416 says it."""
    total = _TOTAL.fullmatch(head.headers.get("content-range", ""))
    return None if total is None else int(total[1])


def version_of(head: ReplyHead, size: int) -> Version:
    """What an answer says of the version that it has a part of; a weak tag says nothing (RFC 9110 section 8.8.1)."""
    etag = head.headers.get("etag", "")
    if etag.startswith("W/") or len(etag) > MAX_ETAG or _ETAG.fullmatch(etag) is None:
        etag = ""
    return Version(etag, head.headers.get("last-modified", "")[:64], size)


def check_version(version: Version, pinned: Version) -> None:
    """See that an answer is of the version that was opened.

    Raises: OtherVersion; NoSpan where the answer does not tell.
    """
    if version.size != pinned.size:
        raise OtherVersion(f"it has {version.size} bytes now, and had {pinned.size}")
    if pinned.etag:
        if not version.etag:
            raise NoSpan("the answer has no ETag, although there was one")
        if version.etag.strip('"') != pinned.etag.strip('"'):  # some servers leave out the quotes now and then
            raise OtherVersion(f"its ETag is {version.etag[:80]} now, and was {pinned.etag[:80]}")
    elif version.modified != pinned.modified:
        raise OtherVersion(f"it was modified {version.modified or 'at an unknown time'}, not {pinned.modified}")
