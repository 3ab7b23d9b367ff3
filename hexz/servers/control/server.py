"""The control socket: who may change things through it, and the line in the log that says who did."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection

from hexz.errors import HexzError
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.responses import Response
from hexz.protocol.nydus.errors import refusal_response
from hexz.rights.exposure import OWN, Grant
from hexz.servers.addresses import peer_uid
from hexz.servers.connection import Connection
from hexz.servers.http.access import AccessEntry
from hexz.servers.http.application import Application, Request, Rules
from hexz.servers.http.handler import HttpHandler
from hexz.servers.http.server import HttpServer
from hexz.servers.http.site import HttpSite

__all__ = ["ControlServer", "ControlSite"]

log = logging.getLogger("hexz.control")

READING = frozenset({"GET", "HEAD", "OPTIONS"})
LAST_REQUEST_S = 0.1
"""While draining: how long a request may still come; no network is in between."""
_RULES = Rules(refusal_response, patient=True, last_request_s=LAST_REQUEST_S, spare_paths=None)


class _PeerPolicy:
    """Lets everybody read who can connect, and some users change things."""

    def __init__(self, uid: int, trusted: Collection[int]) -> None:
        self._may_change = uid in trusted
        self._uid = uid

    def admit(self, head: RequestHead, peer: str, grant: Grant = OWN) -> tuple[str | None, Response | None]:
        """The user as a name, and a refusal (403) if there is one."""
        if self._may_change or head.method in READING:
            return f"uid {self._uid}", None
        return None, refusal_response(403, f"user {self._uid} may read here, and change nothing")

    def charge(self, peer: str) -> None:
        """Nothing is limited here."""

    limits = False

    def renewal(self, peer: str) -> None:
        """Nothing here is asked so often."""

    def sent(self, peer: str, size: int) -> None:
        """Nothing is limited here."""


class _Audit:
    """One line in the log for each call of one connection that may change something, with the cause if it failed."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._cause = ""  # of the request that is being answered

    def respond(self, request: Request) -> Response:
        """What the application answers.  Raises: RequestError, HexzError."""
        self._cause = ""
        try:
            return self._application.respond(request)
        except (RequestError, HexzError) as error:
            self._cause = f": {error}"
            raise

    def write(self, entry: AccessEntry) -> None:
        """Called once a request was answered."""
        cause, self._cause = self._cause, ""
        if entry.head is not None and entry.head.method not in READING:
            who, level = entry.token or "refused", logging.WARNING if cause else logging.INFO
            trusted = {"each": entry.token is not None}
            log.log(
                level, "%s: %s %s: %d%s", who, entry.head.method, entry.head.shown, entry.status, cause, extra=trusted
            )


class ControlSite(HttpSite):
    """The control API; it is known by its path alone, so nothing of it counts as HTTP's."""

    def __init__(self, application: Application, trusted: Collection[int] = ()) -> None:
        """Besides this process's own user and root, the users `trusted` (numeric ids) may change things."""
        super().__init__(application, scheme="control", rules=_RULES)
        self.trusted = {0, os.geteuid(), *trusted}


class ControlHandler(HttpHandler):
    """One client of the control socket, which is let in by who it is."""

    server: ControlServer

    def setup(self) -> None:
        """As for HTTP, with a policy and a log of its own.  Raises: OSError."""
        super().setup()
        self.policy = _PeerPolicy(peer_uid(self.request.sock), self.server.site.trusted)
        self.application = self.access_log = _Audit(self.application)


class ControlServer(HttpServer):
    """HTTP on the control socket: errors are JSON, and a silent connection is never ended.

    Supervisors watch such a connection: its end means the daemon's.  A successor has a control socket of its own:
    nothing is handed over here.
    """

    handler = ControlHandler
    keeps_idle = True
    site: ControlSite

    def refuse(self, connection: Connection) -> None:
        """Too many clients: the connection is just closed."""
