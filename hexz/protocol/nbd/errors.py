"""What can be wrong with an option of NBD."""

from __future__ import annotations

__all__ = ["MalformedOption"]


class MalformedOption(Exception):
    """An option's payload does not fit its form; the text goes to the client."""
