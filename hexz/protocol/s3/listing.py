"""One page of a listing: prefix, delimiter, where to go on.

Source: Amazon S3 API Reference, "ListObjectsV2"; "Organizing objects using prefixes".
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hexz.protocol.s3.errors import S3Error

__all__ = ["MAX_KEYS", "Page", "continuation_token", "list_page", "parse_encoding", "parse_limit", "parse_token"]

MAX_KEYS = 1000
"""Most entries of one page, and how many there are when the client names no number."""
MAX_TOKEN = 8192
_LAST_CHARACTER = 0x10FFFF


class Page(NamedTuple):
    """Keys and common prefixes, both sorted; `last` is the last of either, "" when there is none."""

    keys: list[str]
    prefixes: list[str]
    truncated: bool
    last: str

    @property
    def total(self) -> int:
        """How many entries it has."""
        return len(self.keys) + len(self.prefixes)


def list_page(keys: Sequence[str], prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """Up to `limit` entries behind `after` of the sorted `keys` that begin with `prefix`.

    Keys with `delimiter` behind the prefix are rolled up into one common prefix, which counts as one
    entry and is found without a look at each of them.
    Strings compare by code point, which is the order of their UTF-8 bytes.
    """
    page = Page([], [], False, "")
    if not limit:
        return page
    last = ""
    position = bisect_left(keys, prefix)
    if after >= prefix:
        position = max(position, bisect_right(keys, after))
    while position < len(keys) and keys[position].startswith(prefix):
        key = keys[position]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        group = key[: cut + len(delimiter)] if cut >= 0 else ""
        if not group or group > after:
            if page.total == limit:
                return page._replace(truncated=True, last=last)
            last = group or key
            (page.prefixes if group else page.keys).append(last)
        position = bisect_left(keys, _behind(group), position) if group else position + 1
    return page._replace(last=last)


def _behind(prefix: str) -> str:
    """The first string in order that is behind all strings that begin with `prefix`."""
    kept = prefix.rstrip(chr(_LAST_CHARACTER))
    if not kept:
        return prefix + chr(_LAST_CHARACTER) * 1024  # behind any key: they have 1024 bytes at most
    return kept[:-1] + chr(ord(kept[-1]) + 1)


def parse_limit(text: str | None) -> int:
    """The value of max-keys; 1000 when there is none.

    Raises: S3Error.
    """
    if not text:
        return MAX_KEYS
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > 0x7FFFFFFF:
        raise S3Error(
            "InvalidArgument",
            "Argument maxKeys must be an integer between 0 and 2147483647",
            (("ArgumentName", "maxKeys"), ("ArgumentValue", text[:100])),
        )
    return min(int(text), MAX_KEYS)


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
