"""AWS Signature Version 4 as S3 uses it: who signed a request, and whether the signature is right.

S3's own rules: the path is encoded once and not normalised, each ``x-amz-*`` header has
to be signed, and ``+`` in a query is a plus sign.

Source: Amazon S3 API Reference, "Authenticating Requests (AWS Signature Version 4)".
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from hexz.protocol.http.dates import parse_date
from hexz.protocol.http.head import RequestHead
from hexz.protocol.s3.errors import S3Error
from hexz.units import parse_number

__all__ = [
    "EMPTY_SHA256",
    "MAX_EXPIRES_S",
    "MAX_SKEW_S",
    "Claim",
    "Scope",
    "canonical_request",
    "check_signature",
    "check_time",
    "parse_claim",
    "query_pairs",
    "seconds_of",
    "sign",
    "signing_key",
    "string_to_sign",
]

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_SKEW_S = 15 * 60
"""How far a client's clock may be off, seconds."""
MAX_EXPIRES_S = 7 * 24 * 3600
"""Longest life of a presigned URL, seconds."""
MAX_SIGNED_HEADERS = 100

_TIME = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_DAY = re.compile(r"[0-9]{8}")
_HEX = re.compile(r"[0-9a-f]{64}")
_PAYLOAD = re.compile(r"[0-9a-f]{64}|UNSIGNED-PAYLOAD|STREAMING-[A-Z0-9-]{1,64}")
_BLANKS = re.compile(r"[ \t]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_QUERY_NEEDS = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders",
                "X-Amz-Expires")  # fmt: skip
_BOTH = (
    "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "
    "Signature query string parameter or the Authorization header should be specified"
)
_OLD = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."


class Scope(NamedTuple):
    """What a signing key is good for: a day (``YYYYMMDD``), a region, a service."""

    day: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


class Claim(NamedTuple):
    """What a request says about its signature.

    `time` is when it was signed, as sent in ISO 8601's basic form; `expires` the life of a
    presigned URL in seconds, None for a signature in a header.
    """

    access_key: str
    scope: Scope
    signed: tuple[str, ...]
    signature: str
    time: str
    payload: str
    expires: int | None = None


def query_pairs(query: str) -> list[tuple[str, str]]:
    """The parameters of a raw query, percent-decoded, in their order.

    Bytes that are not UTF-8 come as surrogates, so that nothing is lost.
    """
    pairs = []
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((_decoded(name), _decoded(value)))
    return pairs


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape") if "%" in text else text


def _encoded(text: str, safe: str = "") -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe=safe)


def parse_claim(head: RequestHead) -> Claim | None:
    """Who says to have signed `head`; None when nobody does.

    Raises: S3Error for a signature that is incomplete or of another kind.
    """
    authorization = head.headers.get("authorization")
    pairs = query_pairs(head.query) if "Signature" in head.query or "X-Amz-" in head.query else []
    parameters = dict(pairs)
    presigned = "X-Amz-Algorithm" in parameters or "X-Amz-Signature" in parameters
    old = "Signature" in parameters and "AWSAccessKeyId" in parameters
    if authorization is not None:
        if presigned or old:
            raise S3Error("InvalidArgument", _BOTH)
        claim = _header_claim(head, authorization)
    elif presigned:
        own = [name for name, _ in pairs if name.startswith("X-Amz-")]
        if len(own) != len(set(own)):
            raise S3Error("AuthorizationQueryParametersError", "A query parameter comes more than once.")
        claim = _query_claim(head, parameters)
    elif old:
        raise S3Error("InvalidRequest", _OLD)
    else:
        return None
    if "x-amz-security-token" in head.headers or "X-Amz-Security-Token" in parameters:
        raise S3Error("InvalidToken", "The keys of this server have no session tokens.")
    unsigned = [name for name in head.headers if name.startswith("x-amz-") and name not in claim.signed]
    if "host" not in claim.signed:
        unsigned.append("host")
    if unsigned:
        message = "There were headers present in the request which were not signed"
        raise S3Error("AccessDenied", message, (("HeadersNotSigned", ", ".join(sorted(unsigned))),))
    return claim


def _header_claim(head: RequestHead, authorization: str) -> Claim:
    algorithm, _, rest = authorization.partition(" ")
    if algorithm == "AWS" or algorithm.startswith("AWS4-ECDSA"):
        raise S3Error("InvalidRequest", _OLD)
    if algorithm != ALGORITHM:
        raise S3Error("InvalidArgument", "Unsupported Authorization Type")
    fields: dict[str, str] = {}
    for part in rest.split(","):
        name, equals, value = part.strip(" \t").partition("=")
        if not equals or name in fields:
            raise S3Error("AuthorizationHeaderMalformed")
        fields[name] = value
    if fields.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise S3Error(
            "AuthorizationHeaderMalformed",
            "The authorization header is malformed; it needs Credential, SignedHeaders and Signature.",
        )
    payload = head.headers.get("x-amz-content-sha256", EMPTY_SHA256)
    if _PAYLOAD.fullmatch(payload) is None:
        raise S3Error(
            "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-..., or a valid sha256 value."
        )
    code = "AuthorizationHeaderMalformed"
    access_key, scope = _credential(fields["Credential"], code)
    signed_at = _signed_at(head)
    if not signed_at.startswith(scope.day):
        raise S3Error(
            code, "The authorization header is malformed; the credential's date is not the date of the request."
        )
    return Claim(
        access_key,
        scope,
        _signed_headers(fields["SignedHeaders"], code),
        _signature(fields["Signature"], code),
        signed_at,
        payload,
    )


def _query_claim(head: RequestHead, parameters: dict[str, str]) -> Claim:
    code = "AuthorizationQueryParametersError"
    missing = [name for name in _QUERY_NEEDS if name not in parameters]
    if missing:
        needs = ", ".join(_QUERY_NEEDS)
        raise S3Error(code, f"Query-string authentication version 4 requires the parameters {needs}.")
    if parameters["X-Amz-Algorithm"] != ALGORITHM:
        raise S3Error(code, f'X-Amz-Algorithm only supports "{ALGORITHM}".')
    access_key, scope = _credential(parameters["X-Amz-Credential"], code)
    signed_at = parameters["X-Amz-Date"]
    if seconds_of(signed_at) is None:
        raise S3Error(code, "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if not signed_at.startswith(scope.day):
        raise S3Error(code, "The date of X-Amz-Credential is not that of X-Amz-Date.")
    expires = parse_number(parameters["X-Amz-Expires"], 9)
    if expires is None:
        raise S3Error(code, "X-Amz-Expires should be a number of seconds.")
    if not 1 <= expires <= MAX_EXPIRES_S:
        raise S3Error(code, f"X-Amz-Expires must be at least 1 and at most {MAX_EXPIRES_S} seconds (a week).")
    payload = head.headers.get("x-amz-content-sha256") or parameters.get("X-Amz-Content-Sha256") or UNSIGNED
    return Claim(
        access_key,
        scope,
        _signed_headers(parameters["X-Amz-SignedHeaders"], code),
        _signature(parameters["X-Amz-Signature"], code),
        signed_at,
        payload,
        expires,
    )


def _credential(text: str, code: str) -> tuple[str, Scope]:
    """``KEY/DAY/REGION/SERVICE/aws4_request``; keys may have slashes."""
    parts = text.rsplit("/", 4)
    if len(parts) != 5 or not parts[0] or _DAY.fullmatch(parts[1]) is None or parts[4] != "aws4_request":
        message = "The credential is malformed; expecting KEY/YYYYMMDD/REGION/SERVICE/aws4_request."
        raise S3Error(code, message)
    if parts[3] != "s3":
        raise S3Error(code, f"The credential is for the service {parts[3]!r}; expecting 's3'.")
    if not parts[2]:
        raise S3Error(code, "The credential names no region.")
    return parts[0], Scope(parts[1], parts[2], parts[3])


def _signed_headers(text: str, code: str) -> tuple[str, ...]:
    names = tuple(text.split(";"))
    if len(names) > MAX_SIGNED_HEADERS or not all(map(_HEADER_NAME.fullmatch, names)):
        raise S3Error(code, "SignedHeaders must be names in lower case, separated by semicolons.")
    if list(names) != sorted(set(names)):
        raise S3Error(code, "SignedHeaders must be sorted, each name once.")
    return names


def _signature(text: str, code: str) -> str:
    if _HEX.fullmatch(text) is None:
        raise S3Error(code, "The signature must be 64 hexadecimal digits in lower case.")
    return text


def _signed_at(head: RequestHead) -> str:
    signed_at = head.headers.get("x-amz-date")
    if signed_at is None:
        date = parse_date(head.headers.get("date", ""))
        signed_at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(date)) if date is not None else ""
    if seconds_of(signed_at) is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    return signed_at


def seconds_of(text: str) -> int | None:
    """Seconds since 1970 of ``YYYYMMDDTHHMMSSZ``, None for anything else."""
    if _TIME.fullmatch(text) is None:
        return None
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    hour, minute, second = int(text[9:11]), int(text[11:13]), int(text[13:15])
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def check_time(claim: Claim, now: float) -> None:
    """See that the signature is neither old nor from the future; `now` in seconds since 1970.

    Raises: S3Error.
    """
    signed_at = seconds_of(claim.time) or 0
    server_time = ("ServerTime", _iso(now))
    if claim.expires is None:
        if abs(now - signed_at) > MAX_SKEW_S:
            details = (
                ("RequestTime", claim.time),
                server_time,
                ("MaxAllowedSkewMilliseconds", str(MAX_SKEW_S * 1000)),
            )
            raise S3Error("RequestTimeTooSkewed", None, details)
    elif signed_at - now > MAX_SKEW_S:
        raise S3Error("AccessDenied", "Request is not yet valid", (server_time,))
    elif now > signed_at + claim.expires:
        details = (("X-Amz-Expires", str(claim.expires)), ("Expires", _iso(signed_at + claim.expires)), server_time)
        raise S3Error("AccessDenied", "Request has expired", details)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def canonical_request(
    method: str, path: str, query: Iterable[tuple[str, str]], headers: Sequence[tuple[str, str]], payload: str
) -> str:
    """The text that is hashed into a signature.

    `path` is as sent; `query` decoded; `headers` those that are signed, in lower case and sorted.
    """
    # Sorted as they are encoded, by name first: "%" comes before any letter.
    pairs = sorted((_encoded(name), _encoded(value)) for name, value in query)
    listed = "&".join(f"{name}={value}" for name, value in pairs)
    lines = "".join(f"{name}:{_BLANKS.sub(' ', value).strip(' ')}\n" for name, value in headers)
    names = ";".join(name for name, _ in headers)
    return f"{method}\n{_encoded(_decoded(path), '/')}\n{listed}\n{lines}\n{names}\n{payload}"


def string_to_sign(signed_at: str, scope: Scope, canonical: str) -> str:
    """What the signing key signs."""
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{ALGORITHM}\n{signed_at}\n{scope}\n{digest}"


def signing_key(secret: str, scope: Scope) -> bytes:
    """The key of one day, region and service; it may be kept."""
    key = f"AWS4{secret}".encode()
    for part in (*scope, "aws4_request"):
        key = hmac.new(key, part.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return key


def sign(key: bytes, text: str) -> str:
    """The signature of `text` in hexadecimal."""
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def check_signature(head: RequestHead, claim: Claim, key: bytes) -> None:
    """See that `claim` was made with `key` for just this request.

    Raises: S3Error, which tells what was expected to be signed.
    """
    query = query_pairs(head.query)
    if claim.expires is not None:
        query = [pair for pair in query if pair[0] != "X-Amz-Signature"]
    headers = [(name, head.headers.get(name, "")) for name in claim.signed]
    canonical = canonical_request(head.method, head.path, query, headers, claim.payload)
    text = string_to_sign(claim.time, claim.scope, canonical)
    if not hmac.compare_digest(sign(key, text), claim.signature):
        details = (
            ("AWSAccessKeyId", claim.access_key),
            ("StringToSign", text),
            ("SignatureProvided", claim.signature),
            ("CanonicalRequest", canonical),
        )
        raise S3Error("SignatureDoesNotMatch", None, details)
