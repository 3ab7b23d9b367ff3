"""Who may ask over S3, and for what: the keys file, and the policy in front of the application."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hexz.errors import ConfigError
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.responses import Response
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.sigv4 import Claim, Scope, check_signature, check_time, parse_claim, signing_key
from hexz.rights.exposure import OWN, Grant
from hexz.rights.secrets import SHORTEST_SECRET
from hexz.secretfile import read_secret_lines
from hexz.servers.http.access import AccessRefusal, Gate, foreign_write, wrong_host
from hexz.servers.s3.answers import refusal_of

__all__ = ["KeyFile", "S3Policy"]

_ACCESS_KEY = re.compile(r"[!-~]{3,128}")


class _Key(NamedTuple):
    secret: str
    buckets: frozenset[str] | None  # None for all


def _words(line: str) -> list[str]:
    """What stands before a comment."""
    words = line.split()
    if words and words[0].startswith("#"):
        return []
    return words[: words.index("#")] if "#" in words else words


class KeyFile:
    """Access keys from a file of ``ACCESS_KEY SECRET [BUCKET ...]`` lines.

    A line that begins with ``#`` is a comment, and so is what follows a ``#`` that stands alone.

    A key with buckets may read these alone.
    """

    def __init__(self, path: str) -> None:
        """Read the file.

        Raises: ConfigError.
        """
        self._path = path
        self._keys = self._read()
        self._signing: dict[str, tuple[_Key, Scope, bytes]] = {}  # the last scope that each key signed for

    def _read(self) -> dict[str, _Key]:
        found: dict[str, _Key] = {}
        for number, line in enumerate(read_secret_lines(self._path, "keys"), 1):
            words = _words(line)
            if not words:
                continue
            odd = next((word for word in words if word.startswith("#")), None)
            if odd is not None:  # who meant a bucket would open all of them
                raise ConfigError(
                    f"{self._path}: line {number}: is {odd!r} a bucket or a comment?  "
                    "Comments have a line of their own, or a blank behind the #"
                )
            access_key, secret = words[0], words[1] if len(words) > 1 else ""
            if access_key in found or not _ACCESS_KEY.fullmatch(access_key) or len(secret) < SHORTEST_SECRET:
                raise ConfigError(
                    f"{self._path}: line {number}: write ACCESS_KEY SECRET [BUCKET ...], each key once, "
                    f"secrets of at least {SHORTEST_SECRET} characters"
                )
            found[access_key] = _Key(secret, frozenset(words[2:]) or None)
        if not found:
            raise ConfigError(f"{self._path}: has no key: nobody could ask anything")
        return found

    def reload(self) -> None:
        """Read the file again.

        Raises: ConfigError, and then the old keys stay.
        """
        self._keys = self._read()
        self._signing = {}

    def check(self, head: RequestHead, claim: Claim) -> None:
        """See that `claim` was made with the secret of its key.

        Raises: S3Error.
        """
        key = self._keys.get(claim.access_key)
        if key is None:
            raise S3Error("InvalidAccessKeyId", None, (("AWSAccessKeyId", claim.access_key),))
        kept = self._signing.get(claim.access_key)
        if kept is not None and kept[0] is key and kept[1] == claim.scope:
            check_signature(head, claim, kept[2])
            return
        derived = signing_key(key.secret, claim.scope)
        check_signature(head, claim, derived)
        # Kept only now: who does not know the secret cannot make others pay for deriving it again.
        self._signing[claim.access_key] = (key, claim.scope, derived)

    def may_read(self, access_key: str, buckets: Iterable[str]) -> bool:
        """Whether the key is for a bucket with one of these names."""
        key = self._keys.get(access_key)
        return key is not None and (key.buckets is None or not key.buckets.isdisjoint(buckets))

    def may_read_all(self, access_key: str) -> bool:
        """Whether the key is for every bucket."""
        key = self._keys.get(access_key)
        return key is not None and key.buckets is None


class S3Policy:
    """The rate limit first, then the signature."""

    def __init__(self, gate: Gate, keys: KeyFile | None, clock: Callable[[], float] = time.time) -> None:
        """Without `keys` there is nothing to check a signature against, and everybody is anonymous."""
        self._gate = gate
        self._keys = keys
        self._clock = clock

    def admit(self, head: RequestHead, peer: str, grant: Grant = OWN) -> tuple[str | None, Response | None]:
        """The access key that signed the request, and a refusal if there is one; `grant` is that of the listener."""
        refusal = self._gate.limit(peer) or foreign_write(head)
        try:
            name = self._who(head, grant) if refusal is None else None
        except S3Error as error:
            return None, refusal_of(error, head)
        if name is None and refusal is None:
            refusal = wrong_host(head, grant)
        return name, _answer(refusal, head) if refusal is not None else None

    def charge(self, peer: str) -> Response | None:
        """Count a request that `admit` is not asked about; a refusal if there were too many."""
        refusal = self._gate.limit(peer)
        return _answer(refusal, None) if refusal is not None else None

    def _who(self, head: RequestHead, grant: Grant) -> str | None:
        if self._keys is None:
            return None
        claim = parse_claim(head)
        if claim is None:
            if not grant.anonymous:
                raise S3Error("AccessDenied")
            return None
        check_time(claim, self._clock())
        self._keys.check(head, claim)
        return claim.access_key

    def renewal(self, peer: str) -> Callable[[], bool] | None:
        """What admits another request like the one that is admitted next; None when each is to be looked at."""
        # A signature is good for one time and often one range: only the anonymous may ask again unlooked at.
        return self._gate.renewal(peer) if self._keys is None else None

    @property
    def limits(self) -> bool:
        """It wants to know what was sent."""
        return self._gate.limits

    def sent(self, peer: str, size: int) -> None:
        """`size` body bytes went to `peer`."""
        self._gate.sent(peer, size)


_CODES = {403: "AccessDenied", 421: "InvalidRequest", 429: "SlowDown"}


def _answer(refusal: AccessRefusal, head: RequestHead | None) -> Response:
    """What S3's clients understand of a refusal."""
    message = None if refusal.status == 429 else refusal.message
    error = S3Error(_CODES[refusal.status], message, (), refusal.headers)
    response = refusal_of(error, head)
    return response._replace(status=421) if refusal.status == 421 else response
