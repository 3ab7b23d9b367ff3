"""One server that has snapshots: a span of an object from it, right and in time, or a clear error."""

from __future__ import annotations

import logging
import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from hexz import __version__
from hexz.errors import OriginChanged, OriginError, OriginTimeout, UsageError
from hexz.metrics.figures import ServerFigures
from hexz.protocol.http.errors import NoSpan, OtherVersion, ReplyError
from hexz.protocol.http.reply import (
    ReplySpan,
    Version,
    check_span,
    check_version,
    is_encoded,
    is_part,
    total_of,
    version_of,
)
from hexz.protocol.s3.client import Keys, Signer, region_wanted, said
from hexz.storage.remote.errors import Hidden, Passing, Stale
from hexz.storage.remote.fetchers import Fetchers
from hexz.storage.remote.keys.credentials import Credentials
from hexz.storage.remote.places import DEFAULT_REGION, OriginName, RemotePlace, redirected
from hexz.storage.remote.transport import CONNECT_S, STALL_S, Pool, Reply, clock

__all__ = ["Fetched", "Server", "Wanted"]

log = logging.getLogger("hexz.storage")

MAX_IN_FLIGHT = 96
"""Requests that one server has to answer at a time."""
MAX_REDIRECTS = 5
REDIRECT_S = 60.0
"""So long an answer that it is elsewhere holds for the next requests, too."""
MAX_NOTES = 1024
"""Objects of one server of which it is known that they are elsewhere, or in another region."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server answers that may do better in a moment, beside the numbers above 505 that proxies make up."""
FINAL = frozenset({506, 508, 510})
"""Of those the ones that say that it is configured wrongly."""
READY = 12
"""Connections that are made before they are needed to a server from which on a round trip takes `FAR_S`."""
FAR_S = 0.005
FEWEST_STREAMS = 6
STREAMS_PER_S = 250
"""For each second of a round trip; at 1 MiB each, that fills 2 Gbit/s."""
WINDOW_S = 10.0
"""So long the shortest round trip is looked for, before older ones are forgotten."""
WHOLE_TRIES = 3
"""After so many answers with the whole instead of a range in turn, this server gives none."""
AGENT = f"User-Agent: hexz-serve/{__version__}\r\nAccept-Encoding: identity\r\n"


class Wanted(NamedTuple):
    """`length` bytes from `start` on, or the last ones where that is None; of the version `pinned`, if one is."""

    place: RemotePlace
    start: int | None
    length: int
    pinned: Version | None


class Fetched(NamedTuple):
    """What came: where it is in the whole, and the bytes."""

    span: ReplySpan
    data: bytearray | bytes
    tries: int = 1


class Measured:
    """What is known of the way to a server.  Most updates take no lock: each is one of many, and none counts alone."""

    def __init__(self) -> None:
        self.round_trip_s = 0.0
        """The shortest time to the first byte of an answer, of the last ten to twenty seconds."""
        self._lately_s = 0.0
        self._since = -math.inf
        self.bytes_per_s = 50e6
        self.requests = 0
        self.retries = 0
        self.received = 0
        self.in_flight = 0
        self._lock = threading.Lock()  # guards in_flight

    def begin(self) -> None:
        """A request is sent."""
        with self._lock:
            self.in_flight += 1

    def end(self) -> None:
        """It was answered, or not."""
        with self._lock:
            self.in_flight -= 1

    def streams(self) -> int:
        """Long answers that may come at a time: enough to fill the way, and few enough that the first comes first."""
        return FEWEST_STREAMS + int(self.round_trip_s * STREAMS_PER_S)

    def note(self, asked: float, first: float, done: float, size: int) -> None:
        """An answer of `size` bytes came, from `first` to `done` (seconds of one clock)."""
        trip = first - asked
        if first - self._since > WINDOW_S:
            # What holds up answers for a while, as much work at once does, is no longer way.
            self.round_trip_s, self._lately_s, self._since = self._lately_s or trip, trip, first
        self._lately_s = min(self._lately_s, trip)
        self.round_trip_s = min(self.round_trip_s, self._lately_s)
        if size >= 256 << 10 and done > first:
            self.bytes_per_s += (size / (done - first) - self.bytes_per_s) / 8
        self.received += size


class ServerAccess(NamedTuple):
    """What all servers have in common: how certificates are checked, and what is shown to whom.

    `token` gives the bearer token for a server, if any.
    """

    tls: Callable[[], ssl.SSLContext]
    token: Callable[[OriginName], str | None]
    credentials: Credentials


class Server:
    """A server with its kept connections; for any number of threads."""

    def __init__(self, origin: OriginName, access: ServerAccess, other: Callable[[OriginName], Server]) -> None:
        """`other` gives the server that a redirect leads to."""
        self.origin = origin
        self.measured = Measured()
        self.fetchers = Fetchers(f"fetch-{origin.host[:40]}", self.measured.streams)
        self.pool = Pool(origin, access.tls if origin.scheme == "https" else None)
        self.places = threading.BoundedSemaphore(MAX_IN_FLIGHT)
        self.other = other
        self.elsewhere: dict[RemotePlace, tuple[RemotePlace, float]] = {}
        """Where it was found and until when that is believed; replaced as entries."""
        self._signer = Signer(DEFAULT_REGION)
        """For the region that was said."""
        self._signers: dict[str, Signer] = {}
        """By target, for the region that its bucket turned out to be in; replaced as entries."""
        self.credentials = access.credentials
        self._token = access.token

    def sign_for(self, region: str) -> None:
        """Sign requests for this region from now on, but for what turned out to be elsewhere."""
        if self._signer.region != region:
            self._signer = Signer(region)

    def signer_of(self, place: RemotePlace) -> Signer:
        """Who signs for a place on this server."""
        return self._signers.get(place.target, self._signer)

    def move(self, place: RemotePlace, region: str) -> None:
        """Sign for this region what is asked of the place from now on."""
        if len(self._signers) >= MAX_NOTES:
            self._signers = {}
        self._signers[place.target] = Signer(region)

    def note_elsewhere(self, place: RemotePlace, there: RemotePlace) -> None:
        """What is asked of the place is found there, for a while."""
        if len(self.elsewhere) >= MAX_NOTES:
            self.elsewhere = {}
        self.elsewhere[place] = (there, clock() + REDIRECT_S)

    def fetch(self, wanted: Wanted, deadline: float, name: str, patient: bool = True) -> Fetched:
        """The span, once it is right; what may pass is tried again until `deadline` (`clock`), if `patient`.

        Raises: OriginChanged, OriginError (trying again is no use), OriginTimeout.
        """
        attempt = _Attempt(self, wanted, deadline, name)
        while True:
            try:
                return attempt.run()._replace(tries=attempt.tries)
            except Passing as trouble:
                # Who sent us to where it went wrong may send us somewhere else now.
                self.elsewhere.pop(wanted.place, None)
                attempt.tries += 1
                attempt.pause(trouble, patient or trouble.at_once)

    def request(self, place: RemotePlace, wanted: Wanted, keys: Keys | None, signer: Signer) -> bytes:
        """The request for a span of a place on this server, as it is sent.

        A redirect to another host shows that host no token, also where it has one of its own: who redirects would
        have us read what is not theirs.
        """
        headers = {"Range": f"bytes=-{wanted.length}"}
        if wanted.start is not None:
            headers["Range"] = f"bytes={wanted.start}-{wanted.start + wanted.length - 1}"
        if wanted.pinned is not None and wanted.pinned.etag:
            headers["If-Match"] = wanted.pinned.etag
        if keys is not None:
            path, _, query = place.target.partition("?")
            headers.update(signer.headers("GET", place.origin.authority, path, query, headers, keys, time.time()))
        elif not place.signed and place.origin.host == wanted.place.origin.host:
            token = self._token(self.origin)
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        text = f"GET {place.target} HTTP/1.1\r\nHost: {self.origin.authority}\r\n{AGENT}{lines}\r\n"
        return text.encode("latin-1")

    def prepare(self) -> None:
        """Make some connections before they are needed, where it takes long to make one; never waits."""
        if self.measured.round_trip_s >= FAR_S:
            for _ in range(self.pool.prepare(min(READY, MAX_IN_FLIGHT))):
                self.fetchers.offer(self._connect)

    def _connect(self) -> None:
        try:
            self.pool.add(clock() + CONNECT_S)
        except (OSError, Hidden) as error:
            log.debug("%s: no connection is made ahead: %s", self.origin.authority, error)

    def figures(self) -> ServerFigures:
        """What it cost so far."""
        measured = self.measured
        return ServerFigures(
            self.origin.authority, measured.requests, measured.retries, measured.received, measured.in_flight,
            measured.round_trip_s,
        )  # fmt: skip

    def close(self) -> None:
        """Close the kept connections."""
        self.pool.close()


class _Attempt:
    """One fetch with its tries."""

    def __init__(self, server: Server, wanted: Wanted, deadline: float, name: str) -> None:
        self.server = server
        self.wanted = wanted
        self.deadline = deadline
        self.name = name
        self.pause_s = FIRST_PAUSE_S
        self.tries = 1
        self.wholes = 0
        self.stale = 0
        self.renewed = False
        self.relocated = False
        self.stall_s = STALL_S

    def trouble(self, kind: type[OriginError], reason: str) -> OriginError:
        offset = self.wanted.start if self.wanted.start is not None else -self.wanted.length
        return kind(self.name, offset, self.wanted.length, reason)

    def pause(self, trouble: Passing, again: bool) -> None:
        """Wait before the next try.  Raises: OriginTimeout when there is no time for one, or it is not to be."""
        left = self.deadline - clock()
        wait = max(trouble.after_s, 0.0 if trouble.at_once else random.random() * self.pause_s)
        if left <= wait or not again:
            raise self.trouble(OriginTimeout, f"no right answer in time; at last: {trouble}") from None
        if not trouble.at_once:
            self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S)
        self.server.measured.retries += 1
        time.sleep(wait)

    def run(self) -> Fetched:
        """One try.  Raises: Passing, OriginError."""
        place, redirects = self.wanted.place, 0
        server, held = self.server, self.server.elsewhere.get(place)
        if held is not None and held[1] > clock():
            place = held[0]
            server = self._server_of(place)
        while True:
            keys = server.credentials.get() if place.signed else None
            signer = server.signer_of(place)
            reply = self._ask(server, place, keys, signer)
            status = reply.head.status
            if status in (301, 302, 303, 307, 308):
                redirects += 1
                if redirects > MAX_REDIRECTS:
                    raise self.trouble(OriginError, f"more than {MAX_REDIRECTS} redirects")
                region = region_wanted(reply.head.headers, bytes(reply.body)) if place.signed else None
                if region is not None and self._move(server, place, signer, region):
                    continue
                try:
                    place = redirected(place, reply.head.headers.get("location", ""))
                except UsageError as error:
                    raise self.trouble(OriginError, f"a redirect is not followed: {error}") from None
                server = self._server_of(place)
                continue
            if held is not None and not redirects and status in (400, 401, 403, 404, 410):
                # The way led there before, and does not any more: presigned addresses expire.
                raise Passing(f"where it was redirected to, it answered {status}", at_once=True)
            fetched = self._judge(server, place, keys, signer, reply)
            if redirects and place != self.wanted.place:
                self.server.note_elsewhere(self.wanted.place, place)
            return fetched

    def _server_of(self, place: RemotePlace) -> Server:
        return self.server if place.origin == self.server.origin else self.server.other(place.origin)

    def _ask(self, server: Server, place: RemotePlace, keys: Keys | None, signer: Signer) -> Reply:
        request = server.request(place, self.wanted, keys, signer)
        # A redirect to another port or scheme of the same host shows nobody anything new.
        public_only = place.origin.host != self.wanted.place.origin.host
        if not server.places.acquire(timeout=max(0.0, self.deadline - clock())):
            raise self.trouble(OriginTimeout, f"{MAX_IN_FLIGHT} requests are under way and none ended in time")
        server.measured.begin()
        try:
            return self._exchange(server, request, public_only)
        finally:
            server.measured.end()
            server.places.release()

    def _exchange(self, server: Server, request: bytes, public_only: bool) -> Reply:
        connection = None
        try:
            connection = server.pool.take(self.deadline, public_only, kept=self.stale < 2)
            asked = clock()
            server.measured.requests += 1
            reply = connection.get(request, self.wanted.length, self.deadline, self.stall_s)
            server.measured.note(asked, reply.first, clock(), len(reply.body))
        except Stale:
            if connection is not None:
                connection.close()
            self.stale += 1
            if self.stale == 2:
                server.pool.drop_idle()
            raise Passing("the server closed a kept connection", at_once=True) from None
        except Hidden as error:
            raise self.trouble(OriginError, str(error)) from None
        except ssl.SSLCertVerificationError as error:
            if connection is not None:
                connection.close()
            reason = f"its certificate is not trusted ({error.verify_message}): give --ca-file if it should be"
            raise self.trouble(OriginError, reason) from None
        except (OSError, ReplyError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, (TimeoutError, socket.timeout)):  # two classes before Python 3.10
                # The others that are kept lead to the same frozen machine; and some servers are slow for long.
                server.pool.drop_idle()
                self.stall_s *= 2
            said_by = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Passing(f"{server.origin.authority}: {said_by}") from None
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        server.pool.give(connection)
        return reply

    def _judge(self, server: Server, place: RemotePlace, keys: Keys | None, signer: Signer, reply: Reply) -> Fetched:
        """What the answer is worth.  Raises: Passing, OriginError."""
        head, wanted = reply.head, self.wanted
        status = head.status
        try:
            if is_part(head):
                span = check_span(head, wanted.start, wanted.length, wanted.pinned)
                if len(reply.body) != span.length:
                    raise NoSpan(f"the answer has {len(reply.body)} bytes, its range {span.length}")
                return Fetched(span, reply.body)
            if status == 200:
                return self._of_whole(reply)
        except OtherVersion as error:
            raise self.trouble(OriginChanged, f"it is another file than when it was opened: {error}") from None
        except NoSpan as error:
            raise Passing(str(error)) from None
        total = total_of(head) if status == 416 else None
        if wanted.pinned is not None and (status == 412 or total not in (None, wanted.pinned.size)):
            raise self.trouble(OriginChanged, f"it is another file than when it was opened ({status})")
        code, message = said(bytes(reply.body))
        told = f"{status}" + (f" {code}" if code else "") + (f": {message}" if message else "")
        if status in (400, 401, 403) and place.signed:
            region = region_wanted(head.headers, bytes(reply.body))
            if region is not None and self._move(server, place, signer, region):
                raise Passing(f"it answered {told}", at_once=True)
        if status in (400, 401, 403) and not self.renewed and self._renew(place, keys):
            raise Passing(f"it answered {told}", at_once=True)
        if status in PASSING or (status > 505 and status not in FINAL):
            raise Passing(f"it answered {told}", _retry_after(head.headers.get("retry-after", "")))
        refused = self.trouble(OriginError, f"{server.origin.authority} answered {told}")
        refused.status = status
        raise refused

    def _of_whole(self, reply: Reply) -> Fetched:
        """The span out of an answer with the whole, as some caches give it, where that is short and of the version."""
        head, wanted, body = reply.head, self.wanted, reply.body
        if head.length == 0 and wanted.pinned is None and version_of(head, 0).etag:
            empty = self.trouble(OriginError, "it is empty")  # of which no server can give a range
            empty.status = 416
            raise empty
        if head.length is not None and head.length == len(body) and not is_encoded(head) and wanted.pinned is not None:
            version = version_of(head, len(body))
            start = max(len(body) - wanted.length, 0) if wanted.start is None else wanted.start
            data = body[start : start + wanted.length]
            # A page for people says nothing of the file, not even that it has another size now.
            if version.etag if wanted.pinned.etag else version.modified:
                check_version(version, wanted.pinned)
                return Fetched(ReplySpan(start, len(data), version), data)
        self.wholes += 1
        if self.wholes >= WHOLE_TRIES:
            kind = head.headers.get("content-type", "")[:40]
            raise self.trouble(
                OriginError,
                f"it answers ranges with a whole ({kind or 'of no type'}): such a server cannot be read from",
            )
        raise NoSpan("it answered 200 to a range")

    def _move(self, server: Server, place: RemotePlace, signer: Signer, region: str) -> bool:
        """Sign for another region than `signer` from now on; False when that was done for this fetch already."""
        if self.relocated or signer.region == region:
            return False
        self.relocated = True
        server.move(place, region)
        return True

    def _renew(self, place: RemotePlace, keys: Keys | None) -> bool:
        """Whether there are other credentials than those that were refused."""
        self.renewed = True
        if place.signed:
            fresh = self.server.credentials.renew(keys)
            return fresh is not None and fresh != keys
        return False


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110 section 10.2.3); dates are left alone."""
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0.0
