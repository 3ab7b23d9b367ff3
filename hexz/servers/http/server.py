"""The HTTP server: a listener whose connections speak HTTP/1.1 and HTTP/1.0."""

from __future__ import annotations

from http.server import ThreadingHTTPServer

from hexz.servers.base import Listener
from hexz.servers.connection import Connection
from hexz.servers.http.handler import HttpHandler
from hexz.servers.http.site import HttpSite

__all__ = ["HttpServer"]

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 21\r\n\r\ntoo many connections\n"
)


class HttpServer(Listener, ThreadingHTTPServer):
    """Serves a site on one listening socket."""

    handler = HttpHandler
    site: HttpSite

    def refuse(self, connection: Connection) -> None:
        """503, unless TLS would have to come first."""
        if self.site.tls is None:
            connection.sock.send(_BUSY)
