"""A seal: what the stored bytes of one file were, in a small file beside it (``FILE.sum``).

It is a tree of BLAKE2b hashes, so that any span of the file is checked with a few
kilobytes of the seal, however long the file is.  The file is cut into leaves of one
size (the last may be shorter); a node is up to `FANOUT` hashes of one level behind one another,
and each hash of a level above is that of a node of the level below.  The highest level is
the first that is a single node; the root hash covers it, and the numbers in the header.

All integers are little-endian, and offsets and sizes are in bytes::

     0   8  magic "HEXZSUM" and a zero byte
     8   4  version, 1
    12   4  flags: 1 the seal is keyed; the others are zero
    16   4  size of a leaf: a power of two, 4096 to 1 MiB
    20   4  size of a hash, 32
    24   8  size of the sealed file
    32  32  the root hash
    64      hashes of level 0, one a leaf, in the order of the file
            hashes of level 1, one for each node of level 0
            ... up to the highest level; nothing follows it

Every hash is BLAKE2b with a digest of 32 bytes, the key if there is one, and these parameters
(RFC 7693; the tree parameters are in section 2.10 of the BLAKE2 specification), which make
a hash worthless in any other place::

    personal     "hexz seal 1"
    fanout       128
    depth        255
    leaf_size    the size of a leaf
    inner_size   32
    node_depth   0 for a leaf's hash; the level for one of a level above; for the root the number of levels
    node_offset  the number of the hash within its level; 0 for the root
    last_node    set for the root alone

The root's message is the first 32 bytes of the header, then the highest level.

Hashes have 32 bytes rather than 16: the root of a plain seal, noted elsewhere, then names the bytes as
well as any digest does, also against whoever made both files (a collision costs 2^128 and not
2^64), and the seal is still a five-hundredth of its file.

A plain seal shows accidents; anybody who edits the file can make another.  A keyed one shows that somebody
who has the key sealed these bytes.  Neither says under which name, or that there is no newer one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from hexz.format.errors import DamagedSeal

__all__ = [
    "FANOUT",
    "HASH_SIZE",
    "HEADER_SIZE",
    "LARGEST_LEAF",
    "LEAF_SIZE",
    "SMALLEST_LEAF",
    "SUFFIX",
    "SealBuilder",
    "SealHeader",
    "SealTree",
    "parse_seal_header",
    "seal_key",
]

SUFFIX = ".sum"
"""What the name of a seal has behind the name of its file."""
LEAF_SIZE = 16 << 10
"""Bytes of a leaf in new seals.

Measured with 4 KiB to 128 KiB: read in sequence all cost the same, but single blocks of 64 KiB at random are read
half as fast again as with leaves of 64 KiB.
"""
SMALLEST_LEAF = 4096
LARGEST_LEAF = 1 << 20
"""Sizes of leaves accepted: a read has to take whole leaves into memory."""
HASH_SIZE = 32
FANOUT = 128
"""Hashes in a node, which so has 4096 bytes."""
HEADER_SIZE = 64
MAGIC = b"HEXZSUM\0"
VERSION = 1
KEYED = 1
PERSON = b"hexz seal 1"
KEY_PERSON = b"hexz seal key"
UNLIMITED_DEPTH = 255

_FIELDS = struct.Struct("<8sIIIIQ")


class SealHeader(NamedTuple):
    """What a seal says of itself; sizes in bytes."""

    leaf_size: int
    file_size: int
    keyed: bool
    root: bytes

    def fields(self) -> bytes:
        """The header up to the root hash."""
        flags = KEYED if self.keyed else 0
        return _FIELDS.pack(MAGIC, VERSION, flags, self.leaf_size, HASH_SIZE, self.file_size)

    def pack(self) -> bytes:
        """The header."""
        return self.fields() + self.root


def parse_seal_header(data: bytes) -> SealHeader:
    """The header that begins at `data[0]`.

    Raises: DamagedSeal when it is cut off, of another kind, or has an impossible number.
    """
    if len(data) < HEADER_SIZE:
        raise DamagedSeal(f"it has only {len(data)} bytes")
    magic, version, flags, leaf_size, hash_size, file_size = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise DamagedSeal("it is no seal")
    if version != VERSION:
        raise DamagedSeal(f"it is of version {version}, and {VERSION} is known here")
    if flags & ~KEYED or hash_size != HASH_SIZE:
        raise DamagedSeal("its header is damaged")
    if not SMALLEST_LEAF <= leaf_size <= LARGEST_LEAF or leaf_size & (leaf_size - 1):
        raise DamagedSeal(f"its leaves of {leaf_size} bytes are not possible")
    return SealHeader(leaf_size, file_size, bool(flags & KEYED), data[_FIELDS.size : HEADER_SIZE])


def seal_key(secret: bytes) -> bytes:
    """The key of keyed seals that belongs to a secret of any length."""
    return hashlib.blake2b(secret, digest_size=64, person=KEY_PERSON).digest()


class SealTree:
    """The shape of a seal: how many hashes each level has, where they lie, and how each is made.

    `counts` and `places` have the number of hashes and the offset in the seal of each level, `size` is the
    seal's own size in bytes.
    """

    def __init__(self, file_size: int, leaf_size: int, key: bytes | None) -> None:
        """`key` is None for a plain seal."""
        self.file_size = file_size
        self.leaf_size = leaf_size
        self.keyed = key is not None
        self._key = key or b""
        counts = [-(-file_size // leaf_size)]
        while counts[-1] > FANOUT:
            counts.append(-(-counts[-1] // FANOUT))
        self.counts = tuple(counts)
        places = [HEADER_SIZE]
        for count in counts:
            places.append(places[-1] + count * HASH_SIZE)
        self.places = tuple(places[:-1])
        self.size = places[-1]
        self.top = len(counts) - 1

    def node_place(self, level: int, number: int) -> tuple[int, int]:
        """Offset and length in the seal of node `number` of a level."""
        first = number * FANOUT
        return self.places[level] + first * HASH_SIZE, min(FANOUT, self.counts[level] - first) * HASH_SIZE

    def leaf(self, number: int, data: bytes | memoryview) -> bytes:
        """The hash of leaf `number`, which is `data`."""
        return self._hash(data, 0, number)

    def node(self, level: int, number: int, data: bytes) -> bytes:
        """The hash, in the level above, of node `number` of a level, which is `data`."""
        return self._hash(data, level + 1, number)

    def root(self, top: bytes) -> bytes:
        """The root hash over the highest level, which is `top`."""
        head = SealHeader(self.leaf_size, self.file_size, self.keyed, b"")
        return self._hash(head.fields() + top, len(self.counts), 0, last=True)

    def _hash(self, data: bytes | memoryview, depth: int, offset: int, last: bool = False) -> bytes:
        return hashlib.blake2b(
            data, digest_size=HASH_SIZE, key=self._key, person=PERSON, fanout=FANOUT, depth=UNLIMITED_DEPTH,
            leaf_size=self.leaf_size, inner_size=HASH_SIZE, node_depth=depth, node_offset=offset, last_node=last,
        ).digest()  # fmt: skip


class SealBuilder:
    """Makes a seal from the hashes of the leaves, in order; holds one node of each level at most."""

    def __init__(self, tree: SealTree) -> None:
        self._tree = tree
        self._nodes = [bytearray() for _ in tree.counts]
        self._done = [0] * len(tree.counts)  # nodes of each level that are complete

    def add(self, digest: bytes) -> Iterator[tuple[int, bytes]]:
        """The next leaf's hash; (offset, bytes) of whatever of the seal is known now."""
        return self._add(0, digest)

    def _add(self, level: int, digest: bytes) -> Iterator[tuple[int, bytes]]:
        node = self._nodes[level]
        node += digest
        if level == self._tree.top or len(node) < self._tree.node_place(level, self._done[level])[1]:
            return
        number, data = self._done[level], bytes(node)
        node.clear()
        self._done[level] += 1
        yield self._tree.node_place(level, number)[0], data
        yield from self._add(level + 1, self._tree.node(level, number, data))

    def finish(self) -> tuple[SealHeader, list[tuple[int, bytes]]]:
        """The header, once every leaf is there, and (offset, bytes) of what is left of the seal."""
        tree, top = self._tree, bytes(self._nodes[-1])
        assert len(top) == tree.counts[-1] * HASH_SIZE
        header = SealHeader(tree.leaf_size, tree.file_size, tree.keyed, tree.root(top))
        return header, [(tree.places[-1], top), (0, header.pack())]
