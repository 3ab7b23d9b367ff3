"""What a client says of the page of a listing that it wants.

Source: Amazon S3 API Reference, "ListObjectsV2".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from hexz.protocol.pages import MAX_ENTRIES
from hexz.protocol.s3.errors import S3Error
from hexz.units import parse_number

__all__ = ["MAX_KEYS", "continuation_token", "parse_encoding", "parse_limit", "parse_token"]

MAX_KEYS = MAX_ENTRIES
"""Most entries of one page, and how many there are when the client names no number."""
MAX_TOKEN = 8192


def parse_limit(text: str | None) -> int:
    """The value of max-keys; 1000 when there is none.

    Raises: S3Error.
    """
    if not text:
        return MAX_KEYS
    number = parse_number(text, 10)
    if number is None or number > 0x7FFFFFFF:
        raise S3Error(
            "InvalidArgument",
            "Argument maxKeys must be an integer between 0 and 2147483647",
            (("ArgumentName", "maxKeys"), ("ArgumentValue", text[:100])),
        )
    return min(number, MAX_KEYS)


def parse_encoding(parameters: Mapping[str, str]) -> bool:
    """Whether names are to be percent-encoded.

    Raises: S3Error.
    """
    value = parameters.get("encoding-type", "")
    if value not in ("", "url"):
        details = (("ArgumentName", "encoding-type"), ("ArgumentValue", value[:100]))
        raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request", details)
    return bool(value)


def continuation_token(last: str) -> str:
    """An opaque token that says where the next page begins."""
    return base64.urlsafe_b64encode(b"1" + last.encode()).decode("ascii")


def parse_token(token: str) -> str:
    """The entry behind which a page goes on.

    Raises: S3Error.
    """
    try:
        data = base64.b64decode(token.encode("ascii"), b"-_", validate=True) if len(token) <= MAX_TOKEN else b""
        if data[:1] == b"1":
            return data[1:].decode()
    except (ValueError, binascii.Error):
        data = b""
    details = (("ArgumentName", "continuation-token"),)
    raise S3Error("InvalidArgument", "The continuation token provided is incorrect", details)
