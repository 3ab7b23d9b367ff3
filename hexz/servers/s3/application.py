"""A read-only S3 endpoint over the catalog: an application for `hexz.servers.http.server.HttpSite`.

A handler decides in this order: is the request signed (`S3Policy`, before this), may the
key see that bucket (403), is the operation one that a read-only endpoint has (405, 501),
is there such a bucket and key (404), are the arguments sound (400).
"""

from __future__ import annotations

import contextlib
from functools import partial

from hexz.catalog import Catalog, Lease
from hexz.metrics import Purpose
from hexz.metrics.labels import LIST, READ
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.dates import format_date
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.responses import Representation, Response, represent
from hexz.protocol.pages import list_page
from hexz.protocol.s3 import listing
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.keys import MAX_KEY, Address, address_of, bucket_of
from hexz.protocol.s3.requests import (
    BUCKET_READS,
    OBJECT_READS,
    list_request,
    overrides,
    reading_head,
    wanted_attributes,
)
from hexz.protocol.s3.sigv4 import EMPTY_SHA256, query_pairs
from hexz.protocol.s3.xml import Bucket, attributes_document, document, list_buckets, list_objects
from hexz.servers.http.application import Request
from hexz.servers.http.objects import ARCHIVED_GUARD, OCTETS
from hexz.servers.s3.access import KeyFile
from hexz.servers.s3.answers import BUCKET_REGION, document_answer, refusal_of, with_ids
from hexz.servers.s3.objects import Buckets, Objects
from hexz.snapshot import Snapshot

__all__ = ["S3Application"]

ALLOW = (("Allow", "GET, HEAD"),)
MAX_REFUSED_BODY = 64 << 20
"""A body that is not wanted is read away up to so many bytes: a client cut off while it sends never sees why."""
DISCARD = 64 << 10
PARENTS_DENIED = (
    "A parent of this snapshot is in no bucket that the key may read, and in no folder given with --parent-dir."
)
MAX_BUCKETS = 10_000
"""Most buckets of one list whose client names no number (Amazon S3 API Reference, "ListBuckets")."""


class S3Application:
    """Answers all of S3's requests."""

    def __init__(self, catalog: Catalog, keys: KeyFile | None = None, domains: tuple[str, ...] = ()) -> None:
        """`domains` are those under which a host name is a bucket: ``BUCKET.DOMAIN``."""
        self._buckets = Buckets(catalog)
        self._keys = keys
        self._domains = tuple(domain.lower() for domain in domains)

    def respond(self, request: Request) -> Response:
        """The response to any request."""
        try:
            return self._respond(request)
        except S3Error as error:
            _read_away(request)
            return refusal_of(error, request.head)

    def _respond(self, request: Request) -> Response:
        head = request.head
        address = address_of(head.headers.get("host", ""), head.path, self._domains)
        if address.bucket and not self._may_read(request.token, address.bucket):
            raise S3Error("AccessDenied")
        if head.method not in ("GET", "HEAD"):
            raise S3Error("MethodNotAllowed", None, (("Method", head.method),), ALLOW)
        _check_empty(request)
        parameters = dict(query_pairs(head.query))
        if not address.bucket:
            if address.key:
                raise S3Error("InvalidURI")
            return with_ids(self._list_buckets(request.token, parameters))
        lease = self._buckets.lease(address.bucket)
        kept = False
        try:
            if not address.key:
                response = self._bucket(head, address.bucket, lease, parameters)
            else:
                response = self._object(request, address, lease, parameters)
                kept = response.done is not None
            stream = address.key if address.key in lease.snapshot.streams else ""
            purpose = Purpose(lease.metrics, READ if address.key else LIST, stream)
            return with_ids(response)._replace(purpose=purpose)
        finally:
            if not kept:
                lease.release()

    def _may_read(self, access_key: str | None, bucket: str) -> bool:
        if self._keys is None or access_key is None:  # the policy has let the anonymous in
            return True
        return self._keys.may_read(access_key, (bucket, bucket_of(bucket)))

    def _check_parents(self, access_key: str | None, snapshot: Snapshot) -> None:
        """See that a key for some buckets gets nothing out of others: a thin snapshot can name any file beside it.

        Raises: S3Error.
        """
        if not snapshot.thin or self._keys is None or access_key is None or self._keys.may_read_all(access_key):
            return
        context = snapshot.context
        for ancestor in snapshot.lineage.ancestors():
            path = ancestor.file.path
            readable = any(self._may_read(access_key, name) for name in self._buckets.names_of(path))
            if not readable and not context.in_parent_dirs(path):
                raise S3Error("AccessDenied", PARENTS_DENIED)

    # The service

    def _list_buckets(self, access_key: str | None, parameters: dict[str, str]) -> Response:
        visible = {bucket: name for bucket, name in self._buckets.names().items() if self._may_read(access_key, bucket)}
        after = listing.parse_token(parameters["continuation-token"]) if "continuation-token" in parameters else ""
        prefix = parameters.get("prefix", "")
        limit = listing.parse_limit(parameters.get("max-buckets")) if "max-buckets" in parameters else MAX_BUCKETS
        page = list_page(list(visible), prefix, "", after, limit)
        buckets = [
            Bucket(bucket_of(name), lease.snapshot.mtime)
            for name, lease in self._buckets.leases(visible[bucket] for bucket in page.keys)
        ]
        token = listing.continuation_token(page.last) if page.truncated else None
        return document_answer(list_buckets(buckets, prefix, token))

    # A bucket

    def _bucket(self, head: RequestHead, bucket: str, lease: Lease, parameters: dict[str, str]) -> Response:
        if head.method == "HEAD":
            return Response(200, (BUCKET_REGION,))
        for name, (root, content) in BUCKET_READS.items():
            if name in parameters:
                if not root:
                    raise S3Error(content, None, (("BucketName", bucket),))
                return document_answer(document(root, content))
        asked = list_request(bucket, parameters)
        objects = Objects(lease)
        after = listing.parse_token(asked.token) if asked.token else asked.start or ""
        page = list_page(objects.keys(), asked.prefix, asked.delimiter, after, asked.limit)
        return document_answer(list_objects(asked, page, [objects.entry(key) for key in page.keys]), (BUCKET_REGION,))

    # An object

    def _object(self, request: Request, address: Address, lease: Lease, parameters: dict[str, str]) -> Response:
        head = request.head
        if len(address.key.encode()) > MAX_KEY:
            raise S3Error("InvalidURI", "Your key is too long")
        objects = Objects(lease)
        contents = objects.get(address.key)
        if not objects.is_own(address.key):
            self._check_parents(request.token, lease.snapshot)
        if parameters.get("versionId", "null") != "null":
            raise S3Error("NoSuchVersion", None, (("Key", address.key),))
        for name, (root, content) in OBJECT_READS.items():
            if name in parameters:
                if not root:
                    raise S3Error(content)
                return document_answer(document(root, content))
        if "attributes" in parameters:
            wanted = wanted_attributes(head.headers)
            modified = ("Last-Modified", format_date(lease.snapshot.mtime))
            return document_answer(attributes_document(wanted, contents.etag, contents.size), (modified,))
        headers, kind = overrides(parameters, signed=self._signed(request, parameters))
        if (kind or contents.content_type) != OCTETS:
            headers = (*headers, *ARCHIVED_GUARD)
        if "partNumber" in parameters:
            headers = (*headers, ("x-amz-mp-parts-count", "1"))
        snapshot = lease.snapshot
        repeats = not parameters and address.key in snapshot.streams
        valid = partial(self._buckets.serves, lease.name, snapshot) if repeats else None
        validators = Validators(contents.etag, snapshot.mtime)
        representation = Representation(
            contents.source,
            contents.size,
            kind or contents.content_type,
            validators,
            headers,
            valid,
            refuses_empty=True,
        )
        response = represent(reading_head(head, parameters, contents.size), representation, 0, lease.release)
        return _as_s3(response._replace(when_ended=lease.when_ended), head, contents.size)

    def _signed(self, request: Request, parameters: dict[str, str]) -> bool:
        """Whether the request carries a signature, which nobody can check where there are no keys."""
        if self._keys is None:
            return "authorization" in request.head.headers or "X-Amz-Signature" in parameters
        return request.token is not None


def _check_empty(request: Request) -> None:
    """Reads have no body, so the digest of it that is signed has to be that of nothing."""
    if not request.body.finished:
        raise S3Error("InvalidRequest", "A request that reads has no body.")
    digest = request.head.headers.get("x-amz-content-sha256", "")
    if len(digest) == len(EMPTY_SHA256) and digest != EMPTY_SHA256:
        details = (("ClientComputedContentSHA256", digest), ("S3ComputedContentSHA256", EMPTY_SHA256))
        raise S3Error("XAmzContentSHA256Mismatch", None, details)


def _as_s3(response: Response, head: RequestHead, size: int) -> Response:
    """The answer about an object as S3 gives it: errors are documents; HEAD is not to be repeated from the cache."""
    if response.status == 416:
        details = (("RangeRequested", head.headers.get("range", "")), ("ActualObjectSize", str(size)))
        error = S3Error("InvalidRange", None, details, (("Content-Range", f"bytes */{size}"),))
    elif response.status == 412:
        condition = "If-Match" if "if-match" in head.headers else "If-Unmodified-Since"
        error = S3Error("PreconditionFailed", None, (("Condition", condition),))
    else:
        return response._replace(repeat=None) if head.method == "HEAD" else response
    raise error


def _read_away(request: Request) -> None:
    """Read what the client still sends of a body that is not wanted, within bounds."""
    body = request.body
    if body.finished or body.untouched or (body.length or 0) > MAX_REFUSED_BODY:
        return
    with contextlib.suppress(RequestError, OSError):  # the connection is closed then, which the framework sees to
        while not body.finished and body.taken < MAX_REFUSED_BODY:
            body.read(DISCARD)
