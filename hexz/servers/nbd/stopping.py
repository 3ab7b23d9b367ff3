"""What clients still ask while the daemon stops: it is told ESHUTDOWN rather than cut off."""

from __future__ import annotations

import socket
import time

__all__ = ["receive_late"]

LAST_REQUESTS_S = 0.25
"""While draining: how long a client that has no reply to come is listened to."""
LOOK_AGAIN_S = 0.01


def receive_late(sock: socket.socket, buffer: memoryview) -> int:
    """Receive once more on a socket that was shut for reading because the daemon stops.

    The bytes received; 0 when none came within `LAST_REQUESTS_S`.
    """
    deadline = time.monotonic() + LAST_REQUESTS_S
    while True:
        try:
            count = sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            count = 0
        if count or time.monotonic() > deadline:
            return count
        time.sleep(LOOK_AGAIN_S)  # a socket shut for reading is always readable: there is nothing to wait for
