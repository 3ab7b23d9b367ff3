"""Answers in S3's shape: documents, errors, and the ids that every one carries."""

from __future__ import annotations

import base64
import os

from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.responses import Response
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.xml import error_document
from hexz.servers.http.application import Rules

__all__ = ["BUCKET_REGION", "RULES", "document_answer", "refusal_of", "with_ids"]

REGION = "us-east-1"
BUCKET_REGION = ("x-amz-bucket-region", REGION)

_XML = ("Content-Type", "application/xml")


def _ids() -> tuple[str, str]:
    random = os.urandom(32)
    return random[:8].hex().upper(), base64.b64encode(random[8:]).decode("ascii")


def with_ids(response: Response) -> Response:
    """`response` with a request id."""
    request_id, host_id = _ids()
    return response._replace(headers=(("x-amz-request-id", request_id), ("x-amz-id-2", host_id), *response.headers))


def document_answer(document: bytes, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """200 with a document."""
    return Response(200, (_XML, *headers), (document,), len(document))


def _error_answer(error: S3Error, resource: str) -> Response:
    """A refusal with its document, ids included."""
    request_id, host_id = _ids()
    body = error_document(error, resource, request_id, host_id)
    headers = (("x-amz-request-id", request_id), ("x-amz-id-2", host_id), _XML, *error.headers)
    return Response(error.status, headers, (body,), len(body))


def refusal_of(error: S3Error, head: RequestHead | None) -> Response:
    """The refusal of one request; without a `head` of one that is not understood.

    Clients find out a bucket's region by an unsigned HEAD of it (Amazon S3 API Reference, "HeadBucket"), so a 403 to
    that tells it, for any name: it says nothing of whether there is such a bucket.
    """
    response = _error_answer(error, head.path if head is not None else "")
    if head is None:
        return response
    # Where the host names the bucket this may be a key, which may know it too.
    if response.status == 403 and head.method == "HEAD" and "/" not in head.path[1:].rstrip("/"):
        return response._replace(headers=(*response.headers, BUCKET_REGION))
    return response


_CODES = {404: "NoSuchKey", 408: "RequestTimeout", 414: "InvalidURI", 501: "NotImplemented", 503: "ServiceUnavailable"}


def _refused(status: int, message: str, _: RequestError | None) -> Response:
    """What the connection itself refuses: requests that are none, and reads that fail."""
    code = _CODES.get(status, "InternalError" if status >= 500 else "InvalidRequest")
    return _error_answer(S3Error(code, message), "")._replace(status=status)


RULES = Rules(_refused, spare_paths=frozenset())
"""S3's errors for everything that goes wrong before or behind the application."""
