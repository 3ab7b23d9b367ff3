"""One open ``.hxz`` file: where its bytes are, who it is, and the decoding of its blocks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Union

from hexz.errors import HexzError
from hexz.format.codec import Codec, crc32
from hexz.format.crypto import BlockCipher
from hexz.format.digest import NO_HASH, find_hasher
from hexz.format.errors import BlockDamage
from hexz.format.header import Header
from hexz.metrics.files import FileCounts
from hexz.snapshot.firstreads import FirstReads
from hexz.snapshot.identity import Identity, digest_of
from hexz.storage import Storage

__all__ = ["StoredFile"]

Plain = Union[bytes, memoryview]

log = logging.getLogger("hexz.snapshot")

_uids = itertools.count(1)


class StoredFile:
    """A file whose blocks can be decoded; it knows nothing of streams, of parents, or of a cache.

    `uid` is unique for the life of the process: keys of the block cache begin with it.
    `thin` says that some of its bytes may come from parents.  `mtime` is in seconds since 1970.
    `checks_hashes` says that `checked` can tell.
    """

    def __init__(
        self,
        storage: Storage,
        header: Header,
        codec: Codec,
        cipher: BlockCipher | None,
        identity: Identity,
        sizes: Mapping[str, int],
        parents: Sequence[FileCounts],
    ) -> None:
        """`sizes` are those of its streams in bytes; `parents` are the counters of its parents' files."""
        self.uid = next(_uids)
        self.path = storage.name
        self.storage = storage
        self.header = header
        self.identity = identity
        self.thin = bool(header.parents)
        self.encrypted = header.encryption is not None
        self.mtime = storage.modified_ns / 1e9
        self.counts = FileCounts(self.uid, self.path, storage.reads, sizes, parents)
        self.first_reads = FirstReads() if storage.lane is not None else None
        """What was read of it, where it is far away."""
        self._codec = codec
        self._cipher = cipher
        # Of an encrypted file the tags say more, and no hash is recorded.
        self._hash = find_hasher() if cipher is None else None
        self.checks_hashes = self._hash is not None
        self._closed = False

    @property
    def fingerprint(self) -> str:
        """32 hex digits of its header and index: the same for every copy, wherever it is."""
        return self.identity.fingerprint

    def digest(self, what: str) -> str:
        """32 hex digits that identify the bytes of `what` (a stream's name, or ``file``)."""
        return digest_of(self.identity.current, what)

    def decode(self, stored: bytes | memoryview, logical_length: int, crc: int, number: int) -> bytes:
        """The plain bytes of block `number` of the file, whose stored bytes are given; checked.

        Raises: BlockDamage (CRC, tag, codec, length).
        """
        if crc32(stored) != crc:
            raise BlockDamage("CRC-32 mismatch")
        if self._cipher is not None:
            stored = self._cipher.decrypt(stored, number)
        return self._codec.decode(stored, logical_length)

    def decode_run(
        self, stored: memoryview, spans: Sequence[tuple[int, int]], logical_length: int, crcs: Sequence[int]
    ) -> list[memoryview] | None:
        """The same for blocks at `spans` (begin, length) of `stored`, in one call, as parts of one piece of memory.

        None where that cannot be, or where any of them is damaged: `decode` tells which.  Raises: MemoryError.
        """
        if self._cipher is not None:
            return None
        for (at, length), crc in zip(spans, crcs):
            if crc32(stored[at : at + length]) != crc:
                return None
        return self._codec.decode_run(stored, spans, logical_length)

    def checked(self, block: Plain, recorded: bytes) -> Plain:
        """The same decoded block, compared with the hash in its entry, which may have none.

        Raises: BlockDamage.
        """
        if recorded and recorded != NO_HASH and self._hash is not None and self._hash(block) != recorded:
            raise BlockDamage("BLAKE3 mismatch")
        return block

    def compressed(self, stored: bytes | memoryview, number: int) -> bytes | memoryview:
        """The stored bytes of block `number` of the file as they were before they were encrypted.

        Raises: BlockDamage (tag).
        """
        return stored if self._cipher is None else self._cipher.decrypt(stored, number)

    def note_failure(self, error: HexzError) -> None:
        """A block could not be decompressed ahead; who asks for it is told, so this is for debugging only."""
        if not self._closed:
            log.debug("ahead: %s", error)

    def note_bug(self, error: Exception) -> None:
        """Something unexpected happened in a background thread."""
        log.error("%s: unexpected trouble while reading ahead", self.path, exc_info=error)

    def close(self) -> None:
        """Close it once running reads are done."""
        self._closed = True
        self.storage.close()
