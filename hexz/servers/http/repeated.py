"""The fast path: the same request as before, but for the numbers in its range.

A client that reads a stream in ranges sends heads that differ in those digits alone.
Such a head parses to what it parsed to before, the same client asks for the same
thing, and so only the range has to be looked at; everything else about the request
was decided when the first of its kind went through the parser, the gate and the
application.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from hexz.protocol.http.dates import format_date
from hexz.protocol.http.responses import Repeat

__all__ = ["RepeatedRange"]

MAX_VIEWS = 1000
"""Most pieces of data in one send, head apart; the kernel takes 1024 (IOV_MAX)."""
_RANGE = re.compile(rb"(?i)\r\nrange:[ \t]*bytes=([0-9]{1,18}-[0-9]{1,18})[ \t]*(?=\r\n|\Z)")


class RepeatedRange:
    """A request that was answered with a range of a stream, ready to be answered with another."""

    __slots__ = (
        "_after", "_before", "_extra", "_least", "_read_cached", "_renew", "_repeat", "_second", "_template", "_valid",
        "asked", "source",
    )  # fmt: skip

    def __init__(
        self,
        before: bytes,
        after: bytes,
        repeat: Repeat,
        extra: tuple[tuple[str, str], ...],
        renew: Callable[[], bool],
    ) -> None:
        self._before = before
        self._after = after
        self._least = len(before) + len(after)
        self._repeat = repeat
        self._extra = extra
        self._valid = repeat.valid
        self._renew = renew
        self._second = -1
        self._template = b""
        self._read_cached: Callable[[int, int], list[memoryview] | None] = repeat.source.read_cached
        self.source = repeat.source
        self.asked = b""
        """Positions in the last request that was answered, as sent."""

    @classmethod
    def of(
        cls, raw: bytes, repeat: Repeat, extra: tuple[tuple[str, str], ...], renew: Callable[[], bool]
    ) -> RepeatedRange | None:
        """From the head of a request that was answered with 206; None when its range has not two ends.

        `extra` are headers for every response, `renew` says whether the client is let in again.
        The head was parsed, so it has one Range header at most.
        """
        found = _RANGE.search(raw)
        if found is None:
            return None
        return cls(raw[: found.start(1)], raw[found.end(1) :], repeat, extra, renew)

    def answer(self, raw: bytes, largest: int) -> tuple[bytes, list[memoryview], int] | None:
        """The response's head, its data and its position, or None when this head needs more than the fast path.

        So does one that asks for more than `largest` bytes.
        """
        before, after = self._before, self._after
        if not (raw.startswith(before) and raw.endswith(after)):
            return None
        digits = raw[len(before) : len(raw) - len(after)]
        first, _, last = digits.partition(b"-")
        # Anything but digits, and more of them than a position has, is for the parser to judge.
        if len(raw) < self._least or len(digits) > 37 or not (first.isdigit() and last.isdigit()):
            return None
        start = int(first)
        stop = min(int(last) + 1, self._repeat.size)
        length = stop - start
        if not 0 < length <= largest or not self._valid():
            return None
        views = self._read_cached(start, length)
        # To be let in may use up something, so that comes when nothing else can go wrong.
        if views is None or len(views) > MAX_VIEWS or not self._renew():
            return None
        self.asked = digits
        now = int(time.time())
        if now != self._second:
            self._format(now)
        return self._template % (start, stop - 1, length), views, start

    def _format(self, now: int) -> None:
        headers = "".join(f"{name}: {value}\r\n" for name, value in (*self._repeat.headers, *self._extra))
        rest = f"/{self._repeat.size}\r\n{headers}Content-Length: ".replace("%", "%%").encode("latin-1")
        date = format_date(now).encode()
        self._template = (
            b"HTTP/1.1 206 Partial Content\r\nDate: " + date + b"\r\nContent-Range: bytes %d-%d" + rest + b"%d\r\n\r\n"
        )
        self._second = now
