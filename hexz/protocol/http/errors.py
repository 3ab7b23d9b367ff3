"""What can be wrong with a request of HTTP."""

from __future__ import annotations

__all__ = ["RequestError", "Unsatisfiable"]


class RequestError(Exception):
    """A request that is refused: with which status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unsatisfiable(Exception):
    """Well-formed ranges, none of which overlaps the representation (status 416)."""
