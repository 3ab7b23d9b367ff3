"""What answers requests, and who may ask: the interfaces between the HTTP server and what it serves.

An `Application` is a function from `Request` to `Response`; it does no I/O on the socket.  To add one:

- write a class with a `respond` method, and give it to an `HttpSite`;
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

from collections.abc import Callable
from typing import NamedTuple, Protocol

from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.responses import Response, error_response
from hexz.rights.exposure import OWN, Grant
from hexz.servers.http.access import OPEN_PATHS, AccessEntry
from hexz.servers.http.receiving import Body

__all__ = ["PLAIN_RULES", "Application", "Policy", "Request", "RequestLog", "Rules"]


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

    def answers_spare(self, head: RequestHead) -> bool:
        """Whether this is answered also to a connection for which there is no place."""
        return self.spare_paths is None or (head.path in self.spare_paths and head.method in ("GET", "HEAD"))


PLAIN_RULES = Rules()
