"""What a request's query and headers ask of an operation."""

from __future__ import annotations

import re

from hexz.protocol.http.head import RequestHead
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.listing import parse_encoding, parse_limit
from hexz.protocol.s3.xml import ACL, ListRequest
from hexz.units import parse_number

__all__ = ["BUCKET_READS", "OBJECT_READS", "list_request", "overrides", "reading_head", "wanted_attributes"]

_UPLOADS = "<KeyMarker/><UploadIdMarker/><MaxUploads>1000</MaxUploads><IsTruncated>false</IsTruncated>"

# By the query parameter that asks for it: the document's element and content, or "" and the error that S3
# gives when nothing is configured.
BUCKET_READS = {
    "location": ("LocationConstraint", ""),
    "versioning": ("VersioningConfiguration", ""),
    "acl": ("AccessControlPolicy", ACL),
    "logging": ("BucketLoggingStatus", ""),
    "notification": ("NotificationConfiguration", ""),
    "requestPayment": ("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
    "accelerate": ("AccelerateConfiguration", ""),
    "uploads": ("ListMultipartUploadsResult", _UPLOADS),
    "policy": ("", "NoSuchBucketPolicy"),
    "policyStatus": ("", "NoSuchBucketPolicy"),
    "cors": ("", "NoSuchCORSConfiguration"),
    "tagging": ("", "NoSuchTagSet"),
    "encryption": ("", "ServerSideEncryptionConfigurationNotFoundError"),
    "object-lock": ("", "ObjectLockConfigurationNotFoundError"),
    "lifecycle": ("", "NoSuchLifecycleConfiguration"),
    "website": ("", "NoSuchWebsiteConfiguration"),
    "replication": ("", "ReplicationConfigurationNotFoundError"),
    "publicAccessBlock": ("", "NoSuchPublicAccessBlockConfiguration"),
    "ownershipControls": ("", "OwnershipControlsNotFoundError"),
    **dict.fromkeys(
        ("versions", "analytics", "inventory", "metrics", "intelligent-tiering", "session", "metadataTable"),
        ("", "NotImplemented"),
    ),
}
OBJECT_READS = {
    "acl": ("AccessControlPolicy", ACL),
    "tagging": ("Tagging", "<TagSet/>"),
    "retention": ("", "NoSuchObjectLockConfiguration"),
    "legal-hold": ("", "NoSuchObjectLockConfiguration"),
    "uploadId": ("", "NoSuchUpload"),
    "torrent": ("", "NotImplemented"),
}
ATTRIBUTES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})
_OVERRIDES = {
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
    "response-content-language": "Content-Language",
    "response-content-type": "Content-Type",
    "response-expires": "Expires",
}
_VALUE = re.compile(r"[\t -~\xa0-\xff]{0,1024}")
_BARE_TAGS = re.compile(r"[0-9A-Za-z-]+")


def list_request(bucket: str, parameters: dict[str, str]) -> ListRequest:
    """What ListObjects is to give.

    Raises: S3Error.
    """
    kind = parameters.get("list-type")
    if kind not in (None, "", "2"):
        argument = (("ArgumentName", "list-type"), ("ArgumentValue", kind[:100]))
        raise S3Error("InvalidArgument", "Invalid List Type specified in Request", argument)
    prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
    limit, encoded = parse_limit(parameters.get("max-keys")), parse_encoding(parameters)
    for name in ("prefix", "delimiter", "marker", "start-after"):
        try:
            parameters.get(name, "").encode()
        except UnicodeEncodeError:
            raise S3Error("InvalidArgument", "An argument is not UTF-8", (("ArgumentName", name),)) from None
    if kind == "2":
        owner = parameters.get("fetch-owner") == "true"
        token = parameters.get("continuation-token")
        return ListRequest(2, bucket, prefix, delimiter, limit, encoded, parameters.get("start-after"), token, owner)
    return ListRequest(1, bucket, prefix, delimiter, limit, encoded, parameters.get("marker"), None, True)


def overrides(parameters: dict[str, str], signed: bool) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Headers that the query wants in the answer, and the content type if it names one.

    Raises: S3Error.
    """
    wanted = [(header, parameters[name]) for name, header in _OVERRIDES.items() if name in parameters]
    if not wanted:
        return (), None
    if not signed:
        raise S3Error("InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests.")
    for header, value in wanted:
        if _VALUE.fullmatch(value) is None:
            details = (("ArgumentName", f"response-{header.lower()}"),)
            raise S3Error("InvalidArgument", "Header value cannot be represented using ISO-8859-1.", details)
    kind = parameters.get("response-content-type")
    return tuple(pair for pair in wanted if pair[0] != "Content-Type"), kind


def reading_head(head: RequestHead, parameters: dict[str, str], size: int) -> RequestHead:
    """`head` as HTTP's rules are to see it.

    HEAD may ask for ranges too, several ranges count as none, a part is a range (each object has
    one part, which is all of it), and tags may come without quotes.
    Raises: S3Error.
    """
    headers = head.headers
    part = parameters.get("partNumber")
    if part is not None:
        number = parse_number(part, 5)
        if number is None or not 1 <= number <= 10000:
            details = (("ArgumentName", "partNumber"), ("ArgumentValue", part[:100]))
            raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive", details)
        if "range" in headers:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
        if number != 1:
            raise S3Error("InvalidPartNumber", None, (("PartNumberRequested", part), ("ActualPartCount", "1")))
        if size:
            headers = {**headers, "range": "bytes=0-"}
    elif "," in headers.get("range", ""):
        headers = {name: value for name, value in headers.items() if name != "range"}
    for name in ("if-match", "if-none-match"):
        if name in headers and _BARE_TAGS.fullmatch(headers[name]) is not None:
            headers = {**headers, name: f'"{headers[name]}"'}
    if head.method == "HEAD" or headers is not head.headers:
        return head._replace(method="GET", headers=headers)
    return head


def wanted_attributes(headers: dict[str, str]) -> frozenset[str]:
    """What GetObjectAttributes is to tell.

    Raises: S3Error.
    """
    wanted = frozenset(filter(None, (word.strip() for word in headers.get("x-amz-object-attributes", "").split(","))))
    if not wanted or not wanted <= ATTRIBUTES:
        details = (("ArgumentName", "x-amz-object-attributes"),)
        raise S3Error("InvalidArgument", "Invalid attribute name specified.", details)
    return wanted
