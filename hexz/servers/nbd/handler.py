"""One NBD connection: `handle` agrees on an export with the client (the handshake), then answers its requests."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import ssl
import time
from typing import Any

from hexz.catalog import Lease
from hexz.protocol.nbd.handshake import Handshake, Negotiated, Next
from hexz.servers.base import Listener
from hexz.servers.connection import Connection
from hexz.servers.nbd.outbox import Export
from hexz.servers.nbd.site import NbdSite
from hexz.servers.nbd.stopping import receive_late
from hexz.servers.nbd.transmission import Transmission
from hexz.servers.tls import tls_reason

__all__ = ["NbdHandler"]

log = logging.getLogger("hexz.nbd")

HANDSHAKE_S = 10.0
"""How long a client may take to agree on an export."""
RECEIVE = 4096
GOODBYE_S = 1.0
"""How long the end of TLS is waited for."""


class NbdHandler(socketserver.BaseRequestHandler):
    """The two phases of the protocol on one connection (proto.md, "Protocol phases")."""

    request: Connection
    server: Listener

    def setup(self) -> None:
        """Know what is served here."""
        assert isinstance(self.server.site, NbdSite)
        self.site = self.server.site

    def handle(self) -> None:
        """Handshake, then requests until the client leaves."""
        if self.request.adopted is not None:
            self._resume(self.request.adopted)
            return
        handshake = self._handshake()
        if handshake is None:
            return
        negotiated = handshake.negotiated
        assert negotiated is not None
        found = self.site.directory.open(negotiated.export)
        if found is not None:  # else taken away since it was agreed on
            self._transmit(found, negotiated, handshake.rest)

    def _transmit(self, opened: tuple[Lease, Export], negotiated: Negotiated, received: bytes) -> None:
        lease, export = opened
        site, connection = self.site, self.request
        connection.spoken = True
        try:
            lease.when_ended(connection.end)
            transmission = Transmission(
                connection, export, negotiated, site.pools.of(export.stream), site.crowd, received
            )
            transmission.run()
            parked = transmission.parked
            # A successor opens files by name: what has been replaced here is not what it would find.
            if parked is not None and site.directory.opens(negotiated.export, export):
                state = {**negotiated._asdict(), "size": export.size, "etag": export.stream.etag}
                if connection.give(state, parked):
                    return
            self._say_bye()
        finally:
            lease.release()

    def _resume(self, state: dict[str, Any]) -> None:
        """Go on with a client that agreed on everything with another process."""
        negotiated = Negotiated(
            str(state["export"]), bool(state["structured"]), bool(state["extended"]), tuple(state["contexts"])
        )
        opened = self.site.directory.open(negotiated.export)
        if opened is None or not opened[1].stream.known_as(str(state["etag"])):
            log.warning("%s: export %r is not what it was: hanging up", self.request.peer, negotiated.export)
            if opened is not None:
                opened[0].release()
            return
        export = opened[1]._replace(size=int(state["size"]))
        self._transmit((opened[0], export), negotiated, self.request.received)

    def _say_bye(self) -> None:
        """Close TLS before the socket (proto.md, "NBD_CMD_DISC")."""
        sock = self.request.sock
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(GOODBYE_S)
            with contextlib.suppress(OSError, ValueError):  # the client has hung up already
                sock.unwrap()

    def _handshake(self) -> Handshake | None:
        """The finished handshake; the connection's socket may be under TLS afterwards."""
        connection, site = self.request, self.site
        deadline = time.monotonic() + HANDSHAKE_S
        handshake = Handshake(site.directory, site.tls_mode)
        try:
            connection.sock.settimeout(HANDSHAKE_S)
            connection.sock.sendall(handshake.greeting())
            while True:
                connection.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = connection.sock.recv(RECEIVE)
                if connection.draining:
                    handshake.stop()
                    data = data or self._receive_late()
                if not data:
                    return None
                foreign = handshake.foreign(data)
                if foreign is not None:
                    log.info("%s: speaks %s to the NBD port: hanging up", connection.peer, foreign)
                    return None
                for step in handshake.receive(data):
                    connection.sock.sendall(step.send)
                    if step.next is Next.CLOSE:
                        self._say_bye()
                        return None
                    if step.next is Next.START_TLS:
                        assert site.tls is not None
                        connection.sock = site.tls.wrap(connection.sock)
                        handshake.secured()
                    elif step.next is Next.TRANSMIT:
                        # No time-out: a client may be silent for days; the end of the daemon hangs up.
                        connection.sock.settimeout(None)
                        return handshake
        except (TimeoutError, socket.timeout):
            log.info("%s: no agreement within %d s", connection.peer, HANDSHAKE_S)
        except ssl.SSLError as error:
            log.info("%s: TLS: %s", connection.peer, tls_reason(error))
        return None

    def _receive_late(self) -> bytes:
        """What a client still sends while the daemon stops."""
        if isinstance(self.request.sock, ssl.SSLSocket):
            return b""
        buffer = bytearray(RECEIVE)
        return bytes(buffer[: receive_late(self.request.sock, memoryview(buffer))])
