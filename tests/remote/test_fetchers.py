"""The threads that wait for a server: what is done at a time, and what first."""

from __future__ import annotations

import threading

from hexz.storage.remote.fetchers import Fetchers, Urgency
from tests.waiting import until


class Work:
    """Tasks that run until they are let go; the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self._gates: dict[str, threading.Event] = {}

    def task(self, name: str) -> None:
        self.begun.append(name)
        self._gates[name].wait(60)
        self.ended.append(name)

    def offer(self, fetchers: Fetchers, name: str, urgency: Urgency = Urgency.SOON, long: bool = False) -> None:
        self._gates[name] = threading.Event()
        assert fetchers.offer(lambda: self.task(name), urgency, long)

    def end(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()
        until(lambda: set(names) <= set(self.ended))


def test_long_answers_take_turns_and_hold_up_nothing_else() -> None:
    work, fetchers = Work(), Fetchers("test", lambda: 2)
    for number in range(5):
        work.offer(fetchers, f"long {number}", long=True)
    until(lambda: len(work.begun) == 2)
    work.offer(fetchers, "short", Urgency.LISTED)
    until(lambda: "short" in work.begun)
    assert sorted(work.begun) == ["long 0", "long 1", "short"]
    work.end("long 1")
    until(lambda: "long 2" in work.begun)
    work.end("long 0")
    until(lambda: "long 3" in work.begun)
    assert "long 4" not in work.begun
    work.end("long 2", "long 3")
    until(lambda: "long 4" in work.begun)
    work.end("long 4", "short")


def test_what_somebody_reads_towards_comes_first() -> None:
    work, fetchers = Work(), Fetchers("test", lambda: 1)
    work.offer(fetchers, "first", long=True)
    until(lambda: work.begun == ["first"])
    work.offer(fetchers, "some time", Urgency.SOME_TIME, long=True)
    work.offer(fetchers, "listed", Urgency.LISTED, long=True)
    work.offer(fetchers, "soon", Urgency.SOON, long=True)
    for name, after in (("first", "soon"), ("soon", "listed"), ("listed", "some time")):
        work.end(name)
        until(lambda after=after: after in work.begun)  # type: ignore[misc]
        assert work.begun[-1] == after
    work.end("some time")
