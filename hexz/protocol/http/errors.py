"""What can be wrong with a request of HTTP, and with an answer to one of ours."""

from __future__ import annotations

__all__ = ["NoSpan", "OtherVersion", "ReplyError", "RequestError", "Unsatisfiable"]


class RequestError(Exception):
    """A request that is refused: with which status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unsatisfiable(Exception):
    """Well-formed ranges, none of which overlaps the representation (status 416)."""


class ReplyError(Exception):
    """An answer that cannot be read as HTTP."""


class NoSpan(Exception):
    """An answer that is not the span that was asked for; the next one may be."""


class OtherVersion(Exception):
    """An answer of other bytes than those that were opened under this name."""
