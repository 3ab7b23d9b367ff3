"""What one process tells its successor: the state that a supervisor keeps, and the messages beside descriptors.

Everything is JSON with a version; unknown keys are ignored, so that an older
release can take over from a newer one.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple

from hexz.errors import HandoverError, JsonError
from hexz.jsontext import load_json

__all__ = [
    "MAX_FDS",
    "MAX_STATE",
    "GivenConnection",
    "GivenListener",
    "pack_connection",
    "pack_listeners",
    "pack_state",
    "parse_connection",
    "parse_listeners",
    "parse_state",
]

VERSION = 1
MAX_STATE = 64 << 20
"""Longest state, bytes: a mount is about 200."""
MAX_FDS = 250
"""Descriptors of one message; Linux takes 253."""


class GivenListener(NamedTuple):
    """A listening socket's protocol, and its path with that one's inode if it is a unix socket of our own."""

    protocol: str
    own_path: str | None
    inode: int


class GivenConnection(NamedTuple):
    """A live connection: the listener it came by, its peer, its service's state, what was received and not used."""

    listener: int
    peer: str
    state: dict[str, Any]
    received: bytes


def _pack(fields: dict[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **fields}).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = load_json(data)
    except JsonError:
        raise HandoverError("what the other process left behind is not JSON") from None
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise HandoverError("what the other process left behind is of a version that is unknown here")
    return value


def pack_state(mounts: dict[str, Any]) -> bytes:
    """The state for the supervisor: what is mounted."""
    return _pack({"mounts": mounts})


def parse_state(data: bytes) -> dict[str, Any]:
    """The mounts in a state.

    Raises: HandoverError.
    """
    mounts = _parse(data).get("mounts")
    entries = mounts.get("snapshots") if isinstance(mounts, dict) else None
    if not isinstance(mounts, dict) or not isinstance(entries, list):
        raise HandoverError("the state has no mounts")
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "path")):
            raise HandoverError("the state has a mount without name or path")
    if not all(isinstance(mounts.get(key), (str, type(None))) for key in ("default", "root")):
        raise HandoverError("the state's default is no name")
    return mounts


def pack_listeners(listeners: list[GivenListener]) -> bytes:
    """The message beside the listening sockets; the channel for connections comes first among the descriptors."""
    return _pack({"listeners": [listener._asdict() for listener in listeners]})


def parse_listeners(data: bytes) -> list[GivenListener]:
    """The listeners, in the order of their descriptors.

    Raises: HandoverError.
    """
    entries = _parse(data).get("listeners")
    try:
        return [_listener(entry["protocol"], entry["own_path"], entry["inode"]) for entry in entries or ()]
    except (TypeError, KeyError):
        raise HandoverError("the listeners make no sense") from None


def _listener(protocol: object, own_path: object, inode: object) -> GivenListener:
    if isinstance(protocol, str) and isinstance(own_path, (str, type(None))) and isinstance(inode, int):
        return GivenListener(protocol, own_path, inode)
    raise TypeError


def pack_connection(given: GivenConnection) -> bytes:
    """The message beside a live connection's descriptor."""
    return _pack({**given._asdict(), "received": base64.b64encode(given.received).decode()})


def parse_connection(data: bytes) -> GivenConnection:
    """A live connection.

    Raises: HandoverError.
    """
    value = _parse(data)
    try:
        received = base64.b64decode(value["received"], validate=True)
        return GivenConnection(int(value["listener"]), str(value["peer"]), dict(value["state"]), received)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise HandoverError("a connection's state makes no sense") from None
