"""One connection's turns in the crowd: the same request as before but for its range, answered from the cache."""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from hexz.servers.connection import Connection
from hexz.servers.crowd import LARGEST
from hexz.servers.http.counting import HttpCounting
from hexz.servers.http.repeated import RepeatedRange

__all__ = ["Told", "Turns", "Unsent", "send_at_once"]

RECEIVE = 16 << 10
_END = b"\r\n\r\n"

Told = Callable[[float, int, bytes], None]
"""(when the answer began, bytes of data sent, positions as asked for): wants to know of an answer."""


class Unsent(NamedTuple):
    """What is left of an answer: of its head, and of its data from `offset` on; `done` bytes of data are sent."""

    head: bytes
    offset: int
    length: int
    done: int
    began: float


class Turns:
    """A connection's turns, and how they went.

    Afterwards `received` is what came and was not answered, `unsent` what is left of an answer;
    `ended` says that the peer sends no more.
    """

    __slots__ = ("_connection", "_counting", "_repeated", "_sock", "_told", "ended", "received", "unsent")

    def __init__(
        self, connection: Connection, repeated: RepeatedRange, counting: HttpCounting, told: Told | None
    ) -> None:
        self._connection = connection
        self._sock = connection.sock
        self._repeated = repeated
        self._counting = counting
        self._told = told
        self.received = b""
        self.unsent: Unsent | None = None
        self.ended = False

    def take(self) -> bool:
        """Answer the request that has come; False when the connection's own thread has to go on.  Raises: OSError."""
        if self._connection.draining:  # the answer says that it is the last; the summons may ring only later
            return False
        try:
            began = perf_counter()
            data = self._sock.recv(RECEIVE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if data.find(_END) != len(data) - 4:
            self.received = data
            self.ended = not data
            return False
        answer = self._repeated.answer(data[:-4], LARGEST)
        if answer is None:
            self.received = data
            return False
        head, views, start = answer
        length, self.unsent = send_at_once(self._sock, began, head, views, start)
        if self.unsent is not None:
            return False
        self._counting.repeated(length, began)
        if self._told is not None:
            self._told(began, length, self._repeated.asked)
        return True


def send_at_once(
    sock: socket.socket, began: float, head: bytes, views: list[memoryview], start: int
) -> tuple[int, Unsent | None]:
    """Send an answer as far as the socket takes it without waiting; its bytes of data, and what is left of it.

    `start` is the position of the data, `began` when the answer was begun (``perf_counter``).  Raises: OSError.
    """
    length = 0
    for view in views:
        length += len(view)
    try:
        sent = sock.sendmsg((head, *views), (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        sent = 0
    if sent == len(head) + length:
        return length, None
    done = max(sent - len(head), 0)
    return length, Unsent(head[sent:], start + done, length - done, done, began)
