"""The threads that wait for cold blocks, so that the connections' own threads go on with warm ones.

Connections take turns: one with a deep queue of cold reads delays another's cold
read by one block, not by its whole queue.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["MissPool", "MissQueue"]


class MissQueue:
    """The cold reads of one connection that no thread has taken yet."""

    def __init__(self) -> None:
        self.tasks: deque[Callable[[], None]] = deque()  # guarded by the pool's condition
        self.waiting = False  # in the pool's ring; guarded the same way


class MissPool:
    """A few daemon threads over the queues of all connections, started with the first task."""

    def __init__(self, threads: int | None = None) -> None:
        self._count = threads or max(2, os.cpu_count() or 1)
        self._turn = threading.Condition()
        self._ring: deque[MissQueue] = deque()  # guarded by _turn
        self._started = False  # guarded by _turn

    def submit(self, queue: MissQueue, task: Callable[[], None]) -> None:
        """Have `task`, which must not raise, run in its queue's turn."""
        with self._turn:
            queue.tasks.append(task)
            if not queue.waiting:
                queue.waiting = True
                self._ring.append(queue)
            if not self._started:
                self._started = True
                for number in range(self._count):
                    threading.Thread(target=self._run, name=f"nbd-miss-{number}", daemon=True).start()
            self._turn.notify()

    def _run(self) -> None:
        while True:
            with self._turn:
                while not self._ring:
                    self._turn.wait()
                queue = self._ring.popleft()
                task = queue.tasks.popleft()
                if queue.tasks:
                    self._ring.append(queue)
                else:
                    queue.waiting = False
            task()
