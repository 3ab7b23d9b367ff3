"""The checksum of an image as oVirt's tools compute it: a hash of the hashes of its blocks.

A block of zeros costs nothing when the extents say so, and the result depends
neither on the extents nor on how the image is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from hexz.images.backend import ImageExtent, Session, coalesced

__all__ = ["ALGORITHMS", "DEFAULT_ALGORITHM", "DEFAULT_BLOCK", "MAX_BLOCK", "MIN_BLOCK", "checksum"]

DEFAULT_ALGORITHM = "blake2b"
ALGORITHMS = tuple(sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake")))
DEFAULT_BLOCK = 4 << 20
MIN_BLOCK = 1 << 20
MAX_BLOCK = 16 << 20
BLOCK_MULTIPLE = 4096
BLAKE2_BYTES = 32
ZEROS = memoryview(bytes(64 << 10))


def checksum(session: Session, algorithm: str, block_size: int, watch: Callable[[], None] = lambda: None) -> str:
    """The checksum in hexadecimal; `algorithm` is one of `ALGORITHMS`, `block_size` in bytes.

    `watch` is called again and again, and ends the work by what it raises.
    Raises: what reading raises.
    """
    new = _factory(algorithm)
    total = new()
    zero_digest = _of_zeros(new, block_size)
    many_digests = memoryview(zero_digest * (len(ZEROS) // len(zero_digest)))
    block = new()
    filled = 0
    for extent in coalesced(_watched(session.extents(0, session.size, dirty=False), watch)):
        left = extent.length
        if extent.zero:
            while left:
                watch()
                if not filled and left >= block_size:
                    count = min(left // block_size, len(many_digests) // len(zero_digest))
                    total.update(many_digests[: count * len(zero_digest)])
                    left -= count * block_size
                    continue
                size = min(left, block_size - filled, len(ZEROS))
                block.update(ZEROS[:size])
                left -= size
                filled += size
                if filled == block_size:
                    total.update(block.digest())
                    block, filled = new(), 0
            continue
        for view in _data(session, extent):
            watch()
            rest = view
            while rest:
                part = rest[: block_size - filled]
                block.update(part)
                rest = rest[len(part) :]
                filled += len(part)
                if filled == block_size:
                    total.update(block.digest())
                    block, filled = new(), 0
    if filled:
        total.update(block.digest())
    return str(total.hexdigest())


def _watched(extents: Iterator[ImageExtent], watch: Callable[[], None]) -> Iterator[ImageExtent]:
    """The same; many of them may be one in the end."""
    for extent in extents:
        watch()
        yield extent


def _data(session: Session, extent: ImageExtent) -> Iterator[memoryview]:
    for views in session.read(extent.start, extent.length):
        yield from views


def _of_zeros(new: Callable[[], Any], size: int) -> bytes:
    block = new()
    for at in range(0, size, len(ZEROS)):
        block.update(ZEROS[: min(len(ZEROS), size - at)])
    return bytes(block.digest())


def _factory(algorithm: str) -> Callable[[], Any]:
    if algorithm == "blake2b":
        return lambda: hashlib.blake2b(digest_size=BLAKE2_BYTES)
    if algorithm == "blake2s":
        return lambda: hashlib.blake2s(digest_size=BLAKE2_BYTES)
    return lambda: hashlib.new(algorithm)
