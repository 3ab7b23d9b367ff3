"""A few threads that decompress blocks somebody will want soon."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

__all__ = ["Workers"]

MAX_QUEUED = 1024
"""Most tasks waiting at once; more are declined, since every task here is a favour."""


class Workers:
    """`count` daemon threads over one queue, started with the first task (so never before a fork)."""

    def __init__(self, count: int | None = None) -> None:
        """Default: one thread fewer than cores, since whoever reads decompresses too."""
        self.count = max(1, (os.cpu_count() or 1) - 1) if count is None else count
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = False  # written under _lock
        self._stopping = False  # written under _lock; a task that offers another then would start threads anew
        self._threads: list[threading.Thread] = []  # guarded by _lock

    def offer(self, task: Callable[[], None]) -> bool:
        """Queue `task`, which must not raise; False when there is no thread or no room for it."""
        if not self.count or self._stopping or self._tasks.qsize() >= MAX_QUEUED:
            return False
        if not self._started and not self._start():
            return False
        self._tasks.put(task)
        return True

    def _start(self) -> bool:
        """Start the threads; False when the system has none to give, and then a later task tries again."""
        with self._lock:
            if self._started or self._stopping:
                return self._started
            for number in range(len(self._threads), self.count):
                thread = threading.Thread(target=self._run, name=f"decode-{number}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system is out of threads: those that there are do the work
                    break
                self._threads.append(thread)
            self._started = len(self._threads) == self.count
            return bool(self._threads)

    def help(self) -> bool:
        """Do one queued task in this thread; False when there is none."""
        try:
            task = self._tasks.get_nowait()
        except Empty:
            return False
        if task is None:
            self._tasks.put(None)  # meant for one of the threads
            return False
        task()
        return True

    def stop(self) -> None:
        """Wait until the queue is empty and the threads have ended; a later `offer` starts new ones."""
        with self._lock:
            threads, self._threads = self._threads, []
            self._stopping = True
        for _ in threads:
            self._tasks.put(None)
        for thread in threads:
            thread.join()  # no time-out: each ends with its last task, and those never wait
        with self._lock:
            self._started = self._stopping = False

    def _run(self) -> None:
        while True:
            task = self._tasks.get()  # no time-out: there may be none for days; `stop` ends it
            if task is None:
                return
            with contextlib.suppress(MemoryError):  # a favour for which there is none is not done
                task()
            del task
