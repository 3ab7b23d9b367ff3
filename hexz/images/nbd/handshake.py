"""The handshake of our NBD client: structured replies, the contexts of block status, and the export's facts.

Protocol: proto.md of the NBD project, "Fixed newstyle negotiation".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from hexz.images.errors import BackendError
from hexz.images.nbd.wire import Wire
from hexz.protocol.nbd import constants as nbd
from hexz.protocol.nbd.layouts import EXPORT, GREETING, OPTION, OPTION_REPLY, U32

__all__ = ["ALLOCATION", "DIRTY", "LARGEST_SMALLEST", "RemoteExport", "negotiate"]

MAX_OPTION_REPLY = 64 << 10
MAX_OPTION_REPLIES = 256
LARGEST_SMALLEST = 64 << 10
"""The largest block that a server may insist on, bytes."""
DEFAULT_LARGEST = 32 << 20
"""What every server takes in one request if it says nothing else (proto.md, "Block size constraints")."""
ALLOCATION, DIRTY = "allocation", "dirty"

_BLOCK_SIZE = struct.Struct(">III")


class RemoteExport(NamedTuple):
    """What the handshake said; sizes in bytes.  `contexts`: what the ids of the meta contexts mean."""

    size: int
    flags: int
    smallest: int
    largest: int
    structured: bool
    contexts: dict[int, str]

    @property
    def allocation(self) -> bool:
        """Block status says which bytes are holes or zeros."""
        return ALLOCATION in self.contexts.values()

    @property
    def dirty(self) -> bool:
        """Block status says which bytes the bitmap has."""
        return DIRTY in self.contexts.values()

    @property
    def read_only(self) -> bool:
        """Writes would be refused."""
        return bool(self.flags & nbd.READ_ONLY)


def negotiate(wire: Wire, export: str, bitmap: str | None = None) -> RemoteExport:
    """Go through the handshake until the transmission phase; `bitmap` is the dirty bitmap that is wanted.

    Raises: BackendDown; BackendError when the export or the protocol is not there.
    """
    magic, option_magic, flags = GREETING.unpack(wire.receive(GREETING.size))
    if magic != nbd.NBDMAGIC or option_magic != nbd.IHAVEOPT or not flags & nbd.FLAG_FIXED_NEWSTYLE:
        wire.broken("is no NBD server of the fixed newstyle kind")
    wire.send(U32.pack(flags & (nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)))
    structured = _ask(wire, nbd.OPT_STRUCTURED_REPLY, b"") is not None
    contexts = _ask_contexts(wire, export, bitmap) if structured else {}
    query = b"".join((_counted(export), struct.pack(">HH", 1, nbd.INFO_BLOCK_SIZE)))
    infos = _ask(wire, nbd.OPT_GO, query)
    if infos is None:
        raise BackendError(wire.where, f"the NBD server has no export {export!r}, or refuses it")
    return _export(wire, infos, structured, contexts)


def _ask_contexts(wire: Wire, export: str, bitmap: str | None) -> dict[int, str]:
    names = {nbd.BASE_ALLOCATION: ALLOCATION}
    if bitmap is not None:
        names[f"qemu:dirty-bitmap:{bitmap}"] = DIRTY
    parts = [_counted(export), U32.pack(len(names)), *map(_counted, names)]
    contexts: dict[int, str] = {}
    for kind, payload in _ask(wire, nbd.OPT_SET_META_CONTEXT, b"".join(parts)) or []:
        if kind == nbd.REP_META_CONTEXT and len(payload) > 4:
            meaning = names.get(payload[4:].decode("utf-8", "replace"))
            if meaning is not None:
                contexts[U32.unpack_from(payload)[0]] = meaning
    return contexts


def _ask(wire: Wire, option: int, payload: bytes) -> list[tuple[int, bytes]] | None:
    """The replies before the ACK; None when the server says no."""
    wire.send(OPTION.pack(nbd.IHAVEOPT, option, len(payload)) + payload)
    replies: list[tuple[int, bytes]] = []
    while len(replies) < MAX_OPTION_REPLIES:
        magic, for_option, kind, length = OPTION_REPLY.unpack(wire.receive(OPTION_REPLY.size))
        if magic != nbd.OPTION_REPLY_MAGIC or for_option != option or length > MAX_OPTION_REPLY:
            wire.broken("answered an option with something else")
        data = wire.receive(length)
        if kind == nbd.REP_ACK:
            return replies
        if kind & 0x8000_0000:
            return None
        replies.append((kind, data))
    wire.broken("does not stop answering an option")


def _export(wire: Wire, infos: list[tuple[int, bytes]], structured: bool, contexts: dict[int, str]) -> RemoteExport:
    size = flags = None
    smallest, largest = 1, DEFAULT_LARGEST
    for kind, data in infos:
        if kind != nbd.REP_INFO or len(data) < 2:
            continue
        info = int.from_bytes(data[:2], "big")
        if info == nbd.INFO_EXPORT and len(data) == 2 + EXPORT.size:
            size, flags = EXPORT.unpack_from(data, 2)
        elif info == nbd.INFO_BLOCK_SIZE and len(data) == 2 + _BLOCK_SIZE.size:
            smallest, _, largest = _BLOCK_SIZE.unpack_from(data, 2)
    if size is None or flags is None or size >= 1 << 63:
        wire.broken("gives no size")
    if smallest & (smallest - 1) or not 1 <= smallest <= LARGEST_SMALLEST or largest < LARGEST_SMALLEST:
        wire.broken("has block sizes that make no sense")
    return RemoteExport(size, flags, smallest, largest, structured, contexts)


def _counted(text: str) -> bytes:
    data = text.encode()
    return U32.pack(len(data)) + data
