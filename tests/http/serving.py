"""An HTTP server inside the test, and a client that reads its answers to the byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from hexz.catalog import Catalog
from hexz.rights.exposure import OWN
from hexz.servers.accept_loop import AcceptLoop
from hexz.servers.addresses import TcpAddress
from hexz.servers.http.application import Application
from hexz.servers.http.server import HttpServer
from hexz.servers.http.site import HttpSite
from hexz.servers.http.snapshots import CatalogApplication
from hexz.snapshot import new_context

PATIENCE_S = 60.0


class Reply(NamedTuple):
    """A response; header names in lower case, `repeated` those that came more than once."""

    status: int
    headers: dict[str, str]
    body: bytes
    version: str = "HTTP/1.1"
    repeated: tuple[str, ...] = ()


class Client:
    """One connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, method: str = "GET") -> Reply:
        """The next response.  Raises: EOFError when there is none, or less of it than announced."""
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        headers: dict[str, str] = {}
        repeated = []
        for field in fields:
            name, colon, value = field.partition(": ")
            assert colon and name and value == value.strip()
            if name.lower() in headers:
                repeated.append(name.lower())
            headers[name.lower()] = value
        assert "transfer-encoding" not in headers
        length = int(headers.get("content-length", "0"))
        if method == "HEAD" or status in ("204", "304") or status[0] == "1":
            length = 0
        while len(self.rest) < length:
            self._more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return Reply(int(status), headers, body, version, tuple(repeated))

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError(self.rest)
        self.rest += data

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
        self.send(request(method, target, headers) + body)
        return self.receive(method)

    def ended(self) -> bool:
        """Whether the server has closed the connection; waits until it does."""
        try:
            return self.rest == b"" and self.sock.recv(1) == b""
        except ConnectionError:
            return True


def request(method: str, target: str, headers: dict[str, str] | None = None, version: str = "1.1") -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **(headers or {})}.items())
    return f"{method} {target} HTTP/{version}\r\n{fields}\r\n".encode("latin-1")


class Serving:
    """A running server; `catalog` may be changed while it runs."""

    def __init__(self, snapshots: dict[str, Any], **settings: Any) -> None:
        """`settings` go to `HttpSite`, but for `cache_size`, `max_range`, `application` and the listener's.

        Those are `max_connections` and `grant`.
        """
        self.catalog = Catalog(new_context(settings.pop("cache_size", 64 << 20)))
        for name, path in snapshots.items():
            self.catalog.add(name, str(path))
        most = settings.pop("max_connections", 256)
        most_bytes = settings.pop("max_range", 0)
        self.application: Application = settings.pop("application", CatalogApplication(self.catalog, most_bytes))
        grant = settings.pop("grant", OWN)
        self.front = AcceptLoop()
        self.listener = HttpServer.open(TcpAddress("127.0.0.1", 0), HttpSite(self.application, **settings), most)
        self.listener.grant = grant
        self.front.add(self.listener)
        self.address: tuple[str, int] = self.listener.socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._thread = threading.Thread(target=self.front.run)
        self._thread.start()

    def client(self) -> Client:
        return Client(self.address)

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
        with self.client() as client:
            return client.ask(method, target, headers, body)

    def close(self, patience: float = 5.0) -> bool:
        """Stop; True when every connection ended by itself."""
        self.front.stop()
        self._thread.join()
        clean = self.front.drain(patience)
        self.front.close()
        self.catalog.close()
        return clean


@contextlib.contextmanager
def serving(snapshots: dict[str, Any], **settings: Any) -> Iterator[Serving]:
    server = Serving(snapshots, **settings)
    try:
        yield server
    finally:
        server.close()
