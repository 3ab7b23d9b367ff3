"""Files with a seal beside them: whatever is read of such a file has been checked against it first.

The seal is ``FILE.sum`` (hexz.format.seal).  A span is read in whole leaves, whose
hashes are checked; the hashes come from nodes of the seal that are read when they are
needed and checked against the node above, up to the root, which was checked when the file
was opened.  So opening costs two short reads, whatever the file's size.

A leaf that a short read needed only in part is kept for a while: the next read mostly
begins in it.
"""

from __future__ import annotations

import hmac
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from hexz.errors import SealDamaged, SealKeyNeeded, SealMismatch, SealMissing, SnapshotNotFound, StorageError
from hexz.format.errors import DamagedSeal
from hexz.format.seal import FANOUT, HASH_SIZE, HEADER_SIZE, SUFFIX, SealHeader, SealTree, parse_seal_header
from hexz.storage.interface import Around, SealFacts, Storage
from hexz.storage.local import LocalFile

__all__ = ["NO_POLICY", "SealCache", "SealPolicy", "SealedFile", "Seals", "open_local", "through_seal"]

CACHE_BYTES = 4 << 20
"""Checked leaves and nodes kept for all files of a process together."""

_uids = itertools.count(1)


class SealPolicy(NamedTuple):
    """The key that keyed seals are checked with, and whether every file must have a seal.

    If it must and there is a key, only keyed seals count: anybody can make a plain one.
    """

    key: bytes | None = None
    required: bool = False


NO_POLICY = SealPolicy()
"""No seal is demanded, and a plain one is checked where there is one."""


class Seals:
    """The policy for what is opened from now on; what is open stays checked with the key that it was opened with."""

    def __init__(self, policy: SealPolicy = NO_POLICY) -> None:
        self.policy = policy

    def change_key(self, key: bytes | None) -> None:
        """Check keyed seals with another key."""
        self.policy = self.policy._replace(key=key)


class SealCache:
    """Checked pieces of files and of seals, `budget` bytes at most; the least recently used goes first."""

    def __init__(self, budget: int = CACHE_BYTES) -> None:
        self.budget = budget
        self._lock = threading.Lock()  # guards what follows
        self._pieces: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self.held = 0

    def find(self, key: tuple[int, int, int]) -> bytes | None:
        """The piece, if it is there."""
        with self._lock:
            piece = self._pieces.get(key)
            if piece is not None:
                self._pieces.move_to_end(key)
        return piece

    def keep(self, key: tuple[int, int, int], piece: bytes) -> None:
        """Keep a piece, and let go of others until the budget holds again."""
        with self._lock:
            old = self._pieces.pop(key, None)
            self._pieces[key] = piece
            self.held += len(piece) - (len(old) if old is not None else 0)
            while self.held > self.budget and len(self._pieces) > 1:
                self.held -= len(self._pieces.popitem(last=False)[1])

    def forget(self, uid: int) -> None:
        """Drop the pieces of one file."""
        with self._lock:
            for key in [key for key in self._pieces if key[0] == uid]:
                self.held -= len(self._pieces.pop(key))


class Sealable(Storage, Protocol):
    """What a seal can be put before."""

    watched: bool

    def count_failure(self) -> None:
        """Count a read that went well, whose bytes turned out to be wrong."""


LONG = 4
"""Leaves from which on a read is long."""
LEAVES = -1
"""Stands for a level in the cache's keys where the piece is a leaf of the file itself."""


class _Seal:
    """An open seal whose root was found right."""

    def __init__(self, file: Storage, header: SealHeader, tree: SealTree, top: bytes, cache: SealCache) -> None:
        self.uid = next(_uids)
        self.header = header
        self.tree = tree
        self._file = file
        self._top = top
        self._cache = cache

    def node(self, level: int, number: int) -> bytes:
        """The hashes of node `number` of a level, checked.

        Raises: StorageError; SealMismatch when the seal is damaged there.
        """
        if level == self.tree.top:
            return self._top
        key = (self.uid, level, number)
        node = self._cache.find(key)
        if node is None:
            place = self.tree.node_place(level, number)
            node = self._file.read(*place)
            above, at = divmod(number, FANOUT)
            expected = self.node(level + 1, above)[at * HASH_SIZE : (at + 1) * HASH_SIZE]
            if self.tree.node(level, number, node) != expected:
                raise SealMismatch(self._file.name, *place, "the seal is damaged there")
            self._cache.keep(key, node)
        return node

    def close(self) -> None:
        self._file.close()
        self._cache.forget(self.uid)


class SealedFile:
    """A file that is read through its seal; `identity` tells it from the same file without, or with another one."""

    def __init__(self, file: Sealable, seal: _Seal, cache: SealCache) -> None:
        self.name = file.name
        self.size = file.size
        self.modified_ns = file.modified_ns
        self.identity = f"{file.identity}:{seal.header.root.hex()}"
        self.reads = file.reads
        header = seal.header
        self.seal: SealFacts | None = SealFacts(
            "keyed" if header.keyed else "plain", header.leaf_size, header.root.hex()
        )
        self.changed = False
        self.lane = file.lane
        self.version = f"{file.version} {header.root.hex()}" if file.version else ""
        file.watched = False
        self._file = file
        self._seal = seal
        self._cache = cache
        self._leaf = header.leaf_size
        self._long = LONG * header.leaf_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, as they were sealed.

        Raises: SealMismatch when they are not; StorageError.
        """
        if length < self._long:
            return self._read_short(offset, length)
        return bytes(self.view(offset, length))

    def view(self, offset: int, length: int, around: Callable[[], Around] | None = None) -> bytes | memoryview:
        """The same, as a part of the leaves that were read if it is long.

        Raises: SealMismatch, StorageError.
        """
        if length < self._long:
            return self._read_short(offset, length)
        # Leaves kept from the reads before would have to be put together with the rest: to check one again costs less.
        begin, end = self._leaves(offset, length)
        fresh = self._file.read(begin, end - begin)
        self._check(begin, fresh, offset, length)
        return memoryview(fresh)[offset - begin : offset - begin + length]

    def _leaves(self, offset: int, length: int) -> tuple[int, int]:
        """Where the leaves begin and end that the span has a part in.  Raises: StorageError."""
        stop = offset + length
        if stop > self.size:
            raise StorageError(self.name, offset, length, f"the file that was sealed ends at {self.size}")
        leaf = self._leaf
        return offset // leaf * leaf, min((max(offset, stop - 1) // leaf + 1) * leaf, self.size)

    def _read_short(self, offset: int, length: int) -> bytes:
        """A span of a few leaves; those at its ends are kept for, and often known from, the neighbouring reads."""
        begin, end = self._leaves(offset, length)
        stop, leaf, uid = offset + length, self._leaf, self._seal.uid
        first, last = begin // leaf, max(begin, end - 1) // leaf
        start = begin
        head = self._cache.find((uid, LEAVES, first))
        if head is not None:
            if first == last:
                return head[offset - begin : stop - begin]
            start += len(head)
        tail = self._cache.find((uid, LEAVES, last)) if last > first else None
        if tail is not None:
            end = last * leaf
        fresh = b""
        if start < end:
            fresh = self._file.read(start, end - start)
            self._check(start, fresh, offset, length)
        if tail is None and stop < end:
            self._cache.keep((uid, LEAVES, last), fresh[last * leaf - start :])
        if head is None and tail is None:
            return fresh[offset - begin : stop - begin]
        parts = [memoryview(head)[offset - begin :] if head is not None else memoryview(fresh)[offset - begin :]]
        if head is not None:
            parts.append(memoryview(fresh)[: stop - start])
        if tail is not None:
            parts.append(memoryview(tail)[: stop - end])
        return b"".join(parts)

    def _check(self, start: int, data: bytes, offset: int, length: int) -> None:
        """Compare whole leaves from `start` on with the seal."""
        tree, view, leaf = self._seal.tree, memoryview(data), self._leaf
        node, hashes = -1, b""
        for at in range(0, len(data), leaf):
            number = (start + at) // leaf
            if number // FANOUT != node:
                node = number // FANOUT
                hashes = self._seal.node(0, node)
            place = number % FANOUT * HASH_SIZE
            if tree.leaf(number, view[at : at + leaf]) != hashes[place : place + HASH_SIZE]:
                self._file.count_failure()
                size = min(leaf, len(data) - at)
                raise SealMismatch(
                    self.name, offset, length,
                    f"the {size} bytes at {start + at} are not those that were sealed: "
                    f"the file is damaged or was changed (if that was meant, run hexz seal on it)",
                )  # fmt: skip

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """The leaves that have the spans will be read soon."""
        leaf = self._leaf
        self._file.will_need((start // leaf * leaf, min(-(-end // leaf) * leaf, self.size)) for start, end in ranges)

    def forget(self, offset: int, length: int) -> None:
        """Nothing: what does not fit the seal was not given."""

    def reach(self) -> int:
        """None: what is near comes at once."""
        return 0

    def look(self) -> bool:
        """Always: bytes that are not those that were sealed are found when they are read."""
        return True

    def close(self) -> None:
        """Close the file and its seal when the last running read is done; idempotent."""
        self._file.close()
        self._seal.close()


def open_local(path: str, policy: SealPolicy, cache: SealCache, resolved: bool = False) -> Storage:
    """Open the file at `path`, through its seal if it has one; `resolved` as `LocalFile` has it.

    Raises: SnapshotNotFound, SnapshotUnreadable, SystemFailure; SealMissing, SealKeyNeeded, SealDamaged,
    StorageError.
    """
    return through_seal(LocalFile(path, resolved), LocalFile, policy, cache)


def through_seal(file: Sealable, open_file: Callable[[str], Sealable], policy: SealPolicy, cache: SealCache) -> Storage:
    """`file` itself, or what reads it through the seal beside it, which `open_file` opens; closed if neither can be.

    Raises: SealMissing, SealKeyNeeded, SealDamaged; StorageError and what `open_file` raises.
    """
    try:
        seal = _open_seal(file, open_file, policy, cache)
    except BaseException:
        file.close()
        raise
    return SealedFile(file, seal, cache) if seal is not None else file


def _open_seal(
    file: Sealable, open_file: Callable[[str], Sealable], policy: SealPolicy, cache: SealCache
) -> _Seal | None:
    """The seal beside `file`, its root checked; None where there is none and none is demanded."""
    path = file.name + SUFFIX
    try:
        sums = open_file(path)
        sums.watched = False  # its root is known, and the rest is checked against it
    except SnapshotNotFound as error:
        if os.path.lexists(path):
            raise SealDamaged(path, f"is to be the seal of {file.name}, and cannot be read: {error.reason}") from None
        if policy.required:
            raise SealMissing(
                file.name, f"has no seal ({os.path.basename(path)}), and --require-seal was given: run hexz seal on it"
            ) from None
        return None
    try:
        return _checked(file, sums, policy, cache)
    except BaseException:
        sums.close()
        raise


def _checked(file: Storage, sums: Storage, policy: SealPolicy, cache: SealCache) -> _Seal:
    remedy = f"if {file.name} is as it should be, run hexz seal on it again"
    try:
        header = parse_seal_header(sums.read(0, min(HEADER_SIZE, sums.size)))
    except DamagedSeal as error:
        raise SealDamaged(sums.name, f"the seal cannot be used: {error}; {remedy}") from None
    if header.keyed and policy.key is None:
        raise SealKeyNeeded(sums.name, "is a keyed seal: give its key with --seal-key-file")
    if not header.keyed and policy.required and policy.key is not None:
        raise SealKeyNeeded(
            sums.name,
            "is a plain seal, which anybody can make: --require-seal with --seal-key-file wants a keyed one",
        )
    if header.file_size != file.size:
        raise SealDamaged(
            sums.name, f"seals a file of {header.file_size} bytes, and {file.name} has {file.size}: {remedy}"
        )
    tree = SealTree(header.file_size, header.leaf_size, policy.key if header.keyed else None)
    if sums.size != tree.size:
        raise SealDamaged(sums.name, f"the seal has {sums.size} bytes instead of {tree.size}: {remedy}")
    top = sums.read(*tree.node_place(tree.top, 0))
    if not hmac.compare_digest(tree.root(top), header.root):
        reason = "is damaged, or was made with another key" if header.keyed else "is damaged"
        raise SealDamaged(sums.name, f"the seal {reason}: {remedy}")
    return _Seal(sums, header, tree, top, cache)
