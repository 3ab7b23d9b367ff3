"""The one loop that accepts, for all listeners, and how it ends.

The thread that calls `AcceptLoop.run` (the main thread, in the daemon) accepts.  Stopping
has two steps: `AcceptLoop.stop_accepting`, then `AcceptLoop.drain`, which lets running replies
end.  `AcceptLoop.hand_over` comes before them where a successor goes on.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

from hexz.metrics.figures import ListenerFigures
from hexz.servers.base import Listener
from hexz.servers.connection import Give, Summons
from hexz.servers.spare import NO_DESCRIPTORS, SpareDescriptors, Spares

__all__ = ["AcceptLoop"]

log = logging.getLogger("hexz.servers")

STACK_BYTES = 2 << 20
"""Stack of a connection's thread: the interpreter's own limits of recursion fit in (Python 3.13 crashes below 1.5 MiB).

It is virtual memory, of which little is ever touched.
"""
EXHAUSTED_PAUSE_S = 0.1
"""Pause of the accept loop when the process is out of descriptors or memory."""
LAST_WORD_S = 1.0
"""How long `AcceptLoop.drain` waits for threads whose sockets were cut."""


class AcceptLoop:
    """The accept loop over all listeners."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.summons = Summons()
        self._calls: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._stop = False
        self._spares: Spares | None = None  # not before there is a listener
        self._descriptors = SpareDescriptors()
        threading.stack_size(STACK_BYTES)

    def add(self, listener: Listener) -> None:
        """Accept on `listener` too; from the loop's thread, or before it runs."""
        listener.summons = self.summons
        if listener.site.answers_spares:
            self._spares = listener.spares = self._spares or Spares()
        self.listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ)

    def call(self, action: Callable[[], None]) -> None:
        """Have the loop's thread do `action` soon.  From any thread."""
        self._calls.append(action)
        self.wake()

    def figures(self) -> list[ListenerFigures]:
        """How many connections each listener has, had, and turned away."""
        return [
            ListenerFigures(
                listener.site.scheme.removesuffix("s"),
                listener.url,
                len(listener.live()),
                listener.accepted,
                listener.refused,
            )
            for listener in self.listeners
        ]

    def wake(self) -> None:
        """Make `run` look round now.  Safe in a signal handler and from any thread."""
        with contextlib.suppress(BlockingIOError, OSError):  # a full pipe wakes as well; a closed one has no loop
            self._wake_write.send(b"\0")

    def stop(self) -> None:
        """Make `run` return."""
        self._stop = True
        self.wake()

    def run(self, tick: Callable[[], None] = lambda: None, every: float = 1.0) -> None:
        """Accept until `stop`; `tick` runs in this thread after each wake-up and at least every `every` seconds."""
        exhausted = False
        self._descriptors.take_back()
        while not self._stop:
            ready = self._selector.select(every)
            self._descriptors.take_back()
            for key, _ in ready:
                listener = key.fileobj
                if not isinstance(listener, Listener):
                    self._drain_wake()
                    continue
                try:
                    listener.handle_request()
                    exhausted = False
                except (OSError, MemoryError) as error:
                    if not exhausted:
                        reason = str(error) or "out of memory"
                        log.error("%s: cannot accept: %s; going on as resources come back", listener.url, reason)
                    exhausted = True
                    if getattr(error, "errno", None) not in NO_DESCRIPTORS or not self._accept_spare(listener):
                        time.sleep(EXHAUSTED_PAUSE_S)
            for listener in self.listeners:
                if listener.put_off is not None:
                    with contextlib.suppress(OSError):  # still no thread for it: the next round tries again
                        listener.handle_request()
            while self._calls:
                self._calls.popleft()()
            tick()

    def _accept_spare(self, listener: Listener) -> bool:
        """Take a connection with a descriptor that was held for this; False when it could not be."""
        if not self._descriptors.give_up():
            return False
        with contextlib.suppress(OSError):
            listener.handle_spare_request()
            return True
        return False

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # emptied
            while self._wake_read.recv(4096):
                continue

    def stop_accepting(self) -> None:
        """Close all listening sockets; connections are told to end."""
        for listener in self.listeners:
            if not listener.draining:
                if listener.fileno() >= 0:
                    self._selector.unregister(listener)
                listener.stop_accepting()
        self.summons.ring()

    def hand_over(
        self, give: Give, timeout: float, hurry: Callable[[], bool], begun: Callable[[], None] = lambda: None
    ) -> bool:
        """Accept no more, and give the connections away as they come between two requests.

        The listening sockets go on queueing: somebody else has them too.  True when no
        connection is left after `timeout` seconds; `drain` deals with the rest.  `hurry` is asked as by `drain`;
        `begun` is called once connections can be given.
        """
        for listener in self.listeners:
            if listener.fileno() >= 0:
                self._selector.unregister(listener)
            listener.give = give
            listener.settle()
            listener.own_path = None
            listener.server_close()
        # What is under TLS stays: its keys are in this process.
        secure = [one for each in self.listeners for one in each.live() if isinstance(one.sock, ssl.SSLSocket)]
        for connection in secure:
            connection.end_after_answer()
        self.summons.call()
        begun()
        for connection in secure:
            connection.listener.drain(connection)
        return self._wait(time.monotonic() + timeout, hurry, patient=True)

    def drain(self, timeout: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait up to `timeout` seconds for all connections to end, then cut the rest; True when none was cut.

        `hurry` is asked now and then: True ends the patience at once.
        """
        self.stop_accepting()
        clean = self._wait(time.monotonic() + timeout, hurry)
        if not clean:
            for listener in self.listeners:
                listener.cut()
            self._wait(time.monotonic() + LAST_WORD_S, lambda: False)
        return clean

    def _wait(self, deadline: float, hurry: Callable[[], bool], patient: bool = False) -> bool:
        while True:
            live = [connection for listener in self.listeners for connection in listener.live()]
            if not live:
                return True
            if time.monotonic() >= deadline or hurry():
                return False
            for connection in live:
                if not connection.spoken and not patient:
                    connection.hang_up_idle()
            time.sleep(0.01)

    def close(self) -> None:
        """Free the loop's own descriptors; after `drain`."""
        if self._spares is not None:
            self._spares.stop()
        self._descriptors.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()
        self.summons.close()
