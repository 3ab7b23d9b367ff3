"""The daemon's states, and what leads from one to the next: start, exit, giving everything to a successor."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from hexz.control.mounts import MountTable
from hexz.errors import HandoverError, SystemFailure
from hexz.protocol.handover import pack_state, parse_state
from hexz.protocol.nydus.machine import Event, State, follow
from hexz.servers.accept_loop import AcceptLoop
from hexz.servers.base import Listener
from hexz.servers.connection import Connection
from hexz.servers.control.errors import NotAllowed
from hexz.servers.handover import Bag, fetch_state, open_bag, send_state

__all__ = ["Lifecycle"]

log = logging.getLogger("hexz.daemon")

LONGEST_DRAIN_S = 3600.0
REPLY_MARGIN_S = 5.0
"""How much longer than the drain `exit` waits for it."""
HANDED_OVER_S = 2.0
"""How long `exit` waits when a successor takes over; what waits for a request is given away in half of it."""
MakeListener = Callable[[str, socket.socket, "str | None", int], Listener]
"""Protocol, listening socket, the path to remove at the end and its inode, to a listener that nobody accepts on yet."""


class Lifecycle:
    """Runs through the states of `hexz.protocol.nydus.machine`.

    A daemon that is started serves at once (RUNNING).  One that is to follow another
    begins in INIT, takes over (READY), and serves when it is told to start.
    """

    def __init__(
        self,
        front: AcceptLoop,
        mounts: MountTable,
        make_listener: MakeListener,
        supervisor: str | None = None,
        successor: bool = False,
    ) -> None:
        self.state = State.INIT if successor else State.RUNNING
        self._front = front
        self._mounts = mounts
        self._make_listener = make_listener
        self._supervisor = supervisor
        self.listeners: list[tuple[str, Listener]] = []
        """The listeners with their protocols, whether they accept yet or not."""
        self.inherited: list[tuple[str, str]] = []
        """(name, path) of the snapshots that the other process had been started with."""
        self.hand_overs: list[Callable[[], None]] = []
        """What else is to be done, each in a thread, while the connections go to a successor."""
        self._bag: Bag | None = None
        self._sent = False  # the supervisor has the bag; written under _step
        self._exiting = False  # by `exit`: a successor goes on; set once
        self._drain_s: float | None = None
        self._finished = threading.Event()
        # Held by whoever goes from one state to the next, also across I/O: nobody ever waits for it.
        self._step = threading.Lock()
        self._state_lock = threading.Lock()  # held while `state` is looked at and changed

    def add(self, protocol: str, listener: Listener) -> None:
        """Serve on `listener` from now on; before the accept loop runs, or in its thread."""
        self.listeners.append((protocol, listener))
        self._front.add(listener)

    def _advance(self, event: Event) -> State:
        """The state after `event`.  Raises: NotAllowed."""
        state = follow(self.state, event)
        if state is None:
            raise NotAllowed(event, 400, f'UnexpectedEvent("{event.value}")')
        return state

    def _go(self, event: Event) -> None:
        """Be in the state after `event`, unless something came in between.  Raises: NotAllowed."""
        with self._state_lock:
            self.state = self._advance(event)

    def _enter(self, event: Event) -> None:
        if not self._step.acquire(blocking=False):
            raise NotAllowed(event, 503, "NotReady")

    def start(self) -> None:
        """Begin to accept.

        Raises: NotAllowed.
        """
        self._enter(Event.START)
        try:
            self._go(Event.START)
            self._front.call(self._accept)
            log.info("started: accepting on %s", ", ".join(listener.url for _, listener in self.listeners))
        finally:
            self._step.release()

    def _accept(self) -> None:
        for _, listener in self.listeners:
            if listener not in self._front.listeners:
                self._front.add(listener)

    def send_state(self) -> None:
        """Give the supervisor the mounts, and the sockets in one descriptor.

        Raises: NotAllowed, SystemFailure.
        """
        if self._supervisor is None:
            raise NotAllowed(Event.TAKEOVER, 501, "Unsupported")
        if self.state not in (State.READY, State.RUNNING):
            raise NotAllowed(Event.TAKEOVER, 503, "NotReady")
        self._enter(Event.TAKEOVER)
        try:
            if self._bag is None:
                self._bag = Bag(self.listeners)
            send_state(self._supervisor, pack_state(self._mounts.export()), self._bag)
            self._sent = True
        finally:
            self._step.release()

    def take_over(self) -> None:
        """Open what another process served, and hold its sockets.  After a failure it can be tried again.

        Raises: NotAllowed, HexzError.
        """
        if self._supervisor is None:
            raise NotAllowed(Event.TAKEOVER, 501, "Unsupported")
        self._enter(Event.TAKEOVER)
        try:
            self._advance(Event.TAKEOVER)
            state, bag = fetch_state(self._supervisor)
            try:
                self._restore(parse_state(state), bag)
            except HandoverError as error:
                raise SystemFailure(str(error)) from None
            finally:
                os.close(bag)
            log.info("took over %d snapshots and %d listeners", len(self._mounts.instances()), len(self.listeners))
        finally:
            self._step.release()

    def _restore(self, exported: dict[str, Any], bag: int) -> None:
        channel, sockets = open_bag(bag)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(channel.close)
            for _, sock in sockets:
                on_failure.callback(sock.close)
            listeners = []
            for given, sock in sockets:
                listener = self._make_listener(given.protocol, sock, given.own_path, given.inode)
                listener.summons = self._front.summons
                listeners.append((given.protocol, listener))
            self._mounts.restore(exported)  # last, because it undoes its own failure
            self.inherited = [(one["name"], one["path"]) for one in exported["snapshots"] if not one.get("mounted")]
            self._go(Event.TAKEOVER)
            on_failure.pop_all()
        self.listeners = listeners
        channel.adopt_into([listener for _, listener in listeners])

    def exit(self, drain_s: float | None = None) -> None:
        """End the daemon; returns when nothing is served any more.

        After `send_state` the connections go to the successor, and the sockets' names stay.  Then it returns
        soon, while long responses still run: until the successor starts, new clients wait.
        """
        self._go(Event.EXIT)
        if drain_s is not None:
            self._drain_s = drain_s
        self._exiting = True
        self._front.stop()
        patience = HANDED_OVER_S if self._sent else (drain_s or LONGEST_DRAIN_S) + REPLY_MARGIN_S
        self._finished.wait(patience)

    def drain_time(self, usual_s: float) -> float:
        """Seconds that connections get in the end: what `exit` was told, else `usual_s`."""
        return usual_s if self._drain_s is None else self._drain_s

    def _begin_hand_overs(self) -> None:
        for action in self.hand_overs:
            try:
                threading.Thread(target=action, name="handing over", daemon=True).start()
            except RuntimeError:  # the system is out of threads
                action()

    def finish(self, drain_s: float, hurry: Callable[[], bool]) -> bool:
        """Let connections end, or give them to the successor, within `drain_s` seconds; True when none was cut.

        In the thread of the accept loop, after it has ended.
        """
        with self._state_lock:
            self.state = State.STOPPED
        deadline = time.monotonic() + drain_s
        bag = self._bag
        for _, listener in self.listeners:
            if listener not in self._front.listeners:
                listener.shared = True  # whoever was to be followed may still serve on it
                self._front.add(listener)  # held, and never accepted on: it is closed with the others
            elif bag is not None and bag.taken:
                listener.shared = True
        if bag is not None and self._sent and self._exiting:

            def give(connection: Connection, state: dict[str, Any], received: bytes) -> bool:
                return bag.give(connection, state, received, deadline)

            self._front.hand_over(give, deadline - time.monotonic(), hurry, self._begin_hand_overs)
        clean = self._front.drain(max(deadline - time.monotonic(), 0.0), hurry)
        if bag is not None:
            bag.close()
        self._finished.set()
        return clean
