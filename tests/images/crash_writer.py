"""Kill a writer of an overlay at random moments and see what is left; run as a program, it prints what it found.

The writer is a fork of this process, which has everything imported already: a
round costs some milliseconds.  Its operations come from a seed, and how far it
came is in shared memory, so that this process knows what may be in which block:
what the last flush that returned had put there, or what an operation that was
begun since then would.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from hexz.images.journal import Head
from hexz.images.store import OverlayStore

BLOCK = 4096
SIZE = 48 * BLOCK + 1234
COUNTER = struct.Struct("Q")
BEGUN, FLUSHED = slice(0, 8), slice(8, 16)
"""Two counters in shared memory; each is copied in whole, for a kill may come between."""
LONGEST_LIFE_S = 0.012


class Step(NamedTuple):
    """An operation: ``write`` these bytes, ``zero`` as many, or ``flush``."""

    name: str
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        """What it does to the image."""
        content[self.offset : self.offset + len(self.data)] = self.data

    def blocks(self) -> range:
        """The blocks that it touches."""
        return range(self.offset // BLOCK, -(-(self.offset + len(self.data)) // BLOCK)) if self.data else range(0)


def steps(seed: int) -> Iterator[Step]:
    """The writer's operations, the same for the same seed."""
    source = random.Random(seed)
    while True:
        kind = source.random()
        offset = source.randrange(SIZE)
        length = min(source.choice((1, 500, BLOCK, 3 * BLOCK, 10 * BLOCK)), SIZE - offset)
        if kind < 0.65:
            yield Step("write", offset, source.randbytes(length))
        elif kind < 0.8:
            yield Step("zero", offset, bytes(length))
        else:
            yield Step("flush", 0, b"")


def open_store(path: str, base: bytes) -> OverlayStore:
    """The overlay as a server opens it."""
    below = memoryview(base)
    head = Head(SIZE, BLOCK, "0" * 32, "/base.hxz", "disk")
    return OverlayStore(path, head, lambda offset, length: [below[offset : offset + length]])


def write_for_ever(path: str, base: bytes, seed: int, progress: mmap.mmap) -> None:
    """The writer, which ends by being killed."""
    store = open_store(path, base)
    for number, step in enumerate(steps(seed), 1):
        progress[BEGUN] = COUNTER.pack(number)
        if step.name == "write":
            store.write(step.offset, memoryview(step.data))
        elif step.name == "zero":
            store.zero(step.offset, len(step.data))
        else:
            store.flush()
            progress[FLUSHED] = COUNTER.pack(number)


def check(store: OverlayStore, before: bytes, base: bytes, seed: int, begun: int, flushed: int) -> bytes:
    """Every block is what the last flush left or what an operation since then made of it; the image's bytes."""
    found = b"".join(store.read(0, SIZE))
    assert len(found) == SIZE
    content = bytearray(before)
    source = steps(seed)
    for _ in range(flushed):
        next(source).apply(content)
    spans = [slice(at, min(at + BLOCK, SIZE)) for at in range(0, SIZE, BLOCK)]
    possible = [{bytes(content[span])} for span in spans]
    for _ in range(begun - flushed):
        step = next(source)
        step.apply(content)
        for block in step.blocks():
            possible[block].add(bytes(content[spans[block]]))
    for block, span in enumerate(spans):
        assert found[span] in possible[block], f"block {block}: neither old nor new (seed {seed}, {flushed}..{begun})"
    # The map, which is the dirty bitmap too, has every block that differs from what lies below.
    written = set()
    end = 0
    for start, length, zero in store.written(0, SIZE):
        assert start >= end and length > 0
        end = start + length
        assert not zero or not any(found[start:end])
        written |= set(range(start // BLOCK, -(-end // BLOCK)))
    assert {block for block, span in enumerate(spans) if found[span] != base[span]} <= written
    return found


def main(folder: str, rounds: int, seed: int) -> None:
    """`rounds` writers, one after the other on the same overlay."""
    path = os.path.join(folder, "overlay")
    base = content = random.Random(99).randbytes(SIZE)
    lives = random.Random(seed)
    progress = mmap.mmap(-1, 2 * COUNTER.size)
    operations = flushes = unflushed = 0
    for number in range(seed, seed + rounds):
        progress[:] = bytes(2 * COUNTER.size)
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(path, base, number, progress)
            finally:
                os._exit(1)
        while not any(progress[BEGUN]):
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "the writer ended by itself"
            time.sleep(0)
        time.sleep(lives.random() * LONGEST_LIFE_S)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the writer ended by itself"
        begun, flushed = (COUNTER.unpack(progress[part])[0] for part in (BEGUN, FLUSHED))
        store = open_store(path, base)
        content = check(store, content, base, number, begun, flushed)
        store.close()
        operations += begun
        flushes += flushed > 0
        unflushed += begun > flushed
    print(f"{rounds} kills, {operations} operations, {flushes} after a flush, {unflushed} with unflushed work")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
