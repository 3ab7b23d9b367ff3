"""One thread for several connections that read cached data at the same time.

Each in a thread of its own, they would mostly hand the interpreter to each other.  So
while connections take turns with small cached reads, they join the crowd: their own
threads sleep, and the crowd's thread receives, answers and sends for all of them, waiting
for none.  Whatever takes more than that (another request, a block that is not cached, a
socket that is full, the end) sends a member home: its own thread goes on where the crowd
stopped.  So does being alone, since one connection is served best by its own thread.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable

from hexz.servers.connection import Summons

__all__ = ["LARGEST", "Crowd", "Streak"]

log = logging.getLogger("hexz.nbd")

LARGEST = 128 << 10
"""Most bytes of replies in one turn of a member: more would keep the others waiting, and fill the socket."""
STREAK = 16
"""A connection is welcome when others had at least half as many turns during so many turns of its own."""
ALONE = 256
"""Turns without others after which a member goes home."""

Serve = Callable[[], bool]
"""Answers what has come without waiting for anything; False when the member has to go home."""


class Crowd:
    """The members, and the thread that serves them from the first one's arrival on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next three
        self._members: dict[int, tuple[Serve, threading.Lock]] = {}  # by descriptor; the crowd's thread looks without
        self._epoll: select.epoll | None = None  # not made before there is need: descriptors are scarce
        self._over = False  # the summons was called: nobody may come any more
        self.turns = 0  # of everybody, members or not; any thread counts, and a lost count does no harm

    def stay(self, fd: int, serve: Serve, summons: Summons | None) -> None:
        """Let the crowd call `serve` whenever `fd` can be read; returns once that was False or the `summons` called.

        It returns at once while there are no descriptors or threads left for a crowd.
        """
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if self._over:
                return
            self._members[fd] = (serve, gate)  # before its first event
            try:
                epoll = self._epoll or self._gather(summons)
                epoll.register(fd, select.EPOLLIN)
            except (OSError, RuntimeError) as error:
                del self._members[fd]
                log.debug("no crowd: %s", error)
                return
        gate.acquire()

    def _gather(self, summons: Summons | None) -> select.epoll:
        epoll = select.epoll()
        if summons is not None:
            epoll.register(summons, select.EPOLLIN)
        threading.Thread(target=self._run, args=(epoll,), name="nbd crowd", daemon=True).start()
        self._epoll = epoll
        return epoll

    def _run(self, epoll: select.epoll) -> None:
        alone = 0
        last = -1
        while True:
            for fd, _ in epoll.poll():
                member = self._members.get(fd)
                if member is None:
                    self._send_all_home(epoll)
                    return
                alone = alone + 1 if last == fd else 0
                last = fd
                self.turns += 1
                if not member[0]() or alone >= ALONE:
                    self._send_home(epoll, fd)
                    alone = 0
                del member

    def _send_home(self, epoll: select.epoll, fd: int) -> None:
        with self._lock:
            epoll.unregister(fd)
            _, gate = self._members.pop(fd)
        gate.release()

    def _send_all_home(self, epoll: select.epoll) -> None:
        with self._lock:
            self._over = True
            fds = list(self._members)
        for fd in fds:
            self._send_home(epoll, fd)
        epoll.close()


class Streak:
    """The turns that one connection took lately, each a receive and a send of small cached reads."""

    __slots__ = ("_crowd", "_own", "_since", "shared")

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.end()

    def end(self) -> None:
        """Something else than a small cached read came."""
        self.shared = False
        self._own = 0
        self._since = self._crowd.turns

    def turn(self) -> None:
        """One more; afterwards `shared` says whether the connection is welcome in the crowd."""
        crowd = self._crowd
        crowd.turns += 1
        self._own += 1
        if self._own == STREAK:
            shared = (crowd.turns - self._since) * 2 >= STREAK * 3
            self.end()
            self.shared = shared
