"""The documents of S3, as bytes.

Source: Amazon S3 API Reference, the response syntax of each operation.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from hexz.protocol.pages import ListingPage
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.listing import continuation_token

__all__ = [
    "ACL",
    "OWNER_ID",
    "Bucket",
    "ObjectEntry",
    "ListRequest",
    "attributes_document",
    "document",
    "element",
    "error_document",
    "list_buckets",
    "list_objects",
]

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
OWNER_ID = "hexz-serve"
_OWNER = f"<Owner><ID>{OWNER_ID}</ID><DisplayName>{OWNER_ID}</DisplayName></Owner>"
_SPECIAL = re.compile('[&<>"\x00-\x1f\x7f-\x9f\ufffe\uffff]')
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}

ACL = (
    f'{_OWNER}<AccessControlList><Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    f' xsi:type="CanonicalUser"><ID>{OWNER_ID}</ID><DisplayName>{OWNER_ID}</DisplayName></Grantee>'
    "<Permission>READ</Permission></Grant></AccessControlList>"
)


class Bucket(NamedTuple):
    """A bucket in a list; `created` in seconds since 1970."""

    name: str
    created: float


class ObjectEntry(NamedTuple):
    """An object in a list; `modified` in seconds since 1970, `etag` without quotes."""

    key: str
    modified: float
    etag: str
    size: int


class ListRequest(NamedTuple):
    """What was asked of ListObjects, to be told again in its answer.

    `token` and `start` are None when they were not given; version 1 has its marker in `start`.
    """

    version: int
    bucket: str
    prefix: str
    delimiter: str
    limit: int
    encoded: bool
    start: str | None
    token: str | None
    owner: bool


def _escaped(text: str) -> str:
    """`text` for a document.

    Control characters, which XML 1.0 has no way to write, come as references to them, as from S3 itself:
    a client that has such keys asks for encoding-type=url.
    """
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda match: _NAMED.get(match[0]) or f"&#{ord(match[0])};", text)


def element(name: str, text: str | int) -> str:
    """One element with escaped text."""
    return f"<{name}>{_escaped(str(text))}</{name}>"


def document(name: str, content: str = "") -> bytes:
    """A whole document with the element `name` of S3's namespace."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{NAMESPACE}">{content}</{name}>'
    return text.encode("utf-8", "replace")  # what a client sent need not be UTF-8


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def error_document(error: S3Error, resource: str, request_id: str, host_id: str) -> bytes:
    """What is said about a refusal; it has no namespace."""
    elements = (
        ("Code", error.code),
        ("Message", error.message),
        *error.details,
        ("Resource", resource),
        ("RequestId", request_id),
        ("HostId", host_id),
    )
    content = "".join(element(name, text) for name, text in elements)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{content}</Error>'.encode("utf-8", "replace")


def list_buckets(buckets: Iterable[Bucket], prefix: str, next_token: str | None) -> bytes:
    """ListAllMyBucketsResult."""
    listed = "".join(
        f"<Bucket>{element('Name', name)}<CreationDate>{_time(created)}</CreationDate></Bucket>"
        for name, created in buckets
    )
    content = f"{_OWNER}<Buckets>{listed}</Buckets>"
    if prefix:
        content += element("Prefix", prefix)
    if next_token is not None:
        content += element("ContinuationToken", next_token)
    return document("ListAllMyBucketsResult", content)


def list_objects(asked: ListRequest, page: ListingPage, entries: Sequence[ObjectEntry]) -> bytes:
    """ListBucketResult of version 1 or 2; `entries` are the objects of `page`."""

    def name(tag: str, text: str) -> str:
        return element(tag, quote(text, safe="/") if asked.encoded else text)

    parts = [element("Name", asked.bucket), name("Prefix", asked.prefix)]
    if asked.version == 1:
        parts.append(name("Marker", asked.start or ""))
        if page.truncated and asked.delimiter:
            parts.append(name("NextMarker", page.last))
    else:
        if asked.token is not None:
            parts.append(element("ContinuationToken", asked.token))
        if page.truncated:
            parts.append(element("NextContinuationToken", continuation_token(page.last)))
        if asked.start is not None:
            parts.append(name("StartAfter", asked.start))
        parts.append(element("KeyCount", page.total))
    parts.append(element("MaxKeys", asked.limit))
    if asked.delimiter:
        parts.append(name("Delimiter", asked.delimiter))
    if asked.encoded:
        parts.append(element("EncodingType", "url"))
    parts.append(element("IsTruncated", "true" if page.truncated else "false"))
    owner = _OWNER if asked.owner else ""
    for entry in entries:
        parts.append(
            f"<Contents>{name('Key', entry.key)}<LastModified>{_time(entry.modified)}</LastModified>"
            f"<ETag>&quot;{entry.etag}&quot;</ETag><Size>{entry.size}</Size>{owner}"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    parts += [f"<CommonPrefixes>{name('Prefix', prefix)}</CommonPrefixes>" for prefix in page.prefixes]
    return document("ListBucketResult", "".join(parts))


def attributes_document(wanted: Iterable[str], etag: str, size: int) -> bytes:
    """GetObjectAttributesResponse with the attributes that are wanted and known."""
    known = {"ETag": etag, "StorageClass": "STANDARD", "ObjectSize": str(size)}
    content = "".join(element(name, known[name]) for name in known if name in wanted)
    return document("GetObjectAttributesResponse", content)
