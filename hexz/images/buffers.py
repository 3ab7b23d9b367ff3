"""Large buffers for transfers that gain by them, a fixed number for the whole process."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

__all__ = ["BUFFER", "BUFFERS", "POOL", "SMALL", "BufferPool", "transfer_buffer"]

BUFFER = 512 << 10
"""Bytes of a buffer: large enough that a request costs an NBD server little, small enough to stay in a core's cache."""
BUFFERS = 32
"""How many there are, 16 MiB in all."""


SMALL = 64 << 10
"""Bytes of a buffer for a short transfer, and where no large one is free."""


class BufferPool:
    """`count` buffers of `size` bytes, made when first needed; thread-safe without a lock (a deque's ends are)."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self._count = count
        self._free: deque[tuple[memoryview, str] | None] = deque([None] * count)
        self._zeros = memoryview(bytes(size))

    def idle(self) -> bool:
        """Nobody has a buffer now."""
        return len(self._free) == self._count

    def take(self, most: int, owner: str = "") -> list[memoryview]:
        """Up to `most` buffers, none when all are in use; `give_back` each of them.

        They hold what somebody left in them; for a named `owner` only what was left by the same one, else zeros.
        """
        taken: list[memoryview] = []
        while len(taken) < most:
            try:
                free = self._free.pop()
            except IndexError:
                break
            buffer, last = free or (memoryview(bytearray(self.size)), owner)
            if owner and last != owner:
                buffer[:] = self._zeros
            taken.append(buffer)
        return taken

    def give_back(self, buffers: list[memoryview], owner: str = "") -> None:
        """Let others use them."""
        self._free.extend((buffer, owner) for buffer in buffers)


POOL = BufferPool(BUFFERS, BUFFER)


@contextlib.contextmanager
def transfer_buffer(length: int, least: int = SMALL) -> Iterator[memoryview]:
    """A buffer to move `length` bytes through: a large one if they are many and one is free.

    It has room for all of them or for `least` bytes.
    """
    taken = POOL.take(1) if length > SMALL and least <= POOL.size else []
    try:
        yield taken[0] if taken else memoryview(bytearray(max(min(max(SMALL, least), length), 1)))
    finally:
        POOL.give_back(taken)
