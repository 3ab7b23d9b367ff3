"""What can go wrong on the way to a server, within the tries of one read; what is left of it is in `hexz.errors`."""

from __future__ import annotations

__all__ = ["Hidden", "Passing", "Stale"]


class Stale(Exception):
    """A kept connection had been closed by the server: nothing of an answer came."""


class Hidden(Exception):
    """A name leads to an address that it may not lead to."""


class Passing(Exception):
    """Something that may be gone at the next try.

    `after_s` is how long the server asks to be left alone; `at_once`: there is nothing to wait for.
    """

    def __init__(self, reason: str, after_s: float = 0.0, at_once: bool = False) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.at_once = at_once
