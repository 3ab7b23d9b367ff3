"""Images to pack, the same for the same seed: zeros, text, noise, repeats."""

from __future__ import annotations

import random


def image(size: int, seed: int = 1) -> bytes:
    """`size` bytes: runs of zeros, of words, of noise and of earlier content."""
    source = random.Random(seed)
    words = [bytes(source.choices(b"abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) + b" " for _ in range(500)]
    parts: list[bytes] = []
    length = 0
    while length < size:
        run = source.choice((512, 4096, 20_000, 65_536, 150_000))
        kind = source.random()
        if kind < 0.3:
            part = bytes(run)
        elif kind < 0.6:
            part = b"".join(source.choices(words, k=run // 5))[:run]
        elif kind < 0.85 or not parts:
            part = source.randbytes(run)
        else:
            part = source.choice(parts)
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]
