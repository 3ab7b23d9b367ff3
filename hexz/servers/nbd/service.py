"""The NBD server: the handshake on a socket, then the transmission loop."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from hexz.catalog import Catalog, Lease
from hexz.errors import NoSuchSnapshot
from hexz.protocol.nbd.constants import MAX_NAME
from hexz.protocol.nbd.handshake import ExportFacts, Handshake, Negotiated, Next, TlsMode
from hexz.servers.base import Connection
from hexz.servers.nbd.crowd import Crowd
from hexz.servers.nbd.late import receive_late
from hexz.servers.nbd.misses import MissPool
from hexz.servers.nbd.outbox import Export
from hexz.servers.nbd.transmission import Transmission
from hexz.servers.tls import TlsContext, tls_reason

__all__ = ["NbdService"]

log = logging.getLogger("hexz.nbd")

HANDSHAKE_S = 10.0
"""How long a client may take to agree on an export."""
RECEIVE = 4096
GOODBYE_S = 1.0
"""How long the end of TLS is waited for."""


class _CatalogDirectory:
    """The catalog's streams as exports, sizes rounded up to `pad` bytes."""

    def __init__(self, catalog: Catalog, pad: int) -> None:
        self._catalog = catalog
        self._pad = pad

    def exports(self) -> Sequence[str]:
        """The names to list."""
        return [name for name in self._catalog.exports() if len(name.encode()) <= MAX_NAME]

    def open(self, name: str) -> tuple[Lease, Export] | None:
        """The export behind `name`, with the lease to release when the client has gone."""
        try:
            lease, stream = self._catalog.stream(name)
        except NoSuchSnapshot:
            return None
        return lease, Export(stream, -(-stream.size // self._pad) * self._pad, lease.metrics)

    def opens(self, name: str, export: Export) -> bool:
        """Whether `name` still means the same stream."""
        opened = self.open(name)
        if opened is not None:
            opened[0].release()
        return opened is not None and opened[1].stream is export.stream

    def facts(self, name: str) -> ExportFacts | None:
        """What a client is told of the export."""
        opened = self.open(name)
        if opened is None:
            return None
        lease, export = opened
        stream = export.stream
        full = lease.name if stream.name == "disk" else f"{lease.name}/{stream.name}"
        description = f"{stream.name} of {lease.name}, {stream.size} bytes"
        facts = ExportFacts(full, export.size, description, max(stream.block_size, 4096), stream.snapshot.thin)
        lease.release()
        return facts


class NbdService:
    """Serves every stream of the catalog as a read-only export."""

    def __init__(
        self,
        catalog: Catalog,
        pad: int = 1,
        tls_mode: TlsMode = TlsMode.OFF,
        tls: TlsContext | None = None,
    ) -> None:
        """`pad` rounds export sizes up to a multiple of so many bytes, with zeros."""
        self.answers_spares = False  # a client of NBD comes to stay
        self.keeps_idle = False
        self.scheme = "nbds" if tls_mode is TlsMode.REQUIRED else "nbd"
        self._directory = _CatalogDirectory(catalog, pad)
        self._tls_mode = tls_mode
        self._tls = tls
        self._pool = MissPool()
        self._crowd = Crowd()

    def serve(self, connection: Connection) -> None:
        """Handshake, then requests until the client leaves."""
        opened = self._handshake(connection)
        if opened is None:
            return
        handshake, sock = opened
        negotiated = handshake.negotiated
        assert negotiated is not None
        found = self._directory.open(negotiated.export)
        if found is None:
            return  # taken away since it was agreed on
        self._transmit(connection, sock, found, negotiated, handshake.rest)

    def _transmit(
        self,
        connection: Connection,
        sock: socket.socket,
        opened: tuple[Lease, Export],
        negotiated: Negotiated,
        received: bytes,
    ) -> None:
        lease, export = opened
        connection.spoken = True
        try:
            lease.when_ended(connection.end)
            transmission = Transmission(connection, sock, export, negotiated, self._pool, self._crowd, received)
            transmission.run()
            parked = transmission.parked
            # A successor opens files by name: what has been replaced here is not what it would find.
            if parked is not None and self._directory.opens(negotiated.export, export):
                state = {**negotiated._asdict(), "size": export.size, "etag": export.stream.etag}
                if connection.give(state, parked):
                    return
            self._say_bye(sock)
        finally:
            lease.release()

    def resume(self, connection: Connection, state: dict[str, Any], received: bytes) -> None:
        """Requests of a client that agreed on everything with another process."""
        negotiated = Negotiated(
            str(state["export"]), bool(state["structured"]), bool(state["extended"]), tuple(state["contexts"])
        )
        opened = self._directory.open(negotiated.export)
        if opened is None or not opened[1].stream.known_as(str(state["etag"])):
            log.warning("%s: export %r is not what it was: hanging up", connection.peer, negotiated.export)
            if opened is not None:
                opened[0].release()
            return
        export = opened[1]._replace(size=int(state["size"]))
        self._transmit(connection, connection.sock, (opened[0], export), negotiated, received)

    @staticmethod
    def _say_bye(sock: socket.socket) -> None:
        """Close TLS before the socket (proto.md, "NBD_CMD_DISC")."""
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(GOODBYE_S)
            with contextlib.suppress(OSError, ValueError):  # the client has hung up already
                sock.unwrap()

    def _handshake(self, connection: Connection) -> tuple[Handshake, socket.socket] | None:
        """The finished handshake and the socket to go on with, which is another one under TLS."""
        deadline = time.monotonic() + HANDSHAKE_S
        handshake = Handshake(self._directory, self._tls_mode)
        sock = connection.sock
        try:
            sock.settimeout(HANDSHAKE_S)
            sock.sendall(handshake.greeting())
            while True:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = sock.recv(RECEIVE)
                if connection.draining:
                    handshake.stop()
                    data = data or self._receive_late(sock)
                if not data:
                    return None
                foreign = handshake.foreign(data)
                if foreign is not None:
                    log.info("%s: speaks %s to the NBD port: hanging up", connection.peer, foreign)
                    return None
                for step in handshake.receive(data):
                    sock.sendall(step.send)
                    if step.next is Next.CLOSE:
                        self._say_bye(sock)
                        return None
                    if step.next is Next.START_TLS:
                        assert self._tls is not None
                        sock = connection.sock = self._tls.wrap(sock)
                        handshake.secured()
                    elif step.next is Next.TRANSMIT:
                        sock.settimeout(None)
                        return handshake, sock
        except (TimeoutError, socket.timeout):
            log.info("%s: no agreement within %d s", connection.peer, HANDSHAKE_S)
        except ssl.SSLError as error:
            log.info("%s: TLS: %s", connection.peer, tls_reason(error))
        return None

    @staticmethod
    def _receive_late(sock: socket.socket) -> bytes:
        """What a client still sends while the daemon stops."""
        if isinstance(sock, ssl.SSLSocket):
            return b""
        buffer = bytearray(RECEIVE)
        return bytes(buffer[: receive_late(sock, memoryview(buffer))])

    def refuse(self, connection: Connection) -> None:
        """NBD has no word for «too many»: the connection is just closed."""

    def drain(self, connection: Connection) -> None:
        """Let a receive that waits return; the transmission loop then says ESHUTDOWN to what still comes."""
        connection.hang_up_idle()
