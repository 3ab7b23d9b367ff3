"""One thread for the many connections that read cached ranges.

While several connections ask for cached ranges at once, their threads would mostly hand
the interpreter to each other.  So a connection on such a streak joins the crowd: its own
thread sleeps, and the crowd's thread receives, answers from the cache and sends for all
members, waiting for none of them.  Whatever takes more than that (another request, a
block that is not cached, a socket that is full, the end) sends the member home: its own
thread goes on where the crowd stopped.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from hexz.servers.connection import Connection, Summons
from hexz.servers.http.counting import HttpCounting
from hexz.servers.http.repeated import RepeatedRange

__all__ = ["Crowd", "Member", "Told", "Unsent"]

log = logging.getLogger("hexz.http")

LARGEST = 128 << 10
"""Longest answer that the crowd sends, bytes: longer ones would keep the others waiting."""
RECEIVE = 16 << 10
SWEEP_S = 5.0
"""How often members that have been idle for too long are looked for."""
COMPANY_S = 1.0
"""Connections with streaks so close together are on them at once, seconds."""
SUMMONED_S = 0.01
"""How often members that came in the moment of the summons are sent home."""
NO_MEMORY_S = 0.1
"""How long the crowd rests when there is no memory to go on with."""
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


class Member:
    """A connection's stay in the crowd, and how it went.

    Afterwards `received` is what came and was not answered, `unsent` what is left of an answer;
    `ended` says that there is no more to do.
    """

    __slots__ = ("connection", "counting", "ended", "gate", "received", "repeated", "seen", "sock", "told", "unsent")

    def __init__(
        self, connection: Connection, repeated: RepeatedRange, counting: HttpCounting, told: Told | None
    ) -> None:
        self.connection = connection
        self.sock = connection.sock
        self.repeated = repeated
        self.counting = counting
        self.told = told
        self.received = b""
        self.unsent: Unsent | None = None
        self.ended = False
        self.seen = time.monotonic()
        self.gate = threading.Lock()
        self.gate.acquire()  # no time-out: it is new

    def serve(self) -> bool:
        """Answer the request that has come; False when the member has to go home."""
        if self.connection.draining:  # the answer says that it is the last; the summons may ring only later
            return False
        try:
            began = perf_counter()
            data = self.sock.recv(RECEIVE, socket.MSG_DONTWAIT)
            if data.find(_END) != len(data) - 4:
                self.received = data
                self.ended = not data
                return False
            answer = self.repeated.answer(data[:-4], LARGEST)
            if answer is None:
                self.received = data
                return False
            return self._send(began, *answer)
        except BlockingIOError:
            return True
        except OSError:
            self.ended = True
            return False

    def _send(self, began: float, head: bytes, views: list[memoryview], start: int) -> bool:
        length = len(head)
        for view in views:
            length += len(view)
        try:
            sent = self.sock.sendmsg((head, *views), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent == length:
            self.counting.repeated(length - len(head), began)
            if self.told is not None:
                self.told(began, length - len(head), self.repeated.asked)
            return True
        done = max(sent - len(head), 0)
        self.unsent = Unsent(head[sent:], start + done, length - len(head) - done, done, began)
        return False


class Crowd:
    """The members, and the thread that serves them from the first one's arrival on."""

    def __init__(self, idle_s: float) -> None:
        """A member that asks for nothing for about `idle_s` seconds has ended."""
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._members: dict[int, Member] = {}  # by descriptor; changed under _lock, taken out by the crowd's thread
        self._epoll: select.epoll | None = None  # made under _lock, not before there is need: descriptors are scarce
        self._last: tuple[object, float] = (None, 0.0)  # who was on a streak last, and when

    def has_company(self, who: object) -> bool:
        """Whether `who`, which is on a streak, would not be alone: one connection does better in its own thread."""
        now = time.monotonic()
        last, since = self._last
        self._last = (who, now)
        return bool(self._members) or (last is not who and now - since < COMPANY_S)

    def stay(self, member: Member, summons: Summons | None) -> None:
        """Let the crowd serve `member`; returns when it has gone home, which all do when the `summons` is called."""
        fd = member.sock.fileno()
        try:
            with self._lock:
                if self._epoll is None:
                    self._epoll = self._begin(summons)
                self._members[fd] = member  # first, for the crowd's thread may see it at once
                try:
                    self._epoll.register(fd, select.EPOLLIN)
                except OSError:
                    del self._members[fd]
                    raise
        except (OSError, RuntimeError) as error:  # out of descriptors, of what the kernel watches, or of threads
            log.debug("a connection keeps its own thread: %s", error)
            return
        member.gate.acquire()  # no time-out: the crowd sends home who is idle or summoned

    def _begin(self, summons: Summons | None) -> select.epoll:
        """What the crowd's thread waits with, and that thread.  Raises: OSError, RuntimeError."""
        epoll = select.epoll()
        try:
            if summons is not None:
                epoll.register(summons, select.EPOLLIN)
            threading.Thread(target=self._run, args=(epoll,), name="http crowd", daemon=True).start()
        except BaseException:
            epoll.close()
            raise
        return epoll

    def _run(self, epoll: select.epoll) -> None:
        while True:
            try:
                self._serve_members(epoll)
            except MemoryError:  # who was not served is seen again: the descriptor can still be read
                time.sleep(NO_MEMORY_S)

    def _serve_members(self, epoll: select.epoll) -> None:
        swept = time.monotonic()
        while True:
            ready = epoll.poll(SWEEP_S)
            now = time.monotonic()
            for fd, _ in ready:
                member = self._members.get(fd)
                if member is None:  # the summons, which stays, or who went home because of it
                    for other in list(self._members):
                        self._send_home(epoll, other)
                    time.sleep(SUMMONED_S)
                    continue
                member.seen = now
                try:
                    stays = member.serve()
                except MemoryError:
                    log.warning("%s: no memory to go on: hanging up", member.connection.peer)
                    member.ended = True
                    stays = False
                except Exception:
                    log.exception("unexpected trouble in the crowd")
                    member.ended = True
                    stays = False
                if not stays:
                    self._send_home(epoll, fd)
            if now - swept >= SWEEP_S:
                swept = now
                self._sweep(epoll, now - self._idle_s)

    def _sweep(self, epoll: select.epoll, since: float) -> None:
        for fd, member in list(self._members.items()):
            if member.seen < since:
                member.ended = True
                self._send_home(epoll, fd)

    def _send_home(self, epoll: select.epoll, fd: int) -> None:
        with self._lock:
            epoll.unregister(fd)
            member = self._members.pop(fd)
        member.gate.release()
