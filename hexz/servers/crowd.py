"""One thread for the many connections that read what is cached.

While many connections do so at once, their threads would mostly hand the interpreter to each other.  So a connection on
such a streak joins the crowd: its own thread sleeps, and the crowd's thread calls what serves it, for all members and
waiting for none of them.  Whatever takes more than that (another request, a block that is not cached, a socket that is
full, the end) sends the member home: its own thread goes on where the crowd stopped.  So does company that has shrunk,
since few connections are served best by their own threads.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from hexz.servers.connection import Connection, Summons

__all__ = ["LARGEST", "Crowd", "Turn"]

log = logging.getLogger("hexz.crowd")

LARGEST = 128 << 10
"""Most bytes that a member sends in one turn: more would keep the others waiting, and fill the socket."""
WINDOW = 256
"""Among so many turns there are those of enough members, or who took them goes home."""
SWEEP_S = 5.0
"""How often members that have been idle for too long are looked for."""
COMPANY_S = 1.0
"""Connections with streaks so close together are on them at once, seconds."""
SUMMONED_S = 0.01
"""How often members that came in the moment of the summons are sent home."""
NO_MEMORY_S = 0.1
"""How long the crowd rests when there is no memory to go on with."""

Turn = Callable[[], object]
"""Answers what has come without waiting for anything; false when the member has to go home."""


class _Member:
    __slots__ = ("connection", "ended", "gate", "seen", "turn")

    def __init__(self, connection: Connection, turn: Turn) -> None:
        self.connection = connection
        self.turn = turn
        self.ended = False  # there is no more to do
        self.seen = time.monotonic()
        self.gate = threading.Lock()
        self.gate.acquire()  # no time-out: it is new

    def silence(self) -> float:
        return time.monotonic() - self.seen


class Crowd:
    """The members, and the thread that serves them from the first one's arrival on."""

    def __init__(self, name: str, least: int, idle_s: float | None) -> None:
        """So many connections on streaks at once make a crowd: with fewer their own threads do better.

        A member that asks for nothing for about `idle_s` seconds, if not None, has ended.
        """
        self._name = name
        self._least = least
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._members: dict[int, _Member] = {}  # by descriptor; changed under _lock, taken out by the crowd's thread
        self._epoll: select.epoll | None = None  # made under _lock, not before there is need: descriptors are scarce
        self._streaks: deque[tuple[int, float]] = deque(maxlen=2 * least)  # who was on one lately, and when
        self._lively = float("-inf")  # when enough members had turns last

    def has_company(self, connection: Connection) -> bool:
        """Whether a connection that is on a streak is one of many that are."""
        now = time.monotonic()
        streaks = self._streaks
        streaks.append((id(connection), now))
        lately = {who for who, since in streaks.copy() if now - since < COMPANY_S}
        return now - self._lively < COMPANY_S or len(lately) >= self._least

    def stay(self, connection: Connection, turn: Turn) -> bool:
        """Let the crowd call `turn` whenever something has come, until the connection is to go home; False if it ended.

        All go home when the summons is called, and at once where there are no descriptors or threads for a crowd.
        """
        fd = connection.sock.fileno()
        member = _Member(connection, turn)
        connection.silence = member.silence
        try:
            with self._lock:
                if self._epoll is None:
                    self._epoll = self._begin(connection.listener.summons)
                self._members[fd] = member  # first, for the crowd's thread may see it at once
                try:
                    self._epoll.register(fd, select.EPOLLIN)
                except OSError:
                    del self._members[fd]
                    raise
        except (OSError, RuntimeError) as error:  # out of descriptors, of what the kernel watches, or of threads
            log.debug("a connection keeps its own thread: %s", error)
            connection.silence = None
            return True
        member.gate.acquire()  # no time-out: the crowd sends home who is idle or summoned
        connection.silence = None
        return not member.ended

    def _begin(self, summons: Summons | None) -> select.epoll:
        """What the crowd's thread waits with, and that thread.  Raises: OSError, RuntimeError."""
        epoll = select.epoll()
        try:
            if summons is not None:
                epoll.register(summons, select.EPOLLIN)
            threading.Thread(target=self._run, args=(epoll,), name=f"{self._name} crowd", daemon=True).start()
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
            except Exception:
                log.exception("unexpected trouble in the crowd: it goes on")
                time.sleep(NO_MEMORY_S)

    def _serve_members(self, epoll: select.epoll) -> None:
        members, poll, monotonic = self._members, epoll.poll, time.monotonic
        swept = monotonic()
        busy: set[int] = set()
        turns = 0
        while True:
            ready = poll(SWEEP_S)
            now = monotonic()
            for fd, _ in ready:
                member = members.get(fd)
                if member is None:  # the summons, which stays, or who went home because of it
                    for other in list(members):
                        self._send_home(epoll, other)
                    time.sleep(SUMMONED_S)
                    continue
                member.seen = now
                busy.add(fd)
                turns += 1
                try:
                    if member.turn():
                        continue
                except Exception as error:
                    member.ended = True  # first: there may be no memory to say so
                    _tell(member, error)
                self._send_home(epoll, fd)
            if turns >= WINDOW:
                if len(busy) >= self._least:
                    self._lively = now
                else:
                    for fd in busy:
                        self._send_home(epoll, fd)
                busy.clear()
                turns = 0
            if now - swept >= SWEEP_S:
                swept = now
                self._sweep(epoll, now)

    def _sweep(self, epoll: select.epoll, now: float) -> None:
        if self._idle_s is None:
            return
        for fd, member in list(self._members.items()):
            if member.seen < now - self._idle_s:
                member.ended = True
                self._send_home(epoll, fd)

    def _send_home(self, epoll: select.epoll, fd: int) -> None:
        with self._lock:
            member = self._members.pop(fd, None)
            if member is None:  # it never came to be one
                return
            with contextlib.suppress(OSError):
                epoll.unregister(fd)
        member.gate.release()


def _tell(member: _Member, error: Exception) -> None:
    """Log why a member has ended, unless that is only its peer's going."""
    with contextlib.suppress(MemoryError):
        if isinstance(error, MemoryError):
            log.warning("%s: no memory to go on: hanging up", member.connection.peer)
        elif not isinstance(error, OSError):
            log.error("unexpected trouble in the crowd", exc_info=error)
