"""Who may ask, how much, and what is written down about it: tokens, rate limits, the access log."""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from hexz.errors import ConfigError, UnitError, UsageError
from hexz.logfile import open_log
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.origin import authority_of, is_foreign_write, parse_ip
from hexz.protocol.http.responses import Response, error_response
from hexz.rights.exposure import OWN, Grant
from hexz.rights.secrets import SHORTEST_SECRET
from hexz.secretfile import read_secret_lines
from hexz.units import parse_number, parse_size

__all__ = [
    "AccessEntry",
    "AccessLog",
    "Gate",
    "RateLimit",
    "AccessRefusal",
    "Tokens",
    "foreign_write",
    "parse_rate_limit",
    "wrong_host",
]

log = logging.getLogger("hexz.access")

MAX_CLIENTS = 65536
"""Client addresses whose rates are remembered; beyond it the one unseen for longest is forgotten."""
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What anybody may ask: supervisors have no token."""
MAX_SHOWN = 253
"""Characters of a host's name that a refusal repeats: so many are possible (RFC 1035 section 2.3.4)."""


class Tokens:
    """Bearer tokens by name, from a file of ``NAME TOKEN`` lines; ``#`` begins a comment."""

    def __init__(self, path: str) -> None:
        """Read the file.

        Raises: ConfigError.
        """
        self._path = path
        self.digests = self._read()

    def _read(self) -> list[tuple[str, bytes]]:
        found: dict[str, bytes] = {}
        for number, line in enumerate(read_secret_lines(self._path, "tokens"), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or words[0] in found or len(words[1]) < SHORTEST_SECRET:
                raise ConfigError(
                    f"{self._path}: line {number}: write NAME TOKEN, each name once, "
                    f"tokens of at least {SHORTEST_SECRET} characters"
                )
            found[words[0]] = hashlib.sha256(words[1].encode()).digest()
        if not found:
            raise ConfigError(f"{self._path}: has no token: nobody could ask anything")
        return list(found.items())

    def reload(self) -> None:
        """Read the file again.

        Raises: ConfigError, and then the old tokens stay.
        """
        self.digests = self._read()

    def name_of(self, token: str) -> str | None:
        """The name of `token`, or None; takes the same time for any token."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self.digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found


class RateLimit(NamedTuple):
    """What one client address may use each second; 0 is no limit."""

    requests: int
    size: int


def parse_rate_limit(text: str) -> RateLimit:
    """``REQUESTS`` or ``REQUESTS,BYTES`` a second, such as ``100`` or ``100,50M`` or ``0,50M``.

    Raises: UsageError.
    """
    requests, comma, size = text.partition(",")
    try:
        number = parse_number(requests, 9)
        if number is None:
            raise UnitError
        return RateLimit(number, parse_size(size) if comma else 0)
    except UnitError:
        raise UsageError(f"--rate-limit '{text}': write REQUESTS or REQUESTS,BYTES a second, such as 100,50M") from None


class _Allowance:
    """A client's buckets: requests and bytes it may use now; bytes go below zero and are paid off by waiting."""

    __slots__ = ("requests", "seen", "size")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.requests = float(limit.requests)
        self.size = float(limit.size)
        self.seen = now


class _Limiter:
    """Token buckets by client address, one second deep."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, _Allowance] = OrderedDict()  # guarded by _lock

    def wait_for(self, client: str) -> float:
        """Take one request; the seconds to wait first if there is none left, else 0."""
        now = time.monotonic()
        limit = self._limit
        with self._lock:
            allowance = self._clients.pop(client, None) or _Allowance(limit, now)
            self._clients[client] = allowance
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
            passed = now - allowance.seen
            allowance.seen = now
            allowance.requests = min(allowance.requests + passed * limit.requests, float(limit.requests))
            allowance.size = min(allowance.size + passed * limit.size, float(limit.size))
            if limit.requests and allowance.requests < 1:
                return (1 - allowance.requests) / limit.requests
            if limit.size and allowance.size <= 0:
                return (1 - allowance.size) / limit.size
            allowance.requests -= 1
            return 0.0

    def sent(self, client: str, size: int) -> None:
        """`size` bytes went to `client`."""
        with self._lock:
            allowance = self._clients.get(client)
            if allowance is not None:
                allowance.size -= size


class AccessRefusal(NamedTuple):
    """Why a request goes no further: a status, a line for the client, headers."""

    status: int
    message: str
    headers: tuple[tuple[str, str], ...] = ()


def foreign_write(head: RequestHead) -> AccessRefusal | None:
    """403 for a write that a page of another origin has sent."""
    if not is_foreign_write(head):
        return None
    return AccessRefusal(403, "pages of other origins may change nothing here")


def wrong_host(head: RequestHead, grant: Grant) -> AccessRefusal | None:
    """421 (RFC 9110 section 15.5.20) for who shows no token and asks for a name that is none of the listener's."""
    authority = authority_of(head)
    if grant.hosts is None or grant.hosts.admits(authority):
        return None
    host = re.sub(r":[0-9]*\Z", "", authority)[:MAX_SHOWN]
    if not host:
        return AccessRefusal(421, "a Host header is needed that names this server")
    return AccessRefusal(
        421, f"this server does not go by the name {host}: if it should, start it with --host-name {host}"
    )


class Gate:
    """Decides who is let in: tokens if there are any, and the rate limit if there is one."""

    def __init__(self, tokens: Tokens | None = None, limit: RateLimit | None = None) -> None:
        self._tokens = tokens
        self._limiter = _Limiter(limit) if limit is not None and any(limit) else None

    def admit(self, head: RequestHead, peer: str, grant: Grant = OWN) -> tuple[str | None, Response | None]:
        """The name of the token used, and a refusal if there is one; `grant` is that of the listener."""
        name, refusal = self._judge(head, peer, grant)
        return name, error_response(*refusal) if refusal is not None else None

    def _judge(self, head: RequestHead, peer: str, grant: Grant) -> tuple[str | None, AccessRefusal | None]:
        refusal = self.limit(peer) or foreign_write(head)
        if refusal is not None or head.path in OPEN_PATHS:
            return None, refusal
        if self._tokens is None or (grant.anonymous and "authorization" not in head.headers):
            return None, wrong_host(head, grant)
        scheme, _, token = head.headers.get("authorization", "").partition(" ")
        name = self._tokens.name_of(token.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            challenge = ("WWW-Authenticate", 'Bearer realm="hexz-serve"')
            return None, AccessRefusal(401, "a bearer token is needed", (challenge,))
        return name, None

    def charge(self, peer: str) -> Response | None:
        """Count a request that `admit` is not asked about; a refusal (429) if there were too many."""
        refusal = self.limit(peer)
        return error_response(*refusal) if refusal is not None else None

    def limit(self, peer: str) -> AccessRefusal | None:
        """Count a request of `peer`; 429 if there were too many."""
        wait = self._limiter.wait_for(_address(peer)) if self._limiter is not None else 0.0
        if not wait:
            return None
        return AccessRefusal(429, "more requests than this client may make", (("Retry-After", str(int(wait) + 1)),))

    def renewal(self, peer: str) -> Callable[[], bool]:
        """Asked before a request of `peer` is admitted: what later admits another one like it, at less cost.

        False says that the request has to be judged by `admit`; nothing was used up then.
        """
        tokens, limiter = self._tokens, self._limiter
        digests = tokens.digests if tokens is not None else None
        address = _address(peer)

        def renew() -> bool:
            if tokens is not None and tokens.digests is not digests:
                return False
            return limiter is None or not limiter.wait_for(address)

        return renew

    @property
    def limits(self) -> bool:
        """It wants to know what was sent."""
        return self._limiter is not None

    def sent(self, peer: str, size: int) -> None:
        """`size` body bytes went to `peer`."""
        if self._limiter is not None:
            self._limiter.sent(_address(peer), size)


@functools.lru_cache(maxsize=1024)
def _address(peer: str) -> str:
    """What a peer (``ADDRESS:PORT``) is counted as: its address; of IPv6 the network, which is one customer's.

    A /64 is the least that anybody is given (RFC 6177, RFC 7421), and has 2^64 addresses.
    """
    host = peer.rpartition(":")[0] or peer
    address = parse_ip(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
    return host if address is None else str(address)


class AccessEntry(NamedTuple):
    """One answered request; `size` is the body bytes sent, `duration` in seconds.

    `head` is None when the request could not be understood.  `range` is what was asked for, as sent: of requests
    that differ in nothing else, `head` may be that of the first.
    """

    peer: str
    token: str | None
    head: RequestHead | None
    status: int
    size: int
    duration: float
    range: str | None


class AccessLog:
    """One JSON object a line, appended to a file that `reopen` opens again after it was moved away."""

    def __init__(self, path: str) -> None:
        """Open the file.

        Raises: ConfigError.
        """
        self._path = path
        self._fd = open_log(path)
        self._failing = False

    def reopen(self) -> None:
        """Open the file by its name again.

        Raises: ConfigError, and then the old one goes on being used.
        """
        fresh = open_log(self._path)
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)

    def write(self, entry: AccessEntry) -> None:
        """Append a line; one write each, so lines of several threads do not mix."""
        head = entry.head
        line = json.dumps(
            {
                "time": round(time.time(), 3),
                "client": entry.peer,
                "token": entry.token,
                "method": head.method if head else None,
                "host": head.headers.get("host") if head else None,
                "path": head.shown if head else None,
                "range": entry.range,
                "status": entry.status,
                "bytes": entry.size,
                "seconds": round(entry.duration, 6),
            }
        )
        try:
            os.write(self._fd, line.encode() + b"\n")
            self._failing = False
        except OSError as error:
            # A full disk must not stop the service; it is said once, not for every request.
            if not self._failing:
                log.error("%s: the access log cannot be written: %s", self._path, error.strerror)
            self._failing = True
