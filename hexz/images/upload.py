"""Copy a request's body into an image, block by block."""

from __future__ import annotations

from typing import Protocol

from hexz.images.backend import Replacement, Session
from hexz.images.buffers import transfer_buffer
from hexz.images.errors import EndedEarly
from hexz.protocol.http.errors import RequestError

__all__ = ["Readable", "copy_body", "replace_all"]


class Readable(Protocol):
    """A body: up to so many bytes at a time, none at the end."""

    def read(self, most: int) -> bytes:
        """Up to `most` bytes."""


def copy_body(session: Session, offset: int, body: Readable, length: int) -> None:
    """Write `length` bytes of `body` at `offset`: of each of the session's blocks all that comes for it, or nothing.

    Raises: BadRequest when the body ends early: whole blocks that came before stay written; what writing raises.
    """
    block = session.block_size
    with transfer_buffer(length, block) as buffer:
        # Up to the end of a block: what two writes put into one block could be found half done.
        unit = max(len(buffer) // block, 1) * block
        done = 0
        while done < length:
            part = buffer[: min(unit - (offset + done) % unit, length - done)]
            _fill(part, body, done)
            session.write(offset + done, part)
            done += len(part)


def replace_all(replacement: Replacement, body: Readable, length: int, flush: bool) -> None:
    """Let `length` bytes of `body` become the image, or leave it as it was.

    Raises: BadRequest when the body ends early; what writing raises.
    """
    try:
        with transfer_buffer(length) as buffer:
            done = 0
            while done < length:
                part = buffer[: min(len(buffer), length - done)]
                _fill(part, body, done)
                replacement.write(part)
                done += len(part)
        replacement.commit(flush)
    finally:
        replacement.abort()


def _fill(into: memoryview, body: Readable, before: int) -> None:
    filled = 0
    while filled < len(into):
        try:
            data = body.read(len(into) - filled)
        except RequestError as error:
            if error.status != 400:
                raise
            raise EndedEarly(f"request body ended early at {before + filled} bytes") from error
        if not data:
            raise EndedEarly(f"request body ended early at {before + filled} bytes")
        into[filled : filled + len(data)] = data
        filled += len(data)
