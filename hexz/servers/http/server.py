"""The HTTP server: what its listeners have in common, and the listener itself."""

from __future__ import annotations

from http.server import ThreadingHTTPServer

from hexz.metrics import Metrics
from hexz.protocol.http.cors import Cors
from hexz.servers.base import Listener
from hexz.servers.connection import Connection
from hexz.servers.http.access import Gate
from hexz.servers.http.application import PLAIN_RULES, Application, Policy, RequestLog, Rules
from hexz.servers.http.crowd import Crowd
from hexz.servers.http.handler import HttpHandler
from hexz.servers.http.receiving import IDLE_S
from hexz.servers.tls import TlsContext

__all__ = ["HttpServer", "HttpSite"]

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 21\r\n\r\ntoo many connections\n"
)


class HttpSite:
    """An application behind HTTP/1.1 and HTTP/1.0, with TLS if there is a certificate; for any number of listeners."""

    def __init__(
        self,
        application: Application,
        gate: Policy | None = None,
        access_log: RequestLog | None = None,
        tls: TlsContext | None = None,
        cors: str | None = None,
        scheme: str = "http",
        rules: Rules = PLAIN_RULES,
        metrics: Metrics | None = None,
    ) -> None:
        """`cors` is the origin that pages may read from (``*`` for any).

        Without an `access_log` nothing is written down; without `metrics` nothing is counted where anybody sees it.
        """
        self.application = application
        self.policy: Policy = gate or Gate()
        self.access_log = access_log
        self.tls = tls
        self.cors = Cors(cors) if cors is not None else None
        self.scheme = f"{scheme}s" if tls else scheme
        self.rules = rules
        self.metrics = metrics
        self.answers_spares = rules.spare_paths is None or bool(rules.spare_paths)
        self.crowd = Crowd(IDLE_S)


class HttpServer(Listener, ThreadingHTTPServer):
    """Serves a site on one listening socket."""

    handler = HttpHandler
    site: HttpSite

    def refuse(self, connection: Connection) -> None:
        """503, unless TLS would have to come first."""
        if self.site.tls is None:
            connection.sock.send(_BUSY)
