"""Reads of sealed files that are damaged anywhere: every one right or refused, 500,000 of them.

``python -m tests.seal.endurance [READS [SEED]]``: sample files of every release, each sealed (some with a key), get
damaged in a random place: the file or its parents or their seals, before they are opened or while they are open.
Then spans of the streams and of the file itself are read.  What the undamaged files hold is the truth.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hexz.errors import HexzError
from hexz.format.seal import seal_key
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.storage.sealed import SealPolicy
from tests import vectors
from tests.seal.making import seal_bytes, seal_path

READS = 500_000
READS_EACH = 40
"""Reads of one damaged file; a file whose key takes long to derive is read `SLOW_TIMES` as often."""
SLOW_TIMES = 20
KEY = seal_key(b"the secret of the endurance test")
LEAVES = (4096, 16384, 65536)
CACHE = 1 << 20
ENTRY_SIZES = (20, 52)
MOST_SHOWN = 20


class Family(NamedTuple):
    """A sample, the files that it needs with their bytes, and what it holds: the truth."""

    name: str
    files: dict[str, bytes]
    password: bytes | None
    streams: dict[str, bytes]


class Outcome(NamedTuple):
    """What became of the reads: `counts` by word, and the stories of wrong ones."""

    counts: Counter[str]
    wrong: list[str]


def families(folder: Path) -> Iterator[Family]:
    """Every sample of the set that can be read, below 4 MiB."""
    listed = vectors.load()
    for name, vector in listed.items():
        names = [name, *ancestors(name)]
        if any(other not in listed for other in names) or vector.get("expect") == "unresolvable-parent-block":
            continue
        files = {other: vectors.path(other).read_bytes() for other in names}
        password = vectors.password(vector)
        secret = password.encode() if password else None
        try:
            with open_snapshot(str(vectors.path(name)), new_context(CACHE, secret, workers=0)) as snapshot:
                if sum(stream.size for stream in snapshot.streams.values()) > 4 << 20:
                    continue
                streams = {one.name: b"".join(one.read(0, one.size)) for one in snapshot.streams.values() if one.size}
        except HexzError:
            continue  # a sample that nobody can read
        yield Family(name, files, secret, streams)


def ancestors(name: str) -> list[str]:
    """The parents of a sample and theirs."""
    found: list[str] = []
    todo = [name]
    while todo:
        for parent in vectors.load().get(todo.pop(), {"parents": []})["parents"]:
            if parent not in found:
                found.append(parent)
                todo.append(parent)
    return found


# Damage: each takes a file's bytes and says what it did


def flip(data: bytearray, source: random.Random) -> str:
    at = source.randrange(len(data))
    data[at] ^= 1 << source.randrange(8)
    return f"a bit at {at}"


def flip_early(data: bytearray, source: random.Random) -> str:
    """In the header, or in the dictionary if there is one."""
    at = source.randrange(min(len(data), source.choice((90, 4096, 120_000))))
    data[at] ^= 1 << source.randrange(8)
    return f"a bit at {at}"


def flip_late(data: bytearray, source: random.Random) -> str:
    """In the master index, the metadata or the signature."""
    at = len(data) - 1 - source.randrange(min(len(data), source.choice((64, 400, 4000))))
    data[at] ^= 1 << source.randrange(8)
    return f"a bit at {at}"


def noise(data: bytearray, source: random.Random) -> str:
    at = source.randrange(len(data))
    length = min(source.choice((1, 4, 20, 500, 5000)), len(data) - at)
    data[at : at + length] = source.randbytes(length)
    return f"noise at {at}+{length}"


def zeros(data: bytearray, source: random.Random) -> str:
    at = source.randrange(len(data))
    length = min(source.choice((4, 512, 4096)), len(data) - at)
    data[at : at + length] = bytes(length)
    return f"zeros at {at}+{length}"


def pages(data: bytearray) -> list[tuple[int, int]]:
    """(offset, length) of the index pages of an undamaged file."""
    at = struct.unpack_from("<Q", data, 12)[0]
    found = []
    for _ in range(2):
        count = struct.unpack_from("<Q", data, at)[0]
        at += 8
        for _ in range(count):
            found.append(struct.unpack_from("<QI", data, at))
            at += 28
    return found


def swap_entries(data: bytearray, source: random.Random) -> str:
    """Two whole entries of a page, which both stay right in themselves."""
    listed = pages(data)
    if not listed:
        return flip(data, source)
    place, length = source.choice(listed)
    count = struct.unpack_from("<Q", data, place)[0]
    size = (length - 8) // count
    one, other = (place + 8 + source.randrange(count) * size for _ in range(2))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
    return f"the entries at {one} and {other} swapped"


def entry_field(data: bytearray, source: random.Random) -> str:
    """A number in an entry."""
    listed = pages(data)
    if not listed:
        return flip(data, source)
    place, length = source.choice(listed)
    count = struct.unpack_from("<Q", data, place)[0]
    size = (length - 8) // count
    at = place + 8 + source.randrange(count) * size + 4 * source.randrange(size // 4)
    data[at : at + 4] = source.choice((bytes(4), b"\xff" * 4, source.randbytes(4)))
    return f"a number of an entry at {at}"


def move_leaves(data: bytearray, source: random.Random) -> str:
    """Two stretches of 4 KiB change places."""
    if len(data) < 8192:
        return flip(data, source)
    one, other = (source.randrange(len(data) // 4096) * 4096 for _ in range(2))
    data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]
    return f"{one} and {other} swapped"


def several(data: bytearray, source: random.Random) -> str:
    return " and ".join(flip(data, source) for _ in range(source.randint(2, 20)))


def cut(data: bytearray, source: random.Random) -> str:
    length = source.randrange(len(data))
    del data[length:]
    return f"cut to {length}"


def grow(data: bytearray, source: random.Random) -> str:
    data += source.randbytes(source.choice((1, 64, 5000)))
    return "grown"


Damage = Callable[[bytearray, random.Random], str]
KINDS: tuple[Damage, ...] = (
    flip, flip_early, flip_late, noise, zeros, swap_entries, entry_field, move_leaves, several, cut, grow,
)  # fmt: skip
TO_SEALS: tuple[Damage, ...] = (flip, noise, zeros, several, cut, grow)


class Trial:
    """One family, sealed and damaged."""

    def __init__(self, folder: Path, family: Family, source: random.Random, outcome: Outcome, sealed: bool) -> None:
        self._sealed = sealed
        self._folder = folder
        self._family = family
        self._source = source
        self._outcome = outcome
        self._key = source.choice((None, KEY))
        self._story = ""

    def run(self, reads: int) -> None:
        """Damage, open, read; or open, damage, read."""
        leaf = self._source.choice(LEAVES)
        for name, data in self._family.files.items():
            (self._folder / name).write_bytes(data)
            if self._sealed:
                seal_path(self._folder / name).write_bytes(seal_bytes(data, self._key, leaf))
        early = self._source.random() < 0.7
        if early:
            self._damage()
        context = new_context(CACHE, self._family.password, workers=0, seals=SealPolicy(self._key, self._sealed))
        try:
            with open_snapshot(str(self._folder / self._family.name), context) as snapshot:
                self._outcome.counts["opened"] += 1
                if not early:
                    self._warm(snapshot)
                    self._damage()
                self._read(snapshot, reads)
        except HexzError as error:
            self._outcome.counts["refused to open"] += 1
            if "\n" in str(error):
                self._wrong(f"{error!r} has several lines")

    def _damage(self) -> None:
        victim = self._folder / self._source.choice(sorted(self._family.files))
        kinds = KINDS
        if self._sealed and self._source.random() < 0.2:
            victim, kinds = seal_path(victim), TO_SEALS
        data = bytearray(victim.read_bytes())
        kind = self._source.choice(kinds)
        self._story = f"{self._family.name}: {victim.name}: {kind.__name__}: {kind(data, self._source)}"
        with victim.open("r+b") as file:  # in place: whoever has it open sees it
            file.write(data)
            file.truncate()

    def _warm(self, snapshot: Snapshot) -> None:
        """Some of it is in memory when the damage is done."""
        for stream in snapshot.streams.values():
            if stream.size and self._source.random() < 0.5:
                offset = self._source.randrange(stream.size)
                stream.read(offset, min(5000, stream.size - offset))

    def _read(self, snapshot: Snapshot, reads: int) -> None:
        truth = self._family.streams
        sizes = {stream.name: stream.size for stream in snapshot.streams.values() if stream.size}
        if sizes != {name: len(data) for name, data in truth.items()}:
            self._wrong(f"streams of {sizes}")
            return
        file = self._family.files[self._family.name]
        sources: list[tuple[str, bytes, Callable[[int, int], bytes]]] = [("file", file, snapshot.read_file)]
        for name, data in truth.items():
            sources += [(name, data, partial(whole, snapshot, name))] * 4
        for _ in range(reads):
            name, right, read = self._source.choice(sources)
            offset = self._source.randrange(len(right))
            length = min(self._source.choice((1, 512, 4096, 30_000, 200_000)), len(right) - offset)
            try:
                got = read(offset, length)
            except HexzError:
                self._outcome.counts["refused"] += 1
                continue
            if got == right[offset : offset + length]:
                self._outcome.counts["right"] += 1
            else:
                self._wrong(f"{name} at {offset}+{length}")

    def _wrong(self, what: str) -> None:
        self._outcome.counts["WRONG"] += 1
        self._outcome.wrong.append(f"{self._story}: {what}")


def whole(snapshot: Snapshot, name: str, offset: int, length: int) -> bytes:
    """A span of a stream as one piece."""
    return b"".join(snapshot.streams[name].read(offset, length))


def endure(reads: int, seed: int, tell: Callable[[str], object] = lambda line: None, sealed: bool = True) -> Outcome:
    """At least so many reads; the same again for the same seed.  Not `sealed`: how much it is the seals that do it."""
    outcome = Outcome(Counter(), [])
    source = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="hexz-endurance-"))
    try:
        found = list(families(folder))
        assert found, "there are no samples"
        tell(f"{len(found)} files, seed {seed}")
        told = time.monotonic()
        while sum(outcome.counts[word] for word in ("right", "refused", "WRONG")) < reads:
            family = source.choice(found)
            slow = SLOW_TIMES if family.password else 1
            if slow > 1 and source.randrange(slow):
                continue
            Trial(folder, family, source, outcome, sealed).run(READS_EACH * slow)
            for entry in os.scandir(folder):
                os.unlink(entry)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                tell(summary(outcome))
    finally:
        shutil.rmtree(folder)
    return outcome


def summary(outcome: Outcome) -> str:
    """The counts in one line."""
    words = ("opened", "refused to open", "right", "refused", "WRONG")
    return ", ".join(f"{outcome.counts[word]:,} {word}" for word in words)


def main() -> int:
    """The long run."""
    reads = int(sys.argv[1]) if len(sys.argv) > 1 else READS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    began = time.monotonic()
    outcome = endure(reads, seed, lambda line: print(line, flush=True))
    for line in outcome.wrong[:MOST_SHOWN]:
        print(f"WRONG: {line}")
    print(f"{summary(outcome)} in {time.monotonic() - began:.0f} s")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
