"""The states of a daemon as the control API tells them, and the events that lead from one to another."""

from __future__ import annotations

from enum import Enum

__all__ = ["Event", "State", "follow"]


class State(Enum):
    """INIT: listens on its control socket alone.  READY: holds its listeners and snapshots, accepts nobody."""

    INIT = "INIT"
    READY = "READY"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


class Event(Enum):
    """What may happen to a daemon, by the names of the control API."""

    MOUNT = "Mount"
    TAKEOVER = "Takeover"
    START = "Start"
    EXIT = "Exit"


_STEPS = {
    (State.INIT, Event.MOUNT): State.READY,
    (State.INIT, Event.TAKEOVER): State.READY,
    (State.READY, Event.START): State.RUNNING,
    (State.INIT, Event.EXIT): State.STOPPED,
    (State.READY, Event.EXIT): State.STOPPED,
    (State.RUNNING, Event.EXIT): State.STOPPED,
    (State.STOPPED, Event.EXIT): State.STOPPED,
}


def follow(state: State, event: Event) -> State | None:
    """The state after `event`, None where it is not allowed."""
    return _STEPS.get((state, event))
