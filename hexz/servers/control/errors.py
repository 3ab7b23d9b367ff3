"""What the daemon says no with when it is driven by the control API."""

from __future__ import annotations

from hexz.errors import HexzError
from hexz.protocol.nydus.machine import Event

__all__ = ["NotAllowed"]


class NotAllowed(HexzError):
    """The daemon's state does not allow an event, or it has no supervisor, or it is busy with another one."""

    def __init__(self, event: Event, status: int, what: str) -> None:
        super().__init__(what)
        self.event = event
        self.status = status
        self.what = what
