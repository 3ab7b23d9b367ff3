"""What the images API says no with."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """An answer that is an error, with headers of its own."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
