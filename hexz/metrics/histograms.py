"""The bounds of the histograms, and the place of a value in them.

Sizes have the eight buckets of the Nydus API.  Latencies are counted in finer ones,
whose bounds include those of both of its readings (file system and backend), so that
each of these is a sum of whole buckets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

__all__ = ["LATENCY_BOUNDS", "SIZE_BOUNDS", "coarser", "latency_bucket", "size_bucket"]

SIZE_BOUNDS = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20)
"""Bytes; bucket n has the sizes below bound n, the last one all others."""
LATENCY_BOUNDS = (50e-6, 200e-6, 1e-3, 5e-3, 20e-3, 50e-3, 100e-3, 500e-3, 1.0, 2.0)
"""Seconds; bucket n has what took up to bound n, the last one all that took longer."""
MAX_BITS = 64

_SIZE_BUCKET = tuple(sum(1 << bits > bound for bound in SIZE_BOUNDS) for bits in range(MAX_BITS + 1))
"""The bucket of a size by its bit length: every bound is a power of two, so that this is exact."""
latency_bucket: Callable[[float], int] = partial(bisect_left, LATENCY_BOUNDS)
"""The bucket of a duration in seconds."""


def size_bucket(size: int) -> int:
    """The bucket of `size` bytes, which is less than 2**64."""
    return _SIZE_BUCKET[size.bit_length()]


def coarser(counts: Sequence[int], bounds: Sequence[float]) -> list[int]:
    """Latency counts in fewer buckets: `bounds` are some of `LATENCY_BOUNDS`."""
    sums = [0] * (len(bounds) + 1)
    for number, count in enumerate(counts):
        bound = LATENCY_BOUNDS[number] if number < len(LATENCY_BOUNDS) else float("inf")
        sums[bisect_left(bounds, bound)] += count
    return sums
