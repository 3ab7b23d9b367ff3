"""What goes wrong between a server and its peer."""

from __future__ import annotations

__all__ = ["PeerGone", "PeerStalled"]


class PeerGone(Exception):
    """The peer has hung up: what it asked for need not be finished."""


class PeerStalled(OSError):
    """The peer took nothing for so long that it was given up."""
