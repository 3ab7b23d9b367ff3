"""Asking a store: the signature of a request that we send, and what the store says when it refuses one.

Source: Amazon S3 API Reference, "Authenticating Requests (AWS Signature Version 4)" and "Error responses".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from hexz.printable import printable
from hexz.protocol.s3.sigv4 import (
    ALGORITHM,
    EMPTY_SHA256,
    Scope,
    canonical_request,
    query_pairs,
    sign,
    signing_key,
    string_to_sign,
)

__all__ = ["MAX_DOCUMENT", "MAX_SAID", "Keys", "Signer", "is_region", "region_wanted", "said"]

MAX_DOCUMENT = 16384
"""So much of an error's document is looked at, bytes; those of stores have some hundred."""
MAX_SAID = 300
"""Longest code or message that is taken from one, characters, unless the caller says otherwise."""

_SIGNED = ("range", "if-match")
"""What is signed beside Host and ``x-amz-*``: that which decides about the bytes that come."""
_REGION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
_ERROR = re.compile(r"\ufeff?\s*(?:<\?xml[^<>]*\?>\s*)?<Error[\s>]")
_REFERENCE = re.compile(r"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_ELSEWHERE = ("AuthorizationHeaderMalformed", "PermanentRedirect")
"""The codes of a request that is right but for its region."""


class Keys(NamedTuple):
    """Who asks: an access key and its secret; `token` is that of a session, `expires` in seconds since 1970.

    Whoever makes one has seen that the access key and the token may stand in a header.
    """

    access_key: str
    secret: str
    token: str | None = None
    expires: float | None = None

    def __repr__(self) -> str:
        """Without what nobody may read in a log."""
        return f"Keys({self.access_key!r}, expires={self.expires!r})"


class Signer:
    """Signs requests to the S3 of one region.  Threads share one: the key of the day is replaced as a whole."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._cached = ("", "", b"")

    def headers(
        self, method: str, host: str, path: str, query: str, headers: Mapping[str, str], keys: Keys, now: float
    ) -> dict[str, str]:
        """The headers to add to a request without a body, by names in lower case; `now` in seconds since 1970.

        `host` is the Host header; `path` and `query` are as sent, percent-encoded.  `headers` are the others that
        will be sent, of which those that begin with ``x-amz-``, Range and If-Match are signed; those that are
        given back are not to be among them.
        """
        signed_at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        added = {"x-amz-date": signed_at, "x-amz-content-sha256": EMPTY_SHA256}
        if keys.token is not None:
            added["x-amz-security-token"] = keys.token
        signed = {"host": host, **added}
        for name, value in headers.items():
            lower = name.lower()
            if lower in _SIGNED or lower.startswith("x-amz-"):
                signed[lower] = value
        scope = Scope(signed_at[:8], self.region, "s3")
        canonical = canonical_request(method, path, query_pairs(query), sorted(signed.items()), EMPTY_SHA256)
        signature = sign(self._key(keys.secret, scope), string_to_sign(signed_at, scope, canonical))
        added["authorization"] = (
            f"{ALGORITHM} Credential={keys.access_key}/{scope},SignedHeaders={';'.join(sorted(signed))},"
            f"Signature={signature}"
        )
        return added

    def _key(self, secret: str, scope: Scope) -> bytes:
        old_secret, day, key = self._cached
        if (old_secret, day) != (secret, scope.day):
            key = signing_key(secret, scope)
            self._cached = (secret, scope.day, key)
        return key


def said(body: bytes, limit: int = MAX_SAID) -> tuple[str, str]:
    """The code and the message of an error's document, each of at most `limit` characters that may go into a log.

    Empty where there is none.  Nothing is expanded but references to single characters, and a document with a type
    of its own (``<!DOCTYPE``) is none of S3's.
    """
    text = _document(body)
    return _element(text, "Code", limit), _element(text, "Message", limit)


def is_region(text: str) -> bool:
    """Whether `text` can be the name of a region: letters, digits and hyphens, 64 at most, as in a host's name."""
    return _REGION.fullmatch(text) is not None


def region_wanted(headers: Mapping[str, str], body: bytes) -> str | None:
    """The region for which a request has to be signed, if its answer says so; `headers` by names in lower case."""
    region = headers.get("x-amz-bucket-region", "")
    if not region:
        text = _document(body)
        if _element(text, "Code", MAX_SAID) in _ELSEWHERE:
            region = _element(text, "Region", MAX_SAID)
    return region if is_region(region) else None


def _document(body: bytes) -> str:
    text = body[:MAX_DOCUMENT].decode("utf-8", "replace")
    return text if _ERROR.match(text) is not None and "<!DOCTYPE" not in text else ""


def _element(text: str, name: str, limit: int) -> str:
    """The text of the first element `name` without others in it; whether it is in the right place does not matter."""
    found = re.search(rf"<{name}>([^<]*)</{name}\s*>", text)
    if found is None:
        return ""
    return printable(_REFERENCE.sub(_character, found[1]).strip())[:limit]


def _character(reference: re.Match[str]) -> str:
    decimal, hexadecimal, named = reference.groups()
    if named:
        return _NAMED[named]
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else "\ufffd"
