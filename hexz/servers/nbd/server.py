"""The NBD server: a listener whose connections speak NBD."""

from __future__ import annotations

from hexz.servers.base import Listener
from hexz.servers.connection import Connection
from hexz.servers.nbd.handler import NbdHandler
from hexz.servers.nbd.site import NbdSite

__all__ = ["NbdServer"]


class NbdServer(Listener):
    """Serves a site on one listening socket.  NBD has no word for «too many»: such a connection is just closed."""

    handler = NbdHandler
    site: NbdSite

    def drain(self, connection: Connection) -> None:
        """Let a receive that waits return; the transmission loop then says ESHUTDOWN to what still comes."""
        connection.hang_up_idle()
