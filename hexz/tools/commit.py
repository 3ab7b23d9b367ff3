"""``hexz commit``: what was written to an overlay becomes a thin snapshot over the one below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from hexz.errors import SnapshotNotFound, SystemFailure, UsageError
from hexz.format.codec import Encoder, crc32
from hexz.format.errors import HeaderError
from hexz.format.header import Compression
from hexz.format.writer import SnapshotWriter
from hexz.images.folder import FileLocation
from hexz.images.overlay.files import OverlayFiles
from hexz.images.overlay.journal import Head
from hexz.images.overlay.recovery import JOURNAL_SUFFIX, read_head
from hexz.images.overlay.store import OverlayStore
from hexz.snapshot import Snapshot, Stream, new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY, SealPolicy
from hexz.tools.output import check_output
from hexz.tools.pack import stored_path
from hexz.tools.progress import Progress
from hexz.tools.seal import sealed_file

__all__ = ["Committed", "commit"]

CACHE = 64 << 20


class Committed(NamedTuple):
    """What was written: the file's bytes, its parent and whether that is encrypted, and the blocks of each kind."""

    file_bytes: int
    parent: str
    parent_encrypted: bool
    data: int
    zero: int
    inherited: int


def commit(
    overlay: str,
    out: str,
    parent: str | None = None,
    compression: str = "lz4",
    level: int | None = None,
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
    seal: bool = False,
    seals: SealPolicy = NO_POLICY,
    replace: bool = True,
) -> Committed:
    """Write the thin snapshot `out` of the overlay, which no server may have open; the overlay stays as it is.

    With `seal` its seal is written too, keyed if `seals` has a key.  `parent` is where the snapshot below is now, if
    not where it was.  Blocks that were written and are what the parent has anyway are left to it.
    The file is its owner's alone where the overlay is a memory's, or lies over something encrypted.  Without `replace`
    a file that is there already is an error.
    Raises: OverlayError, UsageError, SystemFailure, what opening the parent and reading raise.
    """
    head = _head_of(overlay)
    below = parent or head.snapshot
    context = new_context(CACHE, password, parent_dirs, seals=seals)
    try:
        with open_snapshot(below, context) as base:
            stream = base.streams.get(head.stream)
            if stream is None or not stream.known_as(head.etag):
                raise UsageError(f"{below}: is not the snapshot that {overlay} was made over: name it with --parent")
            family = (file.path for file in base.family())
            check_output(out, [overlay, overlay + JOURNAL_SUFFIX, *family], replace)
            private = head.stream == "memory" or base.encrypted
            store = OverlayStore(overlay, head, stream.read, read_only=True)
            try:
                with sealed_file(out, seal, seals.key, private, replace) as file:
                    return _write(store, base, stream, file, out, Compression[compression.upper()], level)
            finally:
                store.close()
    finally:
        context.lanes.stop()


def _head_of(overlay: str) -> Head:
    """What the overlay lies over.  Raises: OverlayError, SnapshotNotFound, SystemFailure."""
    try:
        files = OverlayFiles(FileLocation.of(overlay), read_only=True)
        try:
            if files.data < 0:
                raise FileNotFoundError
            journal = files.open_journal()
            try:
                return read_head(overlay, journal)
            finally:
                os.close(journal)
        finally:
            files.close()
    except FileNotFoundError:
        raise SnapshotNotFound(overlay, "no overlay: there has to be a file of this name and its journal") from None
    except OSError as error:
        raise SystemFailure(f"{overlay}: {error.strerror or error}") from None


def _write(
    store: OverlayStore, base: Snapshot, stream: Stream, file: BinaryIO, out: str, codec: Compression, level: int | None
) -> Committed:
    encoder = Encoder(codec, level)
    counts = {"data": 0, "zero": 0, "parent": 0}
    named = stored_path(base.path, out)
    total = sum(other.size for other in base.streams.values())
    with Progress(f"committing {os.path.basename(store.path)}", total) as progress:
        writer = SnapshotWriter(file, codec, store.block_size, parents=(named,))
        for other in base.streams.values():
            writer.begin(other.name)
            for start, length, written in _blocks(store, other.size, changed=other is stream):
                kind = written
                data = b"" if kind == "parent" else b"".join(store.read(start, length))
                if kind != "parent" and data == b"".join(stream.read(start, length)):
                    kind = "parent"
                counts[kind] += 1
                if kind == "data":
                    stored = encoder.encode(data)
                    writer.data(stored, crc32(stored), length)
                elif kind == "zero":
                    writer.zero(length)
                else:
                    writer.parent(length)
                progress.advance(length)
        try:
            size = writer.finish()
        except HeaderError as error:
            raise UsageError(f"{out}: {error}") from None
    return Committed(size, named, base.encrypted, counts["data"], counts["zero"], counts["parent"])


def _blocks(store: OverlayStore, size: int, changed: bool) -> Iterator[tuple[int, int, str]]:
    """(start, length, kind) of every block of a stream: what the overlay `changed`, the rest in the parent."""
    block = store.block_size
    end = 0
    runs = store.written(0, size) if changed else iter(())
    for start, length, zero in runs:
        yield from _cut(end, start, block, "parent")
        end = start + length
        yield from _cut(start, end, block, "zero" if zero else "data")
    yield from _cut(end, size, block, "parent")


def _cut(start: int, end: int, block: int, kind: str) -> Iterator[tuple[int, int, str]]:
    for at in range(start, end, block):
        yield at, min(block, end - at), kind
