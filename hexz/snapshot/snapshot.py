"""One open ``.hxz`` file: its facts, its streams, and the decoding of its blocks."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from hexz.cache import Once
from hexz.errors import HexzError, SnapshotTooLarge
from hexz.format.codec import BlockDamage, Codec, crc32
from hexz.format.crypto import BlockCipher
from hexz.format.header import Header
from hexz.format.index import MasterIndex
from hexz.format.metadata import ArchivedFile
from hexz.metrics.files import FileCounts
from hexz.snapshot.context import OpenContext
from hexz.snapshot.identity import Identity, digest_of
from hexz.snapshot.manifests import Facts, Manifest, read_metadata
from hexz.snapshot.parents import HashIndex, Lineage
from hexz.snapshot.stream import Stream
from hexz.storage import Storage

__all__ = ["Parts", "Snapshot"]

log = logging.getLogger("hexz.snapshot")

_uids = itertools.count(1)


class Parts(NamedTuple):
    """What opening a file found out: everything that a `Snapshot` is made of."""

    storage: Storage
    header: Header
    master: MasterIndex
    layout: str
    identity: Identity
    codec: Codec
    cipher: BlockCipher | None
    parents: tuple[Snapshot, ...]
    undeclared: dict[str, int]


class Snapshot:
    """An open snapshot; shared by everybody who opens the same file, closed by the last.

    `uid` is unique for the life of the process: keys of the block cache begin with it.
    `etag` identifies the bytes of the ``.hxz`` file itself; each stream has its own.
    `generations` is the length of the longest chain of parents, itself included.
    `undeclared` has the bytes that are in the blocks of streams that declare none, as when a pipe was packed.
    """

    def __init__(self, parts: Parts, context: OpenContext) -> None:
        self.uid = next(_uids)
        self.path = parts.storage.name
        self.storage = parts.storage
        self.header = parts.header
        self.index = parts.master
        self.layout = parts.layout
        self.context = context
        self.key = (parts.storage.name, parts.storage.identity)
        self.parents = parts.parents
        self.generations: int = 1 + max((parent.generations for parent in parts.parents), default=0)
        self.encrypted = parts.header.encryption is not None
        self.file_size = parts.storage.size
        self.mtime = parts.storage.modified_ns / 1e9
        self.identity = parts.identity
        self._codec = parts.codec
        self._cipher = parts.cipher
        sizes_of_streams = parts.master.main_size, parts.master.aux_size
        self._manifest = Manifest(parts.storage, parts.header.metadata, sizes_of_streams, context.manifests)
        self.etag = f"{self.digest('file')}-1"
        self.undeclared = parts.undeclared
        self.streams: dict[str, Stream] = {}
        for name, pages, size in (
            ("disk", parts.master.main, parts.master.main_size),
            ("memory", parts.master.aux, parts.master.aux_size),
        ):
            if pages or size:
                self.streams[name] = Stream(self, name, parts.master)
        sizes = {stream.name: stream.size for stream in self.streams.values()}
        families = [parent.counts for parent in parts.parents]
        self.counts: FileCounts = FileCounts(self.uid, self.path, parts.storage.reads, sizes, families)
        self.lineage = Lineage(self)
        self._lock = threading.Lock()
        self._uses = 1  # written under _lock
        self._hashes: Once[HashIndex] = Once()
        self._lasting = 0  # bytes held until it is closed, beside the lists of pages
        for oddity in self._undeclared_told():
            log.info("%s: %s", self.path, oddity)

    @property
    def disk(self) -> Stream | None:
        """The main stream, if there is one."""
        return self.streams.get("disk")

    @property
    def memory(self) -> Stream | None:
        """The memory stream, if there is one."""
        return self.streams.get("memory")

    @property
    def thin(self) -> bool:
        """Whether some bytes may come from parents."""
        return bool(self.parents)

    @property
    def changed(self) -> bool:
        """Whether its file, or one of its ancestors, was seen to be written to since it was opened."""
        return any(one.storage.changed for one in (self, *self.ancestors()))

    def look(self) -> bool:
        """Look at the files themselves whether any `changed`; True when none did."""
        return all([one.storage.look() for one in (self, *self.ancestors())])

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

    def compressed(self, stored: bytes | memoryview, number: int) -> bytes | memoryview:
        """The stored bytes of block `number` of the file as they were before they were encrypted.

        Raises: BlockDamage (tag).
        """
        return stored if self._cipher is None else self._cipher.decrypt(stored, number)

    def ancestors(self) -> Iterator[Snapshot]:
        """Every parent and their parents, nearest first, each once."""
        seen: set[int] = set()
        level = list(self.parents)
        while level:
            following: list[Snapshot] = []
            for snapshot in level:
                if snapshot.uid not in seen:
                    seen.add(snapshot.uid)
                    yield snapshot
                    following += snapshot.parents
            level = following

    def hash_index(self) -> HashIndex:
        """The file's data blocks by hash; the first call reads its whole index.

        Raises: CorruptSnapshot, StorageError, SnapshotTooLarge.
        """
        return self._hashes.get(self._make_hash_index)

    def _make_hash_index(self) -> HashIndex:
        index = HashIndex(self)
        self._lasting += index.cost
        self.context.pages.hold(index.cost)
        return index

    def note_failure(self, error: HexzError) -> None:
        """A block could not be decompressed ahead; who asks for it is told, so this is for debugging only."""
        if self._uses:
            log.debug("ahead: %s", error)

    def note_bug(self, error: Exception) -> None:
        """Something unexpected happened in a background thread."""
        log.error("%s: unexpected trouble while reading ahead", self.path, exc_info=error)

    @property
    def files(self) -> list[ArchivedFile] | None:
        """The files of a folder archive or tar conversion that can be read, None for any other snapshot.

        Raises: SnapshotTooLarge when the metadata is longer than is read; StorageError.
        """
        return self._manifest.files()

    @property
    def lists_files(self) -> bool:
        """Whether it has `files`, also while their list is not in memory; False when the list is too long to be read.

        Raises: StorageError.
        """
        return self._facts().files is not None

    @property
    def oddities(self) -> list[str]:
        """What is strange about the file, though nothing of it is damaged: one line each.

        Raises: StorageError.
        """
        return self._undeclared_told() + self._facts().oddities

    def _undeclared_told(self) -> list[str]:
        return [
            f"the {name} stream declares no bytes and is served so, but its blocks hold {size}, as when a pipe was "
            "packed: hexz extract --undeclared saves them"
            for name, size in self.undeclared.items()
        ]

    @property
    def metadata(self) -> bytes:
        """The free bytes that the file carries, read now.

        Raises: SnapshotTooLarge, StorageError.
        """
        return read_metadata(self.storage, self.header.metadata)

    def zeros_from(self, end: int) -> bool:
        """Whether the file itself says that the blocks of its disk end at `end`, before the disk does.

        format.md section 7: a lost page looks the same, so nothing else is believed.
        Raises: StorageError.
        """
        return self._facts().blocks_end == end

    def _facts(self) -> Facts:
        try:
            return self._manifest.facts()
        except SnapshotTooLarge as error:
            return Facts(None, [error.reason], None)

    def read_file(self, offset: int, length: int) -> bytes | memoryview:
        """The bytes of the ``.hxz`` file itself; the caller bounds `length`.

        Raises: StorageError.
        """
        return self.storage.view(offset, length)

    def info(self) -> dict[str, Any]:
        """The snapshot's facts, ready for JSON; sizes in bytes, times in seconds since 1970."""
        header = self.header
        return {
            "path": self.path,
            "file_size": self.file_size,
            "modified": self.mtime,
            "etag": self.etag,
            "layout": self.layout,
            "compression": header.compression.name.lower(),
            "block_size": header.block_size,
            "variable_blocks": header.variable_blocks,
            "dictionary": header.dictionary.length if header.dictionary else None,
            "encrypted": self.encrypted,
            "signed": header.signature is not None,
            "changed": self.changed,
            "sealed": self.storage.seal.kind if self.storage.seal is not None else "none",
            "streams": {
                name: {"size": stream.size, "pages": len(stream.pages.records), "etag": stream.etag}
                for name, stream in self.streams.items()
            },
            "parents": [
                {"stored": stored, "path": parent.path} for stored, parent in zip(header.parents, self.parents)
            ],
            "files": self._facts().files,
            "metadata_bytes": header.metadata.length if header.metadata else 0,
            "oddities": self.oddities,
        }

    def retain(self) -> bool:
        """One more user; False when the snapshot is closed already."""
        with self._lock:
            if not self._uses:
                return False
            self._uses += 1
            return True

    def close(self) -> None:
        """One user less; the last one closes the file and frees the memory, and lets go of the parents."""
        with self._lock:
            self._uses -= 1
            last = self._uses == 0
        if not last:
            return
        if self.context.opened.get(self.key) is self:
            del self.context.opened[self.key]
        self.storage.close()
        for stream in self.streams.values():
            stream.pages.forget()
        self.context.pages.hold(-self._lasting)
        self._manifest.forget()
        self.forget_cached()
        for parent in self.parents:
            parent.close()

    def forget_cached(self) -> None:
        """Drop the file's decompressed blocks; those that somebody reads just now live as long as that."""
        uid = self.uid
        self.context.blocks.forget(lambda key: isinstance(key, tuple) and key[0] == uid)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
