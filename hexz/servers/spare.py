"""For those who come when there is no place, no thread or no descriptor: a few threads kept ready for one answer each.

So health checks and the control socket answer also when all places are taken by others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import deque

from hexz.servers.connection import Connection

__all__ = ["SPARE_PLACES", "SpareDescriptors", "Spares"]

SPARE_THREADS = 4
"""Threads that wait for connections without a place."""
SPARE_PLACES = 16
"""Connections without a place that are held at once, with a thread or before one."""
SPARE_DESCRIPTORS = 4
"""Descriptors that are held so as to be given up when there are no others."""
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}


class Spares:
    """Threads that serve one request of a connection each; who says nothing has to go when others come."""

    def __init__(self) -> None:
        """Start the threads, or as many as the system has."""
        self._changed = threading.Condition()  # guards the next four
        self._waiting: deque[Connection] = deque()
        self._served: list[Connection] = []  # in the order of their coming
        self._told: set[Connection] = set()  # of them, those that have to go
        self._over = False
        for number in range(SPARE_THREADS):
            with contextlib.suppress(RuntimeError):  # the system is out of threads
                threading.Thread(target=self._run, name=f"spare-{number}", daemon=True).start()

    def take(self, connection: Connection) -> bool:
        """Have one request of the connection answered soon; False when that cannot be.

        The last to come is the first to be served: who has waited for long has either said nothing, or gone.
        """
        silent = dropped = None
        with self._changed:
            if self._over:
                return False
            if len(self._waiting) >= SPARE_PLACES - SPARE_THREADS:
                dropped = self._waiting.popleft()
            self._waiting.append(connection)
            if len(self._served) >= SPARE_THREADS:
                silent = next((one for one in self._served if not one.spoken and one not in self._told), None)
                if silent is not None:
                    self._told.add(silent)
            self._changed.notify()
        if dropped is not None:
            dropped.listener.shutdown_request(dropped)
        if silent is not None:
            with contextlib.suppress(OSError):  # it has gone
                socket.socket.shutdown(silent.sock, socket.SHUT_RDWR)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._over:
                        return
                    self._changed.wait()  # no time-out: nobody may come for days; `stop` ends it
                connection = self._waiting.pop()
                self._served.append(connection)
            try:
                connection.listener.process_request_thread(connection, connection.peer)
            finally:
                with self._changed:
                    self._served.remove(connection)
                    self._told.discard(connection)
                del connection

    def stop(self) -> None:
        """Let the threads end."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


class SpareDescriptors:
    """Some descriptors that are held for nothing, and given up when a connection cannot be accepted otherwise."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def give_up(self) -> bool:
        """Close one; False when there is none left."""
        if self._held:
            os.close(self._held.pop())
            return True
        return False

    def take_back(self) -> None:
        """Hold as many as there should be, as soon as the system has them again."""
        while len(self._held) < SPARE_DESCRIPTORS:
            try:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return

    def close(self) -> None:
        """Give up all."""
        while self.give_up():
            continue
