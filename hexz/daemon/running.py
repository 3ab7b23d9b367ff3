"""The daemon while it runs: signals become flags, and the accept loop acts on them between connections."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from hexz.catalog import Catalog, Source
from hexz.daemon.lifecycle import Lifecycle
from hexz.daemon.log_limits import say_left_out
from hexz.daemon.systemd import Notifier
from hexz.errors import HexzError
from hexz.metrics.summary import summary_lines
from hexz.protocol.nydus.machine import State
from hexz.servers.accept_loop import AcceptLoop
from hexz.units import format_size

__all__ = ["Running"]

log = logging.getLogger("hexz.daemon")

TICK_S = 1.0
SKIPPED_SHOWN = 10
"""Files that the status names of those that cannot be served; the others are counted."""
LAST_ANSWERS_S = 2.0
"""How long clients of the control socket may take to read their last answer."""


class Running:
    """Runs the accept loop until SIGTERM or SIGINT, then drains; a second one ends the patience."""

    def __init__(
        self, front: AcceptLoop, catalog: Catalog, notifier: Notifier, find_sources: Callable[[], Sequence[Source]]
    ) -> None:
        """`find_sources` gives the snapshots that the command line names, when they are read again."""
        self._front = front
        self._lifecycle: Lifecycle | None = None
        self._control: AcceptLoop | None = None
        self._catalog = catalog
        self._notifier = notifier
        self._find_sources = find_sources
        self._recover: Callable[[], None] = _nothing
        self._reloads: list[tuple[str, Callable[[], None]]] = []
        self._ends: list[Callable[[], None]] = []
        self._hand_overs: list[Callable[[], None]] = []
        self._began = time.monotonic()
        self._stops = 0
        self._reload = False
        self._summarise = False
        self._reloading: threading.Thread | None = None
        self._unsaid: list[str] | None = []  # warnings, until the log is where it will stay

    def live_by(self, lifecycle: Lifecycle, control: AcceptLoop | None) -> None:
        """Let `lifecycle` say what to do at the end; `control` accepts on the control socket, if there is one."""
        self._lifecycle = lifecycle
        lifecycle.hand_overs = self._hand_overs
        self._control = control

    def warn(self, line: str) -> None:
        """Log what somebody may not have meant, now or, before the log is where it will stay, in `say_warnings`."""
        if self._unsaid is None:
            log.warning("%s", line)
        else:
            self._unsaid.append(line)

    def say_warnings(self) -> None:
        """Log the warnings so far; from now on each is logged at once."""
        unsaid, self._unsaid = self._unsaid or [], None
        for line in unsaid:
            log.warning("%s", line, extra={"each": True})

    def on_reload(self, what: str, action: Callable[[], None]) -> None:
        """Do `action` on SIGHUP; its failure is logged and leaves the rest alone."""
        self._reloads.append((what, action))

    def on_recovery(self, action: Callable[[], None]) -> None:
        """Do `action` when snapshots may have become unreachable."""
        self._recover = action

    def on_end(self, action: Callable[[], None]) -> None:
        """Do `action` once the last connection has ended."""
        self._ends.append(action)

    def on_hand_over(self, action: Callable[[], None]) -> None:
        """Do `action` when a successor goes on with everything, beside the handing over of the connections."""
        self._hand_overs.append(action)

    def trap_signals(self) -> None:
        """Handlers only set a flag and wake the loop."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        signal.signal(signal.SIGUSR1, self._on_summarise)

    def _on_stop(self, *_: object) -> None:
        self._stops += 1
        self._front.stop()

    def _on_reload(self, *_: object) -> None:
        self._reload = True
        self._front.wake()

    def _on_summarise(self, *_: object) -> None:
        self._summarise = True
        self._front.wake()

    @property
    def serving(self) -> bool:
        """New requests are welcome: it is not over, and has begun."""
        return not self._stops and (self._lifecycle is None or self._lifecycle.state is State.RUNNING)

    def abandon(self) -> None:
        """Let go of the listeners if `run` did not get that far: names of unix sockets go with them."""
        for front in (self._front, self._control):
            if front is not None:
                front.stop_accepting()

    def run(self, drain_timeout: float) -> None:
        """Accept until told to stop, then let running replies end within `drain_timeout` seconds."""
        every = min(TICK_S, self._notifier.watchdog_s or TICK_S)
        if self._control is not None:
            # Beside the accept loop: it answers also while that one waits for descriptors.
            threading.Thread(target=self._control.run, name="control", daemon=True).start()
        self._front.run(self._tick, every)
        if self._lifecycle is not None:
            drain_timeout = self._lifecycle.drain_time(drain_timeout)
        self._notifier.stopping(drain_timeout)
        log.info("stopping: %d connections to end within %g s", self._connections(), drain_timeout)
        finish = self._front.drain if self._lifecycle is None else self._lifecycle.finish
        if not finish(drain_timeout, self._in_a_hurry):
            log.warning("connections were cut after the drain")
        if self._control is not None:
            self._control.stop()
            self._control.drain(LAST_ANSWERS_S)
        for action in self._ends:
            action()
        say_left_out(at_once=True)

    def _in_a_hurry(self) -> bool:
        self._notifier.alive()  # who stopped the daemon need not be the manager, which then goes on watching it
        return self._stops > 1

    def _tick(self) -> None:
        self._notifier.alive()
        say_left_out()
        if self._reload and (self._reloading is None or not self._reloading.is_alive()):
            # Opening files can take long, or hang; the accept loop must not.
            reloading = threading.Thread(target=self._reload_all, name="reload", daemon=True)
            self._reload = False  # first: one more SIGHUP may come before `start` returns, and asks for one more round
            try:
                reloading.start()
                self._reloading = reloading
            except RuntimeError:  # the system is out of threads: the next round tries again
                self._reload = True
        if self._summarise:
            self._summarise = False
            for line in self.status():
                log.info("status: %s", line)

    def _reload_all(self) -> None:
        self._notifier.reloading()
        for what, action in [*self._reloads, ("snapshots", self._reload_snapshots)]:
            try:
                action()
            except (HexzError, OSError) as error:
                log.error("%s not reloaded: %s", what, error)
            except Exception:
                log.exception("%s not reloaded", what)
        self._notifier.ready(self.summary())

    def _reload_snapshots(self) -> None:
        if self._lifecycle is not None and self._lifecycle.state is State.INIT:
            return  # what there is to serve is not known yet
        inherited = [Source(*one) for one in self._lifecycle.inherited] if self._lifecycle is not None else []
        done = self._catalog.sync(lambda: self._find_sources() or inherited)
        self._recover()
        log.info(
            "reloaded: %d snapshots (%d new, %d replaced, %d gone, %d failed)",
            len(self._catalog), len(done.added), len(done.replaced), len(done.removed), len(done.failed),
        )  # fmt: skip

    def urls(self) -> list[str]:
        """Where the daemon listens."""
        control = self._control.listeners if self._control is not None else []
        return [listener.url for listener in [*self._front.listeners, *control]]

    def _connections(self) -> int:
        return sum(len(listener.live()) for listener in self._front.listeners)

    def facts(self) -> dict[str, Any]:
        """What the control API tells beyond the snapshots."""
        return {
            "uptime_seconds": int(time.monotonic() - self._began),
            "connections": self._connections(),
            "listeners": self.urls(),
            "default": self._catalog.default,
            "pid": os.getpid(),
        }

    def status(self) -> list[str]:
        """Some lines for people: the summary, and the figures that matter."""
        skipped = list(self._catalog.skipped.values())
        lines = [f"skipped: {line}" for line in skipped[:SKIPPED_SHOWN]]
        if len(skipped) > SKIPPED_SHOWN:
            lines.append(f"and {len(skipped) - SKIPPED_SHOWN} files more that were skipped")
        for folder, names in list(self._catalog.missing.items())[:SKIPPED_SHOWN]:
            lines.append(f"stale: {folder}: this directory is missing: its {len(names)} snapshots stay as they were")
        return [self.summary(), *lines, *summary_lines(self._catalog.context.metrics.collect())]

    def summary(self) -> str:
        """One line for people: what is served, where, and how the cache does."""
        counts = self._catalog.context.blocks.counts()
        where = ", ".join(listener.url for listener in self._front.listeners)
        names: Sequence[str] = self._catalog.names()
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        skipped = f" ({len(self._catalog.skipped)} files skipped)" if self._catalog.skipped else ""
        return (
            f"serving {shown or 'nothing'}{skipped} at {where}; {self._connections()} connections; cache "
            f"{format_size(counts.held)} of {format_size(counts.budget)}, {counts.loads} blocks decompressed"
        )


def _nothing() -> None:
    return
