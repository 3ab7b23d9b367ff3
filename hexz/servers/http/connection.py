"""One HTTP/1.x connection: read a head, ask the application, send its response, again.

An `Application` is a function from `Request` to `Response`; it does no I/O on the
socket.  To add one:

- write a class with a `respond` method, and give it to `HttpService`;
- build responses with the functions of `hexz.protocol.http.responses`: `represent`
  does ranges and conditions for anything with a ``read(offset, length)``,
  `json_response` and `error_response` the rest.  `Response.length` is always known
  beforehand; HEAD and 304 are cut to their head here;
- raise `RequestError` (a status and a line for the client) or any `HexzError` to refuse;
- call ``request.watch()`` now and then in work that may be long;
- read a request's body with ``request.body.read(most)``.  What is not read is read away
  or ends the connection, and a client that waits for ``100 Continue`` gets it with the
  first read;
- a lease or file that the response needs is let go in `Response.done`, which runs once
  the response was sent or given up.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple, Protocol

from hexz.access import OPEN_PATHS, AccessEntry
from hexz.errors import BlockError, HandedOver, HexzError
from hexz.exposure import OWN, Grant
from hexz.metrics import Metrics
from hexz.protocol.http.cors import Cors
from hexz.protocol.http.dates import format_date
from hexz.protocol.http.head import RequestError, RequestHead, framing_of, parse_head
from hexz.protocol.http.responses import Piece, Response, error_response, pack_head
from hexz.servers.base import Connection
from hexz.servers.http.again import Again
from hexz.servers.http.counting import Counting
from hexz.servers.http.crowd import LARGEST as LARGEST_OF_CROWD
from hexz.servers.http.crowd import Crowd, Member, Told, Unsent
from hexz.servers.http.receiving import Body, Receiver
from hexz.servers.sending import Sender, held
from hexz.servers.watch import PeerGone, PeerWatch

__all__ = ["PLAIN_RULES", "Application", "Body", "HttpConnection", "Policy", "Request", "Rules"]

log = logging.getLogger("hexz.http")

LINGER_S = 1.0
"""How long a peer may go on sending after the last response, before the connection is closed under it."""
SPARE_LINGER_S = 0.1
"""The same, where others wait for the thread."""
BUSY_S = "5"
"""Retry-After of those for whom there is no place, seconds."""
RECEIVE = 16 << 10
LARGEST_AGAIN = 1 << 20
"""Longest range that the fast path answers, bytes; longer ones go out in pieces."""
STREAK = 8
"""A connection that the fast path answered so many times in a row joins the crowd, unless it is alone."""


def _plain_refusal(status: int, message: str, error: RequestError | None) -> Response:
    return error_response(status, message)


class Request(NamedTuple):
    """What an application gets: the head, the body, and who asks.

    `token` is the name of the token used; `may_write` says that this client may write to images that have no token
    of their own.
    `watch` is for work that may take longer than a moment: called now and then, it ends it once the client has gone.
    """

    head: RequestHead
    body: Body
    peer: str
    secure: bool
    token: str | None
    watch: Callable[[], None] = lambda: None
    may_write: bool = True


class Application(Protocol):
    """Answers requests."""

    def respond(self, request: Request) -> Response:
        """The response.  Raises: RequestError, HexzError, OSError to refuse."""


class Policy(Protocol):
    """Who may ask: consulted before the application."""

    def admit(self, head: RequestHead, peer: str, grant: Grant = OWN) -> tuple[str | None, Response | None]:
        """The token's name if one was used, and a refusal if there is one.

        `grant` is what the listener lets those do who show no token.
        """

    def charge(self, peer: str) -> Response | None:
        """Count a request that `admit` is not asked about, since it is malformed or a preflight; a refusal if any."""

    def renewal(self, peer: str) -> Callable[[], bool] | None:
        """Asked before `admit`: what later admits another request that differs in its range alone.

        It returns False for a request that has to come before `admit`; None when all have to.
        """

    @property
    def limits(self) -> bool:
        """It wants to be told what was sent."""

    def sent(self, peer: str, size: int) -> None:
        """`size` body bytes went to `peer`."""


class RequestLog(Protocol):
    """Is told of every request once it was answered."""

    def write(self, entry: AccessEntry) -> None:
        """Write it down."""


class Rules(NamedTuple):
    """What one HTTP server does otherwise than another.

    `refusal` makes the response to a refused request out of its status, its line for the client and the error;
    a `patient` server never ends a connection for being idle.  `last_request_s`: while draining, how long a request
    may still come, seconds; None is what the network may need.  `spare_paths` are those that are answered also to a
    connection for which there is no place; None are all.
    """

    refusal: Callable[[int, str, RequestError | None], Response] = _plain_refusal
    patient: bool = False
    last_request_s: float | None = None
    spare_paths: frozenset[str] | None = OPEN_PATHS


PLAIN_RULES = Rules()


class HttpConnection:
    """The loop over one connection's requests; the connection's thread runs it."""

    def __init__(
        self,
        connection: Connection,
        application: Application,
        policy: Policy,
        access_log: RequestLog | None = None,
        cors: Cors | None = None,
        crowd: Crowd | None = None,
        rules: Rules = PLAIN_RULES,
        received: bytes = b"",
        metrics: Metrics | None = None,
    ) -> None:
        """Without an `access_log` nothing is written down; without `cors` pages of other sites cannot read.

        `crowd` takes connections that read cached ranges.  `received` came before, in another process.
        Without `metrics` nothing is counted where anybody would see it.
        """
        self._rules = rules
        self._connection = connection
        scheme = connection.listener.service.scheme
        self._counting = Counting(metrics or Metrics(), scheme, connection.peer)
        self._sock = connection.sock
        self._grant = connection.listener.grant
        self._secure = isinstance(connection.sock, ssl.SSLSocket)
        self._application = application
        self._policy = policy
        self._access_log = access_log
        self._cors = cors
        self._extra = cors.headers if cors is not None else ()
        self._sender = Sender(connection.sock)
        self._receiver = Receiver(connection, rules.patient, rules.last_request_s)
        self._receiver.buffer = received
        self._crowd = crowd
        self._again: Again | None = None
        self._told: Told | None = None  # has to know of each answer of the fast path
        self._streak = 0  # small answers of the fast path in a row
        self._parked = False  # between two requests, for a successor to go on
        self._heading = False  # the present request is a HEAD, whose refusal has no content either

    def run(self) -> None:
        """Serve until the peer or the drain ends the connection."""
        try:
            while self._serve_one():
                # Until the last request was answered a connection is this process's.
                if self._connection.summoned and not self._secure:
                    self._parked = True
                    break
        except RequestError as error:
            self._refuse(error)
        else:
            if self._parked and self._connection.give({}, self._receiver.buffer):
                return
        finally:
            self._counting.close()
        self._linger()

    def _serve_one(self) -> bool:
        """Serve one request; False when the connection is to be closed."""
        raw = self._receiver.head()
        if raw is None:
            if self._connection.spare and not self._connection.spoken:
                refusal = self._no_place()
                self._sender.send(pack_head(refusal, False, current_date(), self._extra), refusal.body)
            self._parked = self._connection.summoned and not self._secure
            return False
        if self._again is not None and not self._connection.draining and self._answer_again(self._again, raw):
            return self._streak < STREAK or self._join_crowd(self._again)
        self._streak = 0
        self._connection.spoken = True
        began = perf_counter()
        self._heading = raw.startswith(b"HEAD ")
        head = parse_head(raw)
        self._counting.begin(head.method)
        body = Body(self._receiver, framing_of(head), self._go_on if _expects_continue(head) else None)
        bodiless = body.finished
        # Taken before the gate is asked, so that a change in between is noticed.
        renewal = self._policy.renewal(self._connection.peer)
        response = self._cors.preflight(head) if self._cors is not None else None
        token = None
        spare, spare_paths = self._connection.spare, self._rules.spare_paths
        if spare and spare_paths is not None and (head.path not in spare_paths or head.method not in ("GET", "HEAD")):
            response = self._no_place()
        if response is not None:
            response = self._policy.charge(self._connection.peer) or response
        else:
            token, response = self._policy.admit(head, self._connection.peer, self._grant)
        if response is None:
            watch, may_write = PeerWatch(self._connection), self._grant.lets_write(token)
            try:
                response = self._ask(Request(head, body, self._connection.peer, self._secure, token, watch, may_write))
            except HandedOver as error:
                if not body.taken and self._connection.summoned and not self._secure:
                    self._receiver.buffer = raw + b"\r\n\r\n" + self._receiver.buffer
                    self._parked = True
                    self._counting.forget()
                    return False
                refusal = self._rules.refusal(error.http_status, str(error), None)
                response = refusal._replace(headers=(*refusal.headers, ("Retry-After", "1")))
        keep_alive = head.keep_alive and not response.close and not spare
        if self._connection.draining:
            # What came along is answered too: nobody has told the client that it will not be.
            keep_alive = keep_alive and body.finished and self._receiver.pipelined
        if not body.finished:
            keep_alive = keep_alive and body.drain()
        self._counting.about(response)
        response = held(response)
        try:
            response = self._send(head, response, keep_alive)
        finally:
            self._counting.end(response, self._sender.sent, sys.exc_info()[1])
            if response.done is not None:
                response.done()
            self._account(began, head, token, response.status, self._sender.sent, head.headers.get("range"))
        self._again = None
        # The fast path reads no body: what is in one would be taken for the next request.
        if keep_alive and bodiless and renewal is not None:
            self._prepare_again(raw, head, response, renewal, token)
        self._heading = False
        return keep_alive

    def _no_place(self) -> Response:
        refusal = self._rules.refusal(503, "too many connections", None)
        return refusal._replace(headers=(*refusal.headers, ("Retry-After", BUSY_S)))

    def _account(
        self, began: float, head: RequestHead | None, token: str | None, status: int, sent: int, span: str | None
    ) -> None:
        self._policy.sent(self._connection.peer, sent)
        if self._access_log is not None:
            duration = perf_counter() - began
            self._access_log.write(AccessEntry(self._connection.peer, token, head, status, sent, duration, span))

    # The fast path

    def _prepare_again(
        self,
        raw: bytes,
        head: RequestHead,
        response: Response,
        renewal: Callable[[], bool],
        token: str | None,
    ) -> None:
        """Be ready for another range of the same; its request had no body, and neither have those that look like it."""
        if head.minor and response.repeat is not None:
            self._again = Again.of(raw, response.repeat, self._extra, renewal)
            self._counting.prepare(response)
            self._told = None
            if self._access_log is not None or self._policy.limits:
                self._told = lambda began, sent, asked: self._account(
                    began, head, token, 206, sent, f"bytes={asked.decode()}"
                )

    def _answer_again(self, again: Again, raw: bytes) -> bool:
        """Answer a request that differs from the last one in its range alone; False when it has to be parsed."""
        began = perf_counter()
        answer = again.answer(raw, LARGEST_AGAIN)
        if answer is None:
            return False
        head, views, start = answer
        length = len(head)
        for view in views:
            length += len(view)
        if self._secure:  # which needs a copy anyway, and nothing that the crowd could do
            del views, answer
            self._finish(again, Unsent(head, start, length - len(head), 0, began))
            return True
        try:
            sent = self._sock.sendmsg((head, *views), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        self._streak = self._streak + 1 if length <= LARGEST_OF_CROWD else 0
        if sent != length:
            del views, answer  # a peer that does not read must not keep cache memory alive
            done = max(sent - len(head), 0)
            self._finish(again, Unsent(head[sent:], start + done, length - len(head) - done, done, began))
            return True
        self._counting.again(length - len(head), began)
        if self._told is not None:
            self._told(began, length - len(head), again.asked)
        return True

    def _finish(self, again: Again, unsent: Unsent) -> None:
        """Send the rest of an answer of the fast path, waiting as long as the peer reads."""
        self._sender.total = 0
        try:
            self._sender.resume(unsent.head, (Piece(again.source, unsent.offset, unsent.length),))
        except HexzError as error:
            log.warning("%s: %s", self._connection.peer, error)
            self._counting.trouble(error)
            raise ConnectionAbortedError("hanging up in the middle of a response") from error
        finally:
            sent = unsent.done + max(self._sender.total - len(unsent.head), 0)
            self._counting.again(sent, unsent.began, sys.exc_info()[1])
            if self._told is not None:
                self._told(unsent.began, sent, again.asked)

    def _join_crowd(self, again: Again) -> bool:
        """Stay in the crowd as long as it can serve this connection; False when the peer has gone."""
        self._streak = 0
        if self._crowd is None or self._receiver.buffer or self._connection.summoned:
            return True
        if not self._crowd.has_company(self):
            return True
        member = Member(self._connection, again, self._counting, self._told)
        self._connection.silence = lambda: time.monotonic() - member.seen
        self._crowd.stay(member, self._connection.listener.summons)
        self._connection.silence = None
        if member.unsent is not None:
            self._finish(again, member.unsent)
        self._receiver.buffer = member.received
        return not member.ended

    # Asking and answering

    def _go_on(self) -> None:
        self._sender.send(b"HTTP/1.1 100 Continue\r\n\r\n", ())

    def _ask(self, request: Request) -> Response:
        try:
            return self._application.respond(request)
        except PeerGone as error:
            raise ConnectionAbortedError(str(error)) from None
        except RequestError as error:
            return self._rules.refusal(error.status, str(error), error)
        except HandedOver:
            raise
        except HexzError as error:
            return self._failure(request.head, error)
        except OSError as error:
            log.warning("%s: %s: %s", request.peer, request.head.shown, error)
            return self._rules.refusal(500, "the system failed", None)
        except Exception:
            log.exception("%s: %s: unexpected trouble", request.peer, request.head.shown)
            return self._rules.refusal(500, "the server failed", None)

    def _failure(self, head: RequestHead, error: HexzError) -> Response:
        """The response to trouble; where files lie on the server is for the log alone."""
        if error.http_status < 500:
            return self._rules.refusal(error.http_status, str(error), None)
        log.warning("%s: %s: %s", self._connection.peer, head.shown, error)
        self._counting.trouble(error)
        if isinstance(error, BlockError):
            message = f"the {error.stream} block at {error.position} is damaged"
            return self._rules.refusal(error.http_status, message, None)
        return self._rules.refusal(error.http_status, "the snapshot cannot be read", None)

    def _send(self, head: RequestHead, response: Response, keep_alive: bool) -> Response:
        """Send the response; the one that was sent, which is an error if nothing of the body could be read."""
        extra = self._extra if head.minor or not keep_alive else (*self._extra, ("Connection", "keep-alive"))
        packed = pack_head(response, keep_alive, current_date(), extra)
        bodiless = head.method == "HEAD" or response.status in (204, 304)
        try:
            self._sender.send(packed, () if bodiless else response.body)
            return response
        except HexzError as error:
            if self._sender.total:
                log.warning("%s: %s: %s", self._connection.peer, head.shown, error)
                self._counting.trouble(error)
                raise ConnectionAbortedError("hanging up in the middle of a response") from error
            failed = self._failure(head, error)._replace(done=response.done, purpose=response.purpose)
            packed = pack_head(failed, keep_alive, current_date(), extra)
            self._sender.send(packed, failed.body)
            return failed

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that could not be understood; where it ends is unknown, so the connection ends here."""
        log.info("%s: %d: %s", self._connection.peer, error.status, error)
        response = self._policy.charge(self._connection.peer) or self._rules.refusal(error.status, str(error), error)
        packed = pack_head(response, False, current_date(), self._extra)
        sent = self._sender.send(packed, () if self._heading else response.body)
        self._counting.end(response, sent)
        self._account(perf_counter(), None, None, response.status, sent, None)

    def _linger(self) -> None:
        """Let the peer read the last response before a reset can overtake it (RFC 9112 section 9.6)."""
        if self._secure:
            return
        self._sock.shutdown(socket.SHUT_WR)
        patience = SPARE_LINGER_S if self._connection.spare else LINGER_S
        deadline = time.monotonic() + patience
        self._receiver.limit_waits(patience)
        while time.monotonic() < deadline and self._sock.recv(RECEIVE):
            continue


def _expects_continue(head: RequestHead) -> bool:
    expect = head.headers.get("expect")
    if expect is None or not head.minor:
        return False
    if expect.lower() != "100-continue":
        raise RequestError(417, "the only expectation known here is 100-continue")
    return True


_date = (0, "")


def current_date() -> str:
    """The present time as an HTTP date, formatted once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, format_date(now))
    return _date[1]
