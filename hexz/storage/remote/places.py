"""Where a remote snapshot is: what may be written on a command line or in a snapshot, and what is made of it."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from hexz.errors import UsageError

__all__ = [
    "OriginName",
    "RemotePlace",
    "StoreNames",
    "below",
    "folder_of",
    "is_inside",
    "is_remote",
    "parse_place",
    "public_name",
    "real_path",
    "redirected",
]

MAX_URL = 8000
"""Longest address, bytes."""
MAX_BUCKET = 63
DEFAULT_REGION = "us-east-1"

_SCHEME = re.compile(r"(https?|s3)://", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_HOST_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
"""A bucket that can be a part of a host's name which a wildcard certificate covers."""
SIGNING = frozenset({
    "awsaccesskeyid", "googleaccessid", "key-pair-id", "signature", "expires", "policy", "token", "sv", "ss", "srt",
    "sp", "se", "st", "spr", "sig", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sip",
})  # fmt: skip
"""Parameters of signed addresses (S3's first way, Google, CloudFront, Azure), which name no object and change."""
SIGNING_PREFIXES = ("x-amz-", "x-goog-")
_SAFE = "/~!$&'()*+,;=:@%-._"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
MOST_ENCODED = 4
"""How many times over a step may be percent-encoded before it counts as one that leads out."""


class OriginName(NamedTuple):
    """A server: what connections are shared by, and what credentials are for."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


class RemotePlace(NamedTuple):
    """One object: its server, its target there (path and query as sent), and its name for people, without secrets.

    `signed` requests are signed for S3.
    """

    origin: OriginName
    target: str
    name: str
    signed: bool = False

    @property
    def url(self) -> str:
        """The whole address; it may have secrets in its query."""
        return f"{self.origin.scheme}://{self.origin.authority}{self.target}"

    @property
    def key(self) -> str:
        """What tells it from every other object: its name, and of its query a digest of what is no signature."""
        pairs = [pair for pair in self.target.partition("?")[2].split("&") if pair and not _signs(pair)]
        return f"{self.name}?{hashlib.sha256('&'.join(pairs).encode()).hexdigest()[:16]}" if pairs else self.name


class StoreNames(NamedTuple):
    """What ``s3://`` means: the endpoint's URL (empty: Amazon's of the region), the region, and how buckets are named.

    `path_style` puts the bucket into the path, None chooses: with an endpoint of one's own, and for buckets that no
    certificate covers.
    """

    endpoint: str = ""
    region: str = ""
    path_style: bool | None = None


AMAZON = StoreNames()
"""What ``s3://`` means where nothing else is said."""


def _signs(pair: str) -> bool:
    name = unquote(pair.partition("=")[0]).lower()
    return name in SIGNING or name.startswith(SIGNING_PREFIXES)


def is_remote(path: str) -> bool:
    """Whether this is the address of an object elsewhere, and no file's name."""
    return _SCHEME.match(path) is not None


def real_path(path: str) -> str:
    """The path without links in it, where it is one; an address stays as it is.  Raises: ValueError (a NUL in it)."""
    return path if is_remote(path) else os.path.realpath(path)


def parse_place(address: str, stores: StoreNames = AMAZON) -> RemotePlace:
    """Where ``http://``, ``https://`` or ``s3://BUCKET/KEY`` leads.

    Raises: UsageError.
    """
    if len(address) > MAX_URL:
        raise UsageError(f"{address[:60]!r}...: an address has at most {MAX_URL} characters")
    if any(ord(character) < 32 or ord(character) == 127 for character in address):
        raise UsageError(f"{public_name(address)!r}: an address has no control characters")
    if address[:5].lower() == "s3://":
        return _object(address[5:], stores)
    if " " in address:
        raise UsageError(f"{public_name(address)!r}: an address has no blanks: write %20 for one")
    try:
        parts = urlsplit(address)
        if parts.scheme.lower() not in ("http", "https"):
            raise UsageError(f"{public_name(address)!r} is no address: http://, https:// or s3://")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        if "@" in address:  # it may be a password, which a slash cuts in two
            raise UsageError(f"{address.partition(':')[0]}://...@... is no address: its port is no number") from None
        raise UsageError(f"{public_name(address)!r} is no address: {error}") from None
    if not host:
        raise UsageError(f"{public_name(address)!r} is no address: it names no host")
    if port == 0:
        raise UsageError(f"{public_name(address)!r} is no address: nothing listens on port 0")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"{public_name(address)!r}: a name or password in an address is seen by everybody who lists processes: "
            "put a bearer token into a file and give --remote-token-file"
        )
    if parts.fragment:
        raise UsageError(f"{public_name(address)!r}: an address of a snapshot has no fragment (#): write %23")
    origin = _origin(parts.scheme.lower(), _ascii_host(host, address), port)
    # A name in bytes that are no UTF-8 comes from a command line as surrogates.
    target = quote(parts.path or "/", safe=_SAFE, errors="surrogateescape")
    if parts.query:
        target += f"?{quote(parts.query, safe=_SAFE + '?', errors='surrogateescape')}"
    return RemotePlace(origin, target, public_name(address))


def _ascii_host(host: str, address: str) -> str:
    """The host as a resolver and a Host header take it.  Raises: UsageError."""
    try:
        if ":" in host:
            ipaddress.IPv6Address(host)
            return host
        found = host if host.isascii() and len(host) < 64 else host.encode("idna").decode("ascii")
    except ValueError:
        found = ""
    if _HOST.fullmatch(found) is None:
        raise UsageError(f"{public_name(address)!r} is no address: {host[:80]!r} is no host's name")
    return found


def _object(path: str, stores: StoreNames) -> RemotePlace:
    bucket, slash, key = path.partition("/")
    if _BUCKET.fullmatch(bucket) is None:
        raise UsageError(f"{'s3://' + path!r}: {bucket!r} is no bucket's name")
    if not slash or not key:
        raise UsageError(f"{'s3://' + path!r} names a bucket and no object: s3://BUCKET/KEY")
    region = stores.region or DEFAULT_REGION
    endpoint = parse_place(stores.endpoint or f"https://s3.{region}.amazonaws.com")
    if "?" in endpoint.target:
        raise UsageError(f"{stores.endpoint!r}: an endpoint has no query")
    path_style = stores.path_style
    if path_style is None:
        path_style = bool(stores.endpoint) or _HOST_BUCKET.fullmatch(bucket) is None
    # S3 takes a key as it is: what means something in an address is encoded (Signature Version 4, "URI encode").
    target = quote(key, safe="/-._~", errors="surrogateescape")
    origin = endpoint.origin
    prefix = endpoint.target.rstrip("/")
    if path_style:
        return RemotePlace(origin, f"{prefix}/{bucket}/{target}", f"s3://{path}", True)
    return RemotePlace(origin._replace(host=f"{bucket}.{origin.host}"), f"{prefix}/{target}", f"s3://{path}", True)


def _origin(scheme: str, host: str, port: int | None) -> OriginName:
    return OriginName(scheme, host, _default_port(scheme) if port is None else port)


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def public_name(address: str) -> str:
    """The address without what may be secret in it: a query, and a user's name and password."""
    if not is_remote(address):
        return address
    scheme, _, rest = address.partition("://")
    if scheme.lower() == "s3":
        return address
    rest = rest.partition("?")[0].partition("#")[0]
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def folder_of(address: str) -> str:
    """The address that everything beside this object begins with; it ends with a slash."""
    folder = public_name(address).rpartition("/")[0]
    # Of a server alone, all of it.
    return (public_name(address) if folder.endswith(":/") else folder) + "/"


def below(folder: str, name: str) -> str | None:
    """The address of what is called `name`, seen from `folder`; None when it would not be below that.

    `name` is a path, as snapshots have them, or an address.
    """
    folder = folder if folder.endswith("/") else f"{folder}/"
    if len(name) > MAX_URL or any(ord(character) < 32 or ord(character) == 127 for character in name):
        return None
    if is_remote(name):
        address = name
        if "?" in name or "#" in name or (" " in name and name[:5].lower() != "s3://"):
            return None
    else:
        relative = name.lstrip("/")
        if not relative:
            return None
        if folder[:5].lower() != "s3://":
            relative = quote(relative, safe="/-._~", errors="surrogateescape")
        address = folder + relative
    if len(address) > MAX_URL or not address.startswith(folder) or len(address) == len(folder):
        return None
    plain = address
    for _ in range(MOST_ENCODED):
        # Some servers take what follows a semicolon for a parameter of the step, or decode more than once.
        if "\\" in plain or any(step.partition(";")[0] in (".", "..") for step in plain.split("/")):
            return None
        plain = unquote(plain)
    return address


def redirected(place: RemotePlace, location: str) -> RemotePlace:
    """Where a redirect leads; its name stays, since that is what was asked for.

    Raises: UsageError when it is no place that is followed.
    """
    if not location:
        raise UsageError("it says no place")
    try:
        address = urljoin(place.url, location.partition("#")[0])
    except ValueError as error:
        raise UsageError(f"it leads to no address: {error}") from None
    if address[:5].lower() == "s3://":
        raise UsageError("it leads neither to http:// nor to https://")
    there = parse_place(address)
    if place.origin.scheme == "https" and there.origin.scheme != "https":
        raise UsageError("it leads from https to http")
    return there._replace(name=place.name, signed=place.signed and there.origin == place.origin)


def is_inside(address: str) -> bool:
    """Whether an IP address is one that only machines near by reach: loopback, link-local (metadata), private."""
    found = ipaddress.ip_address(address.partition("%")[0])
    within = None
    if isinstance(found, ipaddress.IPv6Address):
        # Of these, routers and kernels make the IPv4 address that is in them.
        within = found.ipv4_mapped or found.sixtofour
        if within is None and found in _NAT64:
            within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return not (within or found).is_global or found.is_multicast
