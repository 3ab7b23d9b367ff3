"""See, during long work for a peer, whether it still waits for it."""

from __future__ import annotations

import math
import select
import time

from hexz.servers.connection import Connection
from hexz.servers.errors import PeerGone

__all__ = ["LOOK_S", "PeerWatch"]

LOOK_S = 0.1
"""How often the peer is looked at, in seconds of work."""


class PeerWatch:
    """To be called again and again during one piece of work that may be long; most calls only look at the clock."""

    __slots__ = ("_connection", "_due")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._due = math.inf

    def __call__(self) -> None:
        """Look at the peer if that is due.

        A peer that only stopped sending counts as gone: the two cannot be told apart before something is sent to it.
        Raises: PeerGone.
        """
        now = time.monotonic()
        if now < self._due:
            self._due = min(self._due, now + LOOK_S)
            return
        self._due = now + LOOK_S
        poll = select.poll()
        # A stop shuts our own side for reading, which looks the same; it lets what runs end.
        poll.register(self._connection.sock, 0 if self._connection.draining else select.POLLRDHUP)
        if poll.poll(0):
            raise PeerGone("the peer has hung up")
