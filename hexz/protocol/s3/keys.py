"""Names: a bucket for each snapshot, and the objects in it.

| key | object |
| --- | --- |
| ``disk``, ``memory`` | the snapshot's streams |
| ``info.json`` | its facts |
| ``NAME.hxz`` | the file itself, under the snapshot's name |
| ``files/PATH`` | the files of a folder archive |
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from hexz.protocol.s3.errors import S3Error

__all__ = ["INFO", "MAX_KEY", "Address", "address_of", "bucket_of"]

INFO = "info.json"
MAX_KEY = 1024
"""Longest key, bytes of UTF-8."""
MAX_BUCKET = 63
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
_OTHER = re.compile(r"[^a-z0-9]+")


class Address(NamedTuple):
    """What a request is about: "" for the bucket is the service, "" for the key the bucket."""

    bucket: str
    key: str


@functools.lru_cache(maxsize=4096)
def bucket_of(name: str) -> str:
    """The bucket of the snapshot called `name`.

    That is its name if S3 allows it (3 to 63 lower-case letters, digits, dots and hyphens), else what is
    left of it with hyphens for anything else and 8 digits of a hash, which keeps two such names apart.
    """
    if _BUCKET.fullmatch(name) and ".." not in name and not _IP_ADDRESS.fullmatch(name):
        return name
    digits = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    kept = _OTHER.sub("-", name.lower())[: MAX_BUCKET - len(digits) - 1].strip("-")
    return f"{kept or 'snapshot'}-{digits}"


def address_of(host: str, path: str, domains: tuple[str, ...]) -> Address:
    """What a request to `host` (as in the Host header) for `path` (as sent) is about.

    ``BUCKET.DOMAIN`` for one of `domains` is virtual-host style, anything else path style.
    Raises: S3Error.
    """
    name = host.rpartition(":")[0] if re.search(r":[0-9]*\Z", host) else host
    for domain in domains:
        if name.lower().endswith(f".{domain}"):
            return Address(name[: -len(domain) - 1].lower(), _decoded(path[1:]))
    bucket, _, key = path[1:].partition("/")
    return Address(_decoded(bucket), _decoded(key))


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI") from None
