"""Log lines of one kind are bounded in number: what a client can cause a thousand times a second fills no disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["LINES", "PERIOD_S", "LimitedHandler", "say_left_out"]

LINES = 30
"""Lines of one kind, that is of one logger and one template, that are logged in each `PERIOD_S`."""
PERIOD_S = 60.0
"""Seconds after which lines of a kind are logged again, and how many were left out is said."""
MAX_KINDS = 256
"""Kinds that are told apart; all further ones share their lines."""
OTHERS = "everything else"


class _Kind:
    """What was logged of one kind since `began` (monotonic seconds), and what was not."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.logged = 0
        self.left_out = 0
        self.last: logging.LogRecord | None = None


class LimitedHandler(logging.StreamHandler):  # type: ignore[type-arg]  # no generic before Python 3.11
    """A stream that gets `LINES` lines of each kind in `PERIOD_S`, then one that counts the others.

    What is logged for debugging is not counted: whoever turned that on wants all of it.  Nor is a record with
    ``extra={"each": True}``, which no stranger can cause and an operator may look for by name.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._kinds: dict[tuple[str, str], _Kind] = {}  # guarded by the handler's lock, which `emit` is called under

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it."""
        if record.levelno <= logging.DEBUG or getattr(record, "each", False):
            super().emit(record)
            return
        now = time.monotonic()
        kind = self._kind((record.name, str(record.msg)), now)
        if now - kind.began >= PERIOD_S:
            self._end(kind, now)
        if kind.logged < LINES:
            kind.logged += 1
            super().emit(record)
        else:
            kind.left_out += 1
            kind.last = record

    def _kind(self, key: tuple[str, str], now: float) -> _Kind:
        found = self._kinds.get(key)
        if found is None:
            if len(self._kinds) >= MAX_KINDS:
                key = ("", OTHERS)
            found = self._kinds.setdefault(key, _Kind(now))
        return found

    def _end(self, kind: _Kind, now: float) -> None:
        """Say what the kind's period left out, and begin another."""
        count, last, seconds = kind.left_out, kind.last, now - kind.began
        kind.began, kind.logged, kind.left_out, kind.last = now, 0, 0, None
        if last is not None:
            text = "... %d more like this in the last %d s, the last of them: %s"
            args = (count, round(seconds), last.getMessage())
            super().emit(logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, args, None))

    def say_left_out(self, at_once: bool = False) -> None:
        """Say what was left out of the periods that are over, or of all."""
        now = time.monotonic()
        self.acquire()  # no time-out: held while a line is written
        try:
            for key, kind in list(self._kinds.items()):
                if at_once or now - kind.began >= PERIOD_S:
                    self._end(kind, now)
                    del self._kinds[key]
        finally:
            self.release()


def _handlers() -> Iterator[LimitedHandler]:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LimitedHandler):
            yield handler


def say_left_out(at_once: bool = False) -> None:
    """Have every limited handler say what it left out: now and then, and `at_once` at the end."""
    for handler in _handlers():
        handler.say_left_out(at_once)
