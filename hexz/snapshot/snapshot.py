"""An open snapshot: its facts, its streams, and who uses it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hexz.errors import SnapshotTooLarge, StorageError
from hexz.format.index import MasterIndex
from hexz.format.metadata import ArchivedFile
from hexz.snapshot.context import OpenContext
from hexz.snapshot.lineage import Lineage
from hexz.snapshot.manifests import ListingFacts, Manifest, read_metadata
from hexz.snapshot.pages import PageTable
from hexz.snapshot.stored import StoredFile
from hexz.snapshot.stream import Stream

__all__ = ["Snapshot", "sizes_of_streams"]

log = logging.getLogger("hexz.snapshot")


def sizes_of_streams(index: MasterIndex) -> dict[str, int]:
    """The streams that the file has, by name, with their sizes in bytes."""
    found = ("disk", index.main, index.main_size), ("memory", index.aux, index.aux_size)
    return {name: size for name, records, size in found if records or size}


class Snapshot:
    """An open snapshot; shared by everybody who opens the same file, closed by the last.

    `file` is the ``.hxz`` file, `etag` identifies its bytes; each stream has its own.
    `undeclared` has the bytes that are in the blocks of streams that declare none, as when a pipe was packed.
    `relatives` are the streams of all ancestors by their page tables.
    """

    def __init__(
        self,
        file: StoredFile,
        index: MasterIndex,
        layout: str,
        undeclared: Mapping[str, int],
        parents: Sequence[Snapshot],
        context: OpenContext,
        closed: Callable[[Snapshot], None],
    ) -> None:
        """`parents` are closed with it; `closed` is called when the last user has let go."""
        self.file = file
        self.path = file.path
        self.storage = file.storage
        self.header = file.header
        self.encrypted = file.encrypted
        self.thin = file.thin
        self.mtime = file.mtime
        self.counts = file.counts
        self.file_size = file.storage.size
        self.etag = f"{file.digest('file')}-1"
        self.layout = layout
        self.undeclared = undeclared
        self.parents = tuple(parents)
        self.context = context
        sizes = index.main_size, index.aux_size
        self._manifest = Manifest(file.storage, file.header.metadata, sizes, context.manifests)
        self.lineage: Lineage = Lineage(file, self._tables(index), [one.lineage for one in parents], context.pages)
        self.relatives: dict[PageTable, Stream] = {}
        for parent in parents:
            self.relatives.update(parent.relatives)
            self.relatives.update((stream.pages, stream) for stream in parent.streams.values())
        self.streams: dict[str, Stream] = {
            name: Stream(table, self.lineage, self.relatives, context) for name, table in self.lineage.tables.items()
        }
        self._closed = closed
        self._lock = threading.Lock()
        self._uses = 1  # written under _lock
        for oddity in self._undeclared_told():
            log.info("%s: %s", self.path, oddity)

    def _tables(self, index: MasterIndex) -> dict[str, PageTable]:
        """The page tables of its streams."""
        tables = {}
        for name, size in sizes_of_streams(index).items():
            records = index.main if name == "disk" else index.aux
            zeros_from = self._manifest.zeros_from if name == "disk" else _no_zeros
            held = self.undeclared.get(name, size)
            cache, sizes = self.context.pages, index.entry_sizes
            tables[name] = PageTable(self.file, name, size, records, held, cache, zeros_from, sizes)
        return tables

    @property
    def disk(self) -> Stream | None:
        """The main stream, if there is one."""
        return self.streams.get("disk")

    @property
    def memory(self) -> Stream | None:
        """The memory stream, if there is one."""
        return self.streams.get("memory")

    @property
    def changed(self) -> bool:
        """Whether its file, or one of its ancestors, was seen to be written to since it was opened."""
        return any(one.storage.changed for one in self.family())

    def look(self) -> bool:
        """Look at the files themselves whether any `changed`; True when none did."""
        return all([one.storage.look() for one in self.family()])

    def family(self) -> Iterator[StoredFile]:
        """Its file and those of its ancestors, nearest first, each once."""
        yield self.file
        for one in self.lineage.ancestors():
            yield one.file

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

    def _facts(self) -> ListingFacts:
        try:
            return self._manifest.facts()
        except SnapshotTooLarge as error:
            return ListingFacts(None, [error.reason], None)

    def read_file(self, offset: int, length: int) -> bytes | memoryview:
        """The bytes of the ``.hxz`` file itself; the caller bounds `length`.

        Raises: StorageError.
        """
        return self.storage.view(offset, length)

    def info(self) -> dict[str, Any]:
        """The snapshot's facts, ready for JSON; sizes in bytes, times in seconds since 1970.

        Of a file that was changed before its metadata was first read, what was known before.
        Raises: StorageError.
        """
        header = self.header
        try:
            listed = self._facts()
        except StorageError as error:  # first, since it may be the one that finds the file changed
            if not self.storage.changed:
                raise
            listed = ListingFacts(None, [error.reason], None)
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
            "files": listed.files,
            "metadata_bytes": header.metadata.length if header.metadata else 0,
            "oddities": self._undeclared_told() + listed.oddities,
            **self._far_facts(),
        }

    def _far_facts(self) -> dict[str, Any]:
        """What there is to say of a file on a server: how much of it is here by now."""
        remote = self.storage.reads.remote
        if remote is None:
            return {}
        figures = remote()
        share = round(100 * figures.held / figures.size, 1) if figures.size else 100.0
        return {"remote": {**figures._asdict(), "percent_held": share}}

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
        self._closed(self)
        self.file.close()
        self.lineage.close()
        self._manifest.forget()
        self.forget_cached()
        for parent in self.parents:
            parent.close()

    def forget_cached(self) -> None:
        """Drop the file's decompressed blocks; those that somebody reads just now live as long as that."""
        uid = self.file.uid
        self.context.blocks.forget(lambda key: isinstance(key, tuple) and key[0] == uid)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _no_zeros(end: int) -> bool:
    return False
