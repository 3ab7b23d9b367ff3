"""One HTTP/1.x connection: read a head, ask the application, send its response, again.

`HttpHandler` is a `http.server.BaseHTTPRequestHandler`, and its hooks are the way of a request: `handle` calls
`handle_one_request` until ``close_connection``, that calls `parse_request`, and `send_error` answers what cannot be
understood.  Where it departs from the stock class:

- `parse_request` is strict (RFC 9112, `hexz.protocol.http.head`): what two parsers could read in two ways is refused.
  It sets `head`, not ``headers`` and ``path``.
- There is no ``rfile`` and no ``wfile``: a `Receiver` bounds every wait, and head and body leave in one ``sendmsg``,
  with no copy of cached data (`hexz.servers.http.sending`).
- Instead of ``do_GET`` and its like an `Application` answers, whatever the method: each refuses those it does not know
  in its own protocol's words.
- A request that differs from the last one in its range alone takes a shorter way (`hexz.servers.http.repeated`), and
  connections that send nothing else are served together (`hexz.servers.crowd`).
- Between two requests a connection can go to another process.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from time import perf_counter

from hexz.errors import BlockError, HandedOver, HexzError, OutOfMemory, Overloaded, SnapshotAwaited
from hexz.metrics import Metrics
from hexz.protocol.http.dates import format_date
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead, framing_of, parse_head
from hexz.protocol.http.responses import Piece, Response, pack_head
from hexz.servers.base import Listener
from hexz.servers.connection import Connection
from hexz.servers.crowd import LARGEST
from hexz.servers.errors import PeerGone
from hexz.servers.http.access import AccessEntry
from hexz.servers.http.application import Request
from hexz.servers.http.counting import HttpCounting
from hexz.servers.http.receiving import Body, Receiver
from hexz.servers.http.repeated import RepeatedRange
from hexz.servers.http.site import HttpSite
from hexz.servers.http.turns import Told, Turns, Unsent, send_at_once
from hexz.servers.sending import Sender, held
from hexz.servers.tls import TLS_HANDSHAKE_S, TlsContext, tls_reason
from hexz.servers.watch import PeerWatch

__all__ = ["HttpHandler"]

log = logging.getLogger("hexz.http")

LINGER_S = 1.0
"""How long a peer may go on sending after the last response, before the connection is closed under it."""
SPARE_LINGER_S = 0.1
"""The same, where others wait for the thread."""
BUSY_S = "5"
"""Retry-After of those for whom there is no place, seconds."""
OVERLOADED_S = "1"
"""Retry-After of those for whom there is no memory, seconds."""
RECEIVE = 16 << 10
LARGEST_REPEATED = 1 << 20
"""Longest range that the fast path answers, bytes; longer ones go out in pieces."""
STREAK = 8
"""A connection that the fast path answered so many times in a row joins the crowd, unless it is alone."""


class HttpHandler(BaseHTTPRequestHandler):
    """The loop over one connection's requests; the connection's thread runs it."""

    request: Connection
    connection: Connection
    server: Listener
    site: HttpSite
    head: RequestHead

    def setup(self) -> None:
        """Get ready to receive, after the handshake of TLS where there is a certificate.

        Raises: OSError when TLS does not come about.
        """
        connection, site = self.request, self.server.site
        assert isinstance(site, HttpSite)
        self.site = site
        self.policy, self.access_log, self.application = site.policy, site.access_log, site.application
        self._rules = site.rules
        if site.tls is not None and not isinstance(connection.sock, ssl.SSLSocket):
            self._secure_with(site.tls)
        self.connection = connection
        self._sock = connection.sock
        self._secure = isinstance(connection.sock, ssl.SSLSocket)
        self._counting = HttpCounting(site.metrics or Metrics(), site.scheme, connection.peer)
        self._extra = site.cors.headers if site.cors is not None else ()
        self._sender = Sender(connection.sock, lambda: connection.hurried)
        self._receiver = Receiver(connection, self._rules.patient, self._rules.last_request_s)
        self._receiver.buffer = connection.received
        self._repeated: RepeatedRange | None = None
        self._told: Told | None = None  # has to know of each answer of the fast path
        self._streak = 0  # small answers of the fast path in a row
        self._parked = False  # between two requests, for a successor to go on
        self._heading = False  # the present request is a HEAD, whose refusal has no content either
        self._answered = False  # all that came was answered: the peer may still be reading
        self.close_connection = False

    def _secure_with(self, tls: TlsContext) -> None:
        self.request.sock.settimeout(TLS_HANDSHAKE_S)
        try:
            self.request.sock = tls.wrap(self.request.sock)
        except (ssl.SSLError, socket.timeout, TimeoutError) as error:
            log.info("%s: TLS: %s", self.request.peer, tls_reason(error))
            raise ConnectionAbortedError("no TLS") from None
        if self.request.summoned:
            self.request.end_after_answer()  # what is under TLS cannot be given to a successor

    def handle(self) -> None:
        """Serve until the peer or the drain ends the connection."""
        try:
            while not self.close_connection:
                self.handle_one_request()
                # Until the last request was answered a connection is this process's.
                if self.connection.summoned and not self._secure and not self.close_connection:
                    self._parked = True
                    break
        except RequestError as error:
            self.send_error(error.status, str(error), refused=error)
        self._answered = True

    def finish(self) -> None:
        """Give the connection to a successor, or see that the peer can read the last response."""
        self._counting.close()
        if self._answered and not (self._parked and self.connection.give({}, self._receiver.buffer)):
            self._linger()

    def handle_one_request(self) -> None:
        """Serve one request; afterwards `close_connection` says whether it was the last.

        Raises: RequestError when it cannot be understood.
        """
        raw = self._receiver.head()
        if raw is None:
            self._end_unasked()
        elif self._repeated is None or self.connection.draining or not self._answer_repeated(self._repeated, raw):
            self._streak = 0
            self._answer(raw)
        elif self._streak >= STREAK:
            self._join_crowd(self._repeated)

    def _end_unasked(self) -> None:
        """No more requests come."""
        self.close_connection = True
        if self.connection.spare and not self.connection.spoken:
            refusal = self._no_place()
            self._sender.send(pack_head(refusal, False, self.date_time_string(), self._extra), refusal.body)
        self._parked = self.connection.summoned and not self._secure

    def parse_request(self) -> bool:
        """Parse ``raw_requestline``, which here is a whole head; always True.

        Raises: RequestError.
        """
        self.connection.spoken = True
        self._heading = self.raw_requestline.startswith(b"HEAD ")
        self.head = head = parse_head(self.raw_requestline)
        self._counting.begin(head.method)
        self._body = Body(self._receiver, framing_of(head), self._go_on if _expects_continue(head) else None)
        return True

    def _answer(self, raw: bytes) -> None:
        """Answer the request whose head is `raw`, the long way."""
        began = perf_counter()
        self.raw_requestline = raw
        self.parse_request()
        head, body, policy = self.head, self._body, self.policy
        bodiless = body.finished
        # Taken before the gate is asked, so that a change in between is noticed.
        renewal = policy.renewal(self.connection.peer)
        token, response = self._admit()
        if response is None:
            try:
                response = self._ask(token)
            except HandedOver as error:
                if not body.taken and self.connection.summoned and not self._secure:
                    self._receiver.buffer = raw + b"\r\n\r\n" + self._receiver.buffer
                    self._parked = self.close_connection = True
                    self._counting.forget()
                    return
                refusal = self._rules.refusal(error.http_status, str(error), None)
                response = refusal._replace(headers=(*refusal.headers, ("Retry-After", "1")))
        keep_alive = head.keep_alive and not response.close and not self.connection.spare
        if self.connection.draining:
            # What came along is answered too: nobody has told the client that it will not be.
            keep_alive = keep_alive and body.finished and self._receiver.pipelined
        if not body.finished:
            keep_alive = keep_alive and body.drain()
        self._counting.about(response)
        response = held(response)
        if response.when_ended is not None:
            response.when_ended(self.connection.hurry)
        try:
            response = self._send(head, response, keep_alive)
        finally:
            self._counting.end(response, self._sender.sent, sys.exc_info()[1])
            if response.done is not None:
                response.done()
            self.connection.hurried = False
            self._account(began, head, token, response.status, self._sender.sent, head.headers.get("range"))
        self._repeated = None
        # The fast path reads no body: what is in one would be taken for the next request.
        if keep_alive and bodiless and renewal is not None:
            self._prepare_repeated(raw, head, response, renewal, token)
        self._heading = False
        self.close_connection = not keep_alive

    def _admit(self) -> tuple[str | None, Response | None]:
        """The name of the token that was used, and a response where the application is not to be asked."""
        head, peer, cors = self.head, self.connection.peer, self.site.cors
        response = cors.preflight(head) if cors is not None else None
        if self.connection.spare and not self._rules.answers_spare(head):
            response = self._no_place()
        if response is not None:
            return None, self.policy.charge(peer) or response
        return self.policy.admit(head, peer, self.server.grant)

    def _no_place(self) -> Response:
        refusal = self._rules.refusal(503, "too many connections", None)
        return refusal._replace(headers=(*refusal.headers, ("Retry-After", BUSY_S)))

    def _account(
        self, began: float, head: RequestHead | None, token: str | None, status: int, sent: int, span: str | None
    ) -> None:
        self.policy.sent(self.connection.peer, sent)
        if self.access_log is not None:
            duration = perf_counter() - began
            self.access_log.write(AccessEntry(self.connection.peer, token, head, status, sent, duration, span))

    # The fast path

    def _prepare_repeated(
        self,
        raw: bytes,
        head: RequestHead,
        response: Response,
        renewal: Callable[[], bool],
        token: str | None,
    ) -> None:
        """Be ready for another range of the same; its request had no body, and neither have those that look like it."""
        if head.minor and response.repeat is not None:
            self._repeated = RepeatedRange.of(raw, response.repeat, self._extra, renewal)
            self._counting.prepare(response)
            self._told = None
            if self.access_log is not None or self.policy.limits:
                self._told = lambda began, sent, asked: self._account(
                    began, head, token, 206, sent, f"bytes={asked.decode()}"
                )

    def _answer_repeated(self, repeated: RepeatedRange, raw: bytes) -> bool:
        """Answer a request that differs from the last one in its range alone; False when it has to be parsed."""
        began = perf_counter()
        answer = repeated.answer(raw, LARGEST_REPEATED)
        if answer is None:
            return False
        head, views, start = answer
        if self._secure:  # which needs a copy anyway, and nothing that the crowd could do
            length = sum(map(len, views))
            del views, answer
            self._finish(repeated, Unsent(head, start, length, 0, began))
            return True
        length, unsent = send_at_once(self._sock, began, head, views, start)
        self._streak = self._streak + 1 if length <= LARGEST else 0
        if unsent is not None:
            del views, answer  # a peer that does not read must not keep cache memory alive
            self._finish(repeated, unsent)
            return True
        self._counting.repeated(length, began)
        if self._told is not None:
            self._told(began, length, repeated.asked)
        return True

    def _finish(self, repeated: RepeatedRange, unsent: Unsent) -> None:
        """Send the rest of an answer of the fast path, waiting as long as the peer reads."""
        self._sender.total = 0
        try:
            self._sender.resume(unsent.head, (Piece(repeated.source, unsent.offset, unsent.length),))
        except HexzError as error:
            log.warning("%s: %s", self.connection.peer, error)
            self._counting.trouble(error)
            raise ConnectionAbortedError("hanging up in the middle of a response") from error
        finally:
            sent = unsent.done + max(self._sender.total - len(unsent.head), 0)
            self._counting.repeated(sent, unsent.began, sys.exc_info()[1])
            if self._told is not None:
                self._told(unsent.began, sent, repeated.asked)

    def _join_crowd(self, repeated: RepeatedRange) -> None:
        """Stay in the crowd as long as it can serve this connection."""
        self._streak = 0
        connection, crowd = self.connection, self.site.crowd
        if self._receiver.buffer or connection.summoned or not crowd.has_company(connection):
            return
        turns = Turns(connection, repeated, self._counting, self._told)
        goes_on = crowd.stay(connection, turns.take)
        if turns.unsent is not None:
            self._finish(repeated, turns.unsent)
        self._receiver.buffer = turns.received
        self.close_connection = turns.ended or not goes_on

    # Asking and answering

    def _go_on(self) -> None:
        self._sender.send(b"HTTP/1.1 100 Continue\r\n\r\n", ())

    def _ask(self, token: str | None) -> Response:
        """What the application answers.  Raises: HandedOver; ConnectionAbortedError when the peer has gone."""
        connection = self.connection
        watch, may_write = PeerWatch(connection), self.server.grant.lets_write(token)
        request = Request(self.head, self._body, connection.peer, self._secure, token, watch, may_write)
        try:
            return self.application.respond(request)
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
        except MemoryError:
            return self._failure(request.head, OutOfMemory())
        except Exception:
            log.exception("%s: %s: unexpected trouble", request.peer, request.head.shown)
            return self._rules.refusal(500, "the server failed", None)

    def _failure(self, head: RequestHead, error: HexzError) -> Response:
        """The response to trouble; where files lie on the server is for the log alone."""
        if error.http_status < 500:
            return self._rules.refusal(error.http_status, str(error), None)
        log.warning("%s: %s: %s", self.connection.peer, head.shown, error)
        self._counting.trouble(error)
        if isinstance(error, (Overloaded, SnapshotAwaited)):
            refusal = self._rules.refusal(error.http_status, str(error), None)
            return refusal._replace(headers=(*refusal.headers, ("Retry-After", OVERLOADED_S)))
        if isinstance(error, BlockError):
            message = f"the {error.stream} block at {error.position} is damaged"
            return self._rules.refusal(error.http_status, message, None)
        return self._rules.refusal(error.http_status, "the snapshot cannot be read", None)

    def _send(self, head: RequestHead, response: Response, keep_alive: bool) -> Response:
        """Send the response; the one that was sent, which is an error if nothing of the body could be read."""
        extra = self._extra if head.minor or not keep_alive else (*self._extra, ("Connection", "keep-alive"))
        packed = pack_head(response, keep_alive, self.date_time_string(), extra)
        bodiless = head.method == "HEAD" or response.status in (204, 304)
        try:
            self._sender.send(packed, () if bodiless else response.body)
            return response
        except (HexzError, MemoryError) as raised:
            error = raised if isinstance(raised, HexzError) else OutOfMemory()
            if self._sender.total:
                log.warning("%s: %s: %s", self.connection.peer, head.shown, error)
                self._counting.trouble(error)
                raise ConnectionAbortedError("hanging up in the middle of a response") from error
            failed = self._failure(head, error)._replace(done=response.done, purpose=response.purpose)
            packed = pack_head(failed, keep_alive, self.date_time_string(), extra)
            self._sender.send(packed, failed.body)
            return failed

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None, refused: RequestError | None = None
    ) -> None:
        """Answer a request that could not be understood; where it ends is unknown, so the connection ends here."""
        log.info("%s: %d: %s", self.connection.peer, code, message)
        refusal = self._rules.refusal(code, message or "", refused)
        response = self.policy.charge(self.connection.peer) or refusal
        packed = pack_head(response, False, self.date_time_string(), self._extra)
        sent = self._sender.send(packed, () if self._heading else response.body)
        self._counting.end(response, sent)
        self._account(perf_counter(), None, None, response.status, sent, None)
        self.close_connection = True

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The present time as an HTTP date, or `timestamp`."""
        return current_date() if timestamp is None else format_date(int(timestamp))

    def log_message(self, format: str, *args: object) -> None:
        """What the stock class would write on standard error."""
        log.info("%s: %s", self.connection.peer, format % args)

    def _linger(self) -> None:
        """Let the peer read the last response before a reset can overtake it (RFC 9112 section 9.6)."""
        if self._secure:
            return
        self._sock.shutdown(socket.SHUT_WR)
        patience = SPARE_LINGER_S if self.connection.spare else LINGER_S
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
