"""An NBD server inside the test, for what a test must see or hold back from within."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from hexz.catalog import Catalog
from hexz.servers.accept_loop import AcceptLoop
from hexz.servers.addresses import TcpAddress
from hexz.servers.nbd.server import NbdServer
from hexz.servers.nbd.site import NbdSite
from hexz.snapshot import Stream, new_context
from tests.nbd.wire import Client

PATIENCE_S = 30.0


class Serving:
    """A running server of one snapshot."""

    def __init__(self, path: Path, cache_size: int = 64 << 20, max_connections: int = 64, pad: int = 1) -> None:
        self.catalog = Catalog(new_context(cache_size))
        self.catalog.add("snap", str(path))
        self.site = NbdSite(self.catalog, pad)
        self.front = AcceptLoop()
        self.listener = NbdServer.open(TcpAddress("127.0.0.1", 0), self.site, max_connections)
        self.front.add(self.listener)
        self.address: tuple[str, int] = self.listener.socket.getsockname()
        self.closed = False
        self._thread = threading.Thread(target=self.front.run)
        self._thread.start()

    @property
    def disk(self) -> Stream:
        lease, stream = self.catalog.stream("")
        lease.release()
        return stream

    def client(self) -> Client:
        return Client(self.address)

    def stop_accepting(self) -> None:
        """The first step of the daemon's end."""
        self.front.stop()
        self._thread.join()
        self.front.stop_accepting()

    def close(self) -> bool:
        """Stop, once; True when every connection ended by itself."""
        if self.closed:
            return True
        self.closed = True
        self.stop_accepting()
        clean = self.front.drain(PATIENCE_S)
        self.front.close()
        self.catalog.close()
        return clean

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clean = self.close()
        assert clean or kind is not None, "connections had to be cut"
