"""The threads that wait for one server, apart from those that decompress and from those of other servers."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum

__all__ = ["Fetchers", "Urgency"]

log = logging.getLogger("hexz.storage")

MAX_THREADS = 64
IDLE_S = 10.0
"""So long a thread waits for more to do before it ends."""


class Urgency(IntEnum):
    """What is done first."""

    SOON = 0
    """Somebody reads towards it."""
    LISTED = 1
    """A list says that it will be read."""
    SOME_TIME = 2
    """The rest of a file."""


class Fetchers:
    """Threads that come with work and go without."""

    def __init__(self, name: str, most_long: Callable[[], int] = lambda: MAX_THREADS) -> None:
        """`most_long` tells how many tasks may be under way that fetch much."""
        self._name = name
        self._most_long = most_long
        self._turn = threading.Condition()
        self._tasks: tuple[deque[tuple[Callable[[], None], bool]], ...] = tuple(deque() for _ in Urgency)
        """What is to be done, and whether that is long; guarded by _turn, as all that follows."""
        self._threads = 0
        self._free = 0
        self._long = 0
        self._long_queued = 0

    def offer(self, task: Callable[[], None], urgency: Urgency = Urgency.SOON, long: bool = False) -> bool:
        """Have `task` done, which must not raise; False where the system has no thread for it.

        What is `long` waits for its turn, lest what was asked for first come last.
        """
        with self._turn:
            self._tasks[urgency].append((task, long))
            self._long_queued += long
            held_up = max(0, self._long_queued - max(0, self._most_long() - self._long))
            waiting = sum(map(len, self._tasks)) - held_up
            if self._free >= waiting or self._threads >= MAX_THREADS:
                self._turn.notify()
                return True
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system is out of threads: those that there are do the work
                if not self._threads:
                    self._tasks[urgency].remove((task, long))
                    self._long_queued -= long
                    return False
            else:
                self._threads += 1
            return True

    def _run(self) -> None:
        while True:
            task, long = self._next()
            if task is None:
                return
            try:
                task()
            except MemoryError:
                log.warning("%s: no memory for what is fetched ahead", self._name)
            except Exception:  # else this thread would count as one for ever
                log.exception("%s: what is fetched ahead failed", self._name)
            finally:
                if long:
                    with self._turn:
                        self._long -= 1
            del task

    def _next(self) -> tuple[Callable[[], None] | None, bool]:
        with self._turn:
            while True:
                for tasks in self._tasks:
                    if tasks and not (tasks[0][1] and self._long >= self._most_long()):
                        task, long = tasks.popleft()
                        self._long += long
                        self._long_queued -= long
                        return task, long
                self._free += 1
                more = self._turn.wait(IDLE_S)
                self._free -= 1
                if not more and not any(self._tasks):
                    self._threads -= 1
                    return None, False
