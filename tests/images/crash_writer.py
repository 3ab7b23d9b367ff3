"""A writer of an overlay that meets trouble, and what has to be true of the overlay afterwards.

The writer is a fork of this process, which has everything imported already: a
round costs some milliseconds.  It writes as the server does, request by request,
at any offset and of any length.  Its operations come from a seed, and what became
of each is in shared memory, so that this process knows what may be in which block.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hexz.catalog import Catalog
from hexz.errors import HexzError
from hexz.images.backend import Session
from hexz.images.overlay import store as store_module
from hexz.images.overlay.backend import OverlayBackend
from hexz.images.overlay.journal import Head
from hexz.images.overlay.store import OverlayStore
from hexz.images.upload import copy_body
from hexz.snapshot import new_context
from hexz.tools.pack import pack
from tests.images.faults import Faults

BLOCK = 4096
SIZE = 48 * BLOCK + 1234
BASE = random.Random(99).randbytes(SIZE)
"""What lies below."""
LENGTHS = (1, 500, 513, 4096, 5000, 3 * 4096, 40_000)
LONGEST_LIFE_S = 0.012
MOST_STEPS = 1 << 16
NOT_BEGUN, BEGUN, DONE, FAILED = range(4)


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

    def in_block(self, block: int, before: bytes) -> bytes:
        """What it makes of one block."""
        content = bytearray(before)
        start, end = max(self.offset, block * BLOCK), min(self.offset + len(self.data), (block + 1) * BLOCK)
        content[start - block * BLOCK : end - block * BLOCK] = self.data[start - self.offset : end - self.offset]
        return bytes(content)


def steps(seed: int) -> Iterator[Step]:
    """The writer's operations, the same for the same seed."""
    source = random.Random(seed)
    while True:
        kind = source.random()
        offset = source.randrange(SIZE)
        length = min(source.choice(LENGTHS), SIZE - offset)
        if kind < 0.65:
            yield Step("write", offset, source.randbytes(length))
        elif kind < 0.8:
            yield Step("zero", offset, bytes(length))
        else:
            yield Step("flush", 0, b"")


class Possible:
    """What each block may hold: what the last flush left, or what any operation that began since then made of it."""

    def __init__(self, content: bytes) -> None:
        self.now = [{content[at : at + BLOCK]} for at in range(0, SIZE, BLOCK)]
        """What a read may give: more than one thing only after an operation that failed."""
        self.kept = [set(block) for block in self.now]
        """What a kill may leave."""

    def follow(self, step: Step, outcome: int) -> None:
        """`step` was begun, and perhaps came to an end."""
        if step.name == "flush":
            if outcome == DONE:
                self.kept = [set(block) for block in self.now]
            return
        for block in step.blocks():
            made = {step.in_block(block, before) for before in self.now[block]}
            self.now[block] = made if outcome == DONE else self.now[block] | made
            self.kept[block] |= made

    def check(self, found: bytes, after_kill: bool) -> None:
        """`found` is what was read."""
        assert len(found) == SIZE
        for block, possible in enumerate(self.kept if after_kill else self.now):
            assert found[block * BLOCK : (block + 1) * BLOCK] in possible, f"block {block} is neither old nor new"

    def settle(self, found: bytes) -> None:
        """What was read is what there is."""
        self.now = [{found[at : at + BLOCK]} for at in range(0, SIZE, BLOCK)]


def open_store(path: str, base: bytes = BASE) -> OverlayStore:
    """The overlay as a server opens it, but in small blocks."""
    below = memoryview(base)
    head = Head(SIZE, BLOCK, "0" * 32, "/base.hxz", "disk")
    return OverlayStore(path, head, lambda offset, length: [below[offset : offset + length]])


class Place:
    """A folder with a snapshot of `BASE` and an overlay in small blocks over it."""

    def __init__(self, folder: Path) -> None:
        self.snapshot = str(folder / "base.hxz")
        self.overlay = str(folder / "overlay")
        (folder / "base.raw").write_bytes(BASE)
        pack(str(folder / "base.raw"), self.snapshot)
        catalog = self.catalog()
        lease, stream = catalog.stream("base")
        # An overlay keeps the block size that it was made with.
        self.head = Head(stream.size, BLOCK, stream.etag, self.snapshot, stream.name)
        lease.release()
        self.new()

    def new(self) -> None:
        """Begin with an overlay in which nothing was written."""
        for name in (self.overlay, self.overlay + ".map", self.overlay + ".map.new"):
            Path(name).unlink(missing_ok=True)
        self.open().close()

    def catalog(self) -> Catalog:
        """The snapshot, opened."""
        catalog = Catalog(new_context(4 << 20))
        catalog.add("base", self.snapshot)
        return catalog

    def backend(self) -> OverlayBackend:
        """The overlay as the server has it."""
        catalog = self.catalog()
        return OverlayBackend(self.overlay, lambda: catalog.stream("base"))

    def open(self) -> OverlayStore:
        """The overlay, opened to be looked at."""
        below = memoryview(BASE)
        return OverlayStore(self.overlay, self.head, lambda offset, length: [below[offset : offset + length]])


def content_of(session: Session) -> bytes:
    """All bytes of an image."""
    return b"".join(bytes(view) for views in session.read(0, session.size) for view in views)


def do(backend: OverlayBackend, step: Step) -> None:
    """A request, as the images API makes it."""
    with contextlib.closing(backend.open(True)) as session:
        if step.name == "write":
            copy_body(session, step.offset, io.BytesIO(step.data), len(step.data))
        elif step.name == "zero":
            session.zero(step.offset, len(step.data))
        else:
            session.flush()


def write_on(place: Place, plan: Iterable[Step], before: bytes, outcomes: mmap.mmap, faults: Faults) -> None:
    """The writer.  It goes on after errors, and once the disk is well again a flush succeeds and nothing is mixed."""
    backend = place.backend()
    with contextlib.closing(backend.open()) as session:
        content_of(session)
    possible = Possible(before)
    faults.install()
    for number, step in enumerate(plan):
        outcomes[number] = BEGUN
        try:
            do(backend, step)
            outcome = DONE
        except (HexzError, OSError):
            outcome = FAILED
        outcomes[number] = outcome
        possible.follow(step, outcome)
        if outcome == FAILED:
            with contextlib.suppress(HexzError, OSError), contextlib.closing(backend.open()) as session:
                found = content_of(session)
                possible.check(found, after_kill=False)
                possible.settle(found)
    faults.remove()
    with contextlib.closing(backend.open(True)) as session:
        session.flush()
        found = content_of(session)
    possible.check(found, after_kill=False)


def run_writer(
    place: Place, seed: int, length: int, before: bytes, faults: Faults, life_s: float | None = None
) -> tuple[int, Possible, bool]:
    """Fork a writer of `length` steps, and kill it after `life_s` seconds if that is given.

    The number of steps that were begun, what may be there now, and whether the writer came to its end.
    """
    outcomes = mmap.mmap(-1, MOST_STEPS)
    child = os.fork()
    if child == 0:
        try:
            write_on(place, islice(steps(seed), length), before, outcomes, faults)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    if life_s is not None:
        while outcomes[0] == NOT_BEGUN:
            time.sleep(0)
        time.sleep(life_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    ended = os.WIFEXITED(status)
    assert not ended or os.WEXITSTATUS(status) == 0, f"the writer failed (seed {seed}, {vars(faults)})"
    possible = Possible(before)
    begun = 0
    for step in islice(steps(seed), length):
        if outcomes[begun] == NOT_BEGUN:
            break
        possible.follow(step, outcomes[begun])
        begun += 1
    if ended:
        possible.follow(Step("flush", 0, b""), DONE)
    return begun, possible, ended


def look(place: Place, possible: Possible) -> bytes:
    """Every block is what it may be, and the map, which is the dirty bitmap too, has all that changed."""
    with contextlib.closing(place.open()) as store:
        found = b"".join(store.read(0, SIZE))
        possible.check(found, after_kill=True)
        written: set[int] = set()
        end = 0
        for start, length, zero in store.written(0, SIZE):
            assert start >= end and length > 0
            end = start + length
            assert not zero or not any(found[start:end])
            written |= set(range(start // BLOCK, -(-end // BLOCK)))
    assert {at // BLOCK for at in range(0, SIZE, BLOCK) if found[at : at + BLOCK] != BASE[at : at + BLOCK]} <= written
    return found


def random_kills(folder: Path, rounds: int, seed: int) -> str:
    """`rounds` writers, one after the other on the same overlay, each killed at a random moment; what was done."""
    place = Place(folder)
    content = BASE
    lives = random.Random(seed)
    operations = 0
    for number in range(seed, seed + rounds):
        life_s = lives.random() * LONGEST_LIFE_S
        begun, possible, _ = run_writer(place, number, MOST_STEPS, content, Faults(), life_s)
        content = look(place, possible)
        operations += begun
    return f"{rounds} kills at random moments, {operations} operations"


def calls_of(place: Place, seed: int, length: int) -> int:
    """How many system calls a writer makes."""
    faults = Faults()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_on(place, islice(steps(seed), length), BASE, mmap.mmap(-1, MOST_STEPS), faults)
            os.write(write, str(faults.count).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as file:
        return int(file.read())


def every_call(
    folder: Path, kind: str, seed: int, length: int, lasting: int = 1, every: Callable[[int], bool] = lambda _: True
) -> str:
    """Trouble of one `kind` at each system call of a writer in turn, `lasting` so many calls; what was done."""
    place = Place(folder)
    compact_at, store_module.COMPACT_AT = store_module.COMPACT_AT, 12  # the journal is written anew now and then
    try:
        count = calls_of(place, seed, length)
        points = [number for number in range(count) if every(number)]
        for number in points:
            place.new()
            _, possible, _ = run_writer(place, seed, length, BASE, Faults(kind, number, lasting))
            look(place, possible)
    finally:
        store_module.COMPACT_AT = compact_at
    return f"{kind} at {len(points)} of {count} system calls, for {lasting}"
