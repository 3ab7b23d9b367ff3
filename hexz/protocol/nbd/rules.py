"""Which requests a read-only server answers, and with which error it refuses the others."""

from __future__ import annotations

from typing import NamedTuple

from hexz.protocol.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_FLAG_DF,
    CMD_FLAG_PAYLOAD_LEN,
    CMD_FLAG_REQ_ONE,
    CMD_READ,
    MAX_READ,
    NBD_EINVAL,
    NBD_EOVERFLOW,
    NBD_EPERM,
    WRITING_COMMANDS,
)

__all__ = ["NbdRefusal", "NbdRequest", "refusal"]


class NbdRequest(NamedTuple):
    """One request; `offset` and `length` in bytes, unchecked."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class NbdRefusal(NamedTuple):
    """Why a request is refused: the NBD error and a line for people."""

    error: int
    message: str


_FLAGS = {CMD_READ: CMD_FLAG_DF, CMD_BLOCK_STATUS: CMD_FLAG_REQ_ONE, CMD_CACHE: 0}


def refusal(
    request: NbdRequest, size: int, chunked: bool, extended: bool, has_contexts: bool, unfragmented: int
) -> NbdRefusal | None:
    """Why `request` cannot be done on an export of `size` bytes, or None.

    `chunked` says that structured or extended replies were negotiated; a read that must
    be one chunk has at most `unfragmented` bytes, of which proto.md wants at least 65536.

    Spec: proto.md, "Request types" and "Error values".
    """
    command = request.command
    if command in WRITING_COMMANDS:
        return NbdRefusal(NBD_EPERM, "the export is read-only")
    allowed = _FLAGS.get(command)
    if allowed is None:
        return NbdRefusal(NBD_EINVAL, f"command {command} is not offered")
    flags = request.flags & ~(CMD_FLAG_PAYLOAD_LEN if extended else 0)
    if flags & ~(allowed if chunked else 0):
        return NbdRefusal(NBD_EINVAL, f"flags {request.flags:#x} do not go with command {command}")
    if request.flags & CMD_FLAG_PAYLOAD_LEN:
        return NbdRefusal(NBD_EINVAL, "this command has no payload")
    if command == CMD_BLOCK_STATUS and not has_contexts:
        return NbdRefusal(NBD_EINVAL, "no meta context was negotiated")
    if command == CMD_BLOCK_STATUS and not request.length:
        return NbdRefusal(NBD_EINVAL, "block status of no bytes")
    if request.offset + request.length > size:
        return NbdRefusal(NBD_EINVAL, f"{request.offset}+{request.length} is past the end at {size}")
    if command == CMD_READ and request.length > MAX_READ:
        return NbdRefusal(NBD_EINVAL, f"a read has at most {MAX_READ} bytes")
    if command == CMD_READ and flags & CMD_FLAG_DF and request.length > unfragmented:
        return NbdRefusal(NBD_EOVERFLOW, f"one chunk has at most {unfragmented} bytes")
    return None
