"""The HTTP server: a connection loop for each client, in front of an application."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any

from hexz.access import AccessLog, Gate
from hexz.metrics import Metrics
from hexz.protocol.http.cors import Cors
from hexz.servers.base import Connection
from hexz.servers.http.connection import PLAIN_RULES, Application, HttpConnection, Policy, Rules
from hexz.servers.http.crowd import Crowd
from hexz.servers.http.receiving import IDLE_S
from hexz.servers.tls import TlsContext, tls_reason

__all__ = ["HttpService"]

log = logging.getLogger("hexz.http")

TLS_HANDSHAKE_S = 10.0
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 21\r\n\r\ntoo many connections\n"
)


class HttpService:
    """Serves an application over HTTP/1.1 and HTTP/1.0, with TLS if there is a certificate."""

    def __init__(
        self,
        application: Application,
        gate: Policy | None = None,
        access_log: AccessLog | None = None,
        tls: TlsContext | None = None,
        cors: str | None = None,
        scheme: str = "http",
        rules: Rules = PLAIN_RULES,
        metrics: Metrics | None = None,
    ) -> None:
        """`cors` is the origin that pages may read from (``*`` for any); `metrics` counts the requests."""
        self._metrics = metrics
        self._rules = rules
        self.scheme = f"{scheme}s" if tls else scheme
        self._application = application
        self.keeps_idle = False
        self.answers_spares = rules.spare_paths is None or bool(rules.spare_paths)
        self._gate = gate or Gate()
        self._access_log = access_log
        self._tls = tls
        self._cors = Cors(cors) if cors is not None else None
        self._crowd = Crowd(IDLE_S)

    def serve(self, connection: Connection) -> None:
        """Requests until the client leaves."""
        if self._tls is not None:
            sock = connection.sock
            sock.settimeout(TLS_HANDSHAKE_S)
            try:
                connection.sock = self._tls.wrap(sock)
            except (ssl.SSLError, socket.timeout, TimeoutError) as error:
                log.info("%s: TLS: %s", connection.peer, tls_reason(error))
                return
            if connection.summoned:
                connection.end_after_answer()  # what is under TLS cannot be given to a successor
        self.resume(connection, {}, b"")

    def resume(self, connection: Connection, state: dict[str, Any], received: bytes) -> None:
        """Requests until the client leaves, of which `received` has come already."""
        HttpConnection(
            connection,
            self._application,
            self._gate,
            self._access_log,
            self._cors,
            self._crowd,
            self._rules,
            received,
            self._metrics,
        ).run()

    def refuse(self, connection: Connection) -> None:
        """503, unless TLS would have to come first."""
        if self._tls is None:
            connection.sock.send(_BUSY)

    def drain(self, connection: Connection) -> None:
        """The summons is enough: a connection ends after its next answer, or when no request comes any more."""
