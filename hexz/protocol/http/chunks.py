"""The chunked transfer coding: what a body in chunks says, however it comes (RFC 9112 section 7.1)."""

from __future__ import annotations

import re

from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import MAX_HEAD

__all__ = ["MAX_CHUNK_LINE", "MAX_TRAILERS", "Chunks"]

MAX_CHUNK_LINE = 256
"""Longest line of a chunk's size and its extensions, bytes."""
MAX_TRAILERS = 100
"""Most lines after the last chunk, each of up to `MAX_HEAD` bytes; what they say is ignored."""
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\x20-\x7e\t]*)?\r\n")


class Chunks:
    """A decoder of one body; `finished` once its end was seen."""

    def __init__(self) -> None:
        self._left = 0  # of the chunk's data
        self._ends = False  # the chunk's data has come, but not the end of its line
        self._trailers = -1  # lines after the last chunk; none yet before that
        self.finished = False

    def decode(self, data: bytes, most: int) -> tuple[bytes, int]:
        """Up to `most` bytes of the body, and how many of `data` they took, which begins where the last call ended.

        Nothing of the body, and not `finished`: call again with more of `data`.
        Raises: RequestError (400).
        """
        parts: list[bytes] = []
        at = 0
        while not self.finished:
            if self._left:
                part = data[at : at + min(self._left, most)]
                if not part:
                    break
                parts.append(part)
                at += len(part)
                most -= len(part)
                self._left -= len(part)
                self._ends = not self._left
                continue
            if self._ends:
                end = _line(data, at, 0)
                self._ends = end < 0
            elif self._trailers < 0:
                end = self._take_size(data, at)
            else:
                end = self._take_trailer(data, at)
            if end < 0:
                break
            at = end
        return b"".join(parts), at

    def _take_size(self, data: bytes, at: int) -> int:
        found = _SIZE.match(data, at, at + MAX_CHUNK_LINE + 2)
        if found is None:
            if _line(data, at, MAX_CHUNK_LINE) < 0:
                return -1
            raise RequestError(400, "a chunk's size is malformed")
        self._left = int(found[1], 16)
        if not self._left:
            self._trailers = 0
        return found.end()

    def _take_trailer(self, data: bytes, at: int) -> int:
        end = _line(data, at, MAX_HEAD)
        if end == at + 2:
            self.finished = True
        elif end >= 0:
            self._trailers += 1
            if self._trailers >= MAX_TRAILERS:
                raise RequestError(400, "too many trailers")
        return end


def _line(data: bytes, at: int, most: int) -> int:
    """Where a line of up to `most` bytes ends, its CR LF included; -1 when that has not come yet.

    Raises: RequestError (400).
    """
    found = data.find(b"\r\n", at, at + most + 2)
    if found >= 0:
        return found + 2
    if len(data) - at >= most + 2:
        raise RequestError(400, "a line of the chunked body is too long")
    return -1
