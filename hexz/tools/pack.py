"""``hexz pack``: a disk image, and a memory image if wanted, into one snapshot.

Threads read the image and compress; one places the blocks, in order.  Memory is
bounded: a few batches are under way at once, whatever the image's size.

Equal blocks are stored once.  A CRC-32 of the plain bytes finds the candidate, and
the candidate's bytes, read back, decide: that costs a third of a cryptographic hash
where blocks differ, which is nearly everywhere.
"""

from __future__ import annotations

import json
import os
import queue
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import zstandard

from hexz.errors import UsageError
from hexz.format.codec import Codec, Encoder, crc32
from hexz.format.errors import BlockDamage, HeaderError
from hexz.format.header import MAX_DICTIONARY, Compression
from hexz.format.index import MAX_BLOCK
from hexz.format.metadata import IMAGE_KIND
from hexz.format.writer import SnapshotWriter
from hexz.snapshot import Stream, new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY, SealPolicy
from hexz.tools.image import DiskImage, open_image
from hexz.tools.output import check_output
from hexz.tools.progress import Progress
from hexz.tools.seal import sealed_file

__all__ = ["DEFAULT_BLOCK", "Packed", "check_level", "pack", "stored_path"]

DEFAULT_BLOCK = 64 << 10
SMALLEST_BLOCK = 512
BATCH = 1 << 20
"""Bytes that one thread takes at a time, unless one block alone is larger."""
BATCHES_PER_WORKER = 3
PARENT_CACHE = 64 << 20
SAMPLES = 512
SAMPLE_BYTES = 16 << 10
LEVELS = {Compression.LZ4: range(13), Compression.ZSTD: range(1, 23)}


class Packed(NamedTuple):
    """What was written: sizes in bytes, the number of blocks of each kind, and the parent's path as it was stored."""

    image_bytes: int
    file_bytes: int
    data: int
    repeated: int
    zero: int
    parent: int
    parent_path: str | None
    parent_encrypted: bool


class _Block(NamedTuple):
    """A block on its way: compressed, or plain when an equal one may be stored already."""

    kind: str  # "data", "zero" or "parent"
    length: int
    key: int = 0
    stored: bytes = b""
    crc: int = 0
    plain: bytes = b""


def pack(
    disk: str,
    out: str,
    memory: str | None = None,
    compression: str = "lz4",
    level: int | None = None,
    block_size: int = DEFAULT_BLOCK,
    dictionary: bool = False,
    parent: str | None = None,
    workers: int | None = None,
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
    seal: bool = False,
    seals: SealPolicy = NO_POLICY,
    replace: bool = True,
) -> Packed:
    """Write the snapshot `out` of the images `disk` and `memory`.

    With `parent`, blocks that it has at the same place are left out (a thin snapshot);
    `password` and `parent_dirs` are for opening it.  `block_size` is in bytes;
    `workers` is the number of threads that compress.  With `seal` its seal is written too, keyed if `seals` has a key.
    With `memory` the file is its owner's alone.  Without `replace` a file that is there already is an error.
    Raises: UsageError, SnapshotNotFound, SystemFailure, and what opening `parent` raises.
    """
    codec = _check(compression, level, block_size, dictionary)
    sources = {"disk": disk} if memory is None else {"disk": disk, "memory": memory}
    context = new_context(PARENT_CACHE, password, parent_dirs, seals=seals)
    base = open_snapshot(parent, context) if parent else None
    try:
        family = [file.path for file in base.family()] if base else []
        check_output(out, [*sources.values(), *family], replace)
        stored_parent = stored_path(parent, out) if parent else None
        trained = _train(disk, block_size) if dictionary else None
        with sealed_file(out, seal, seals.key, memory is not None, replace) as file:
            writer = SnapshotWriter(file, codec, block_size, trained, (stored_parent,) if stored_parent else ())
            packer = _Packer(writer, codec, level, trained, block_size, workers or os.cpu_count() or 1)
            for name, path in sources.items():
                with open_image(path) as image:
                    if name == "disk":
                        metadata = b"" if base else _manifest(image)
                    packer.add(name, image, base.streams.get(name) if base else None)
            try:
                size = writer.finish(metadata)
            except HeaderError as error:
                raise UsageError(f"{out}: {error}") from None
        return Packed(packer.image_bytes, size, *packer.counts(), stored_parent, base is not None and base.encrypted)
    finally:
        if base is not None:
            base.close()
        context.lanes.stop()


def _manifest(image: DiskImage) -> bytes:
    """What lets the 0.8 releases read the disk (format.md section 16): they open nothing without a list of files.

    Not for thin snapshots: 0.8 would read zeros where the parent has data.
    """
    file = {"path": "disk", "offset": 0, "size": image.size, "mode": 0o100644, "mtime": image.modified}
    return json.dumps({"files": [file], "kind": IMAGE_KIND}, separators=(",", ":")).encode()


def check_level(compression: str, level: int | None) -> Compression:
    """The codec of this name, which has this level.

    Raises: UsageError.
    """
    try:
        codec = Compression[compression.upper()]
    except KeyError:
        raise UsageError(f"compression '{compression}' is unknown: lz4 or zstd") from None
    levels = LEVELS[codec]
    if level is not None and level not in levels:
        raise UsageError(f"level {level} is not possible with {compression}: {levels[0]} to {levels[-1]}")
    return codec


def _check(compression: str, level: int | None, block_size: int, dictionary: bool) -> Compression:
    codec = check_level(compression, level)
    if not SMALLEST_BLOCK <= block_size <= MAX_BLOCK:
        raise UsageError(f"block size {block_size} is not possible: {SMALLEST_BLOCK} bytes to {MAX_BLOCK >> 20}M")
    if dictionary and codec is not Compression.ZSTD:
        raise UsageError("--dictionary needs --compression zstd")
    return codec


def stored_path(parent: str, out: str) -> str:
    """The parent's path as the snapshot will name it: relative below the snapshot's folder, else absolute."""
    folder = os.path.dirname(os.path.realpath(out))
    real = os.path.realpath(parent)
    path = os.path.relpath(real, folder) if os.path.commonpath((folder, real)) == folder else real
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{parent}: a snapshot can name a parent only in UTF-8: rename it") from None
    return path


class _Packer:
    """Streams through the threads into the writer, in order."""

    def __init__(
        self,
        writer: SnapshotWriter,
        codec: Compression,
        level: int | None,
        dictionary: bytes | None,
        block_size: int,
        workers: int,
    ) -> None:
        self.image_bytes = 0
        self._writer = writer
        self._encoder = partial(Encoder, codec, level, dictionary)
        self._decoder = Codec(codec, dictionary)
        self._block_size = block_size
        self._workers = workers
        self._batch = max(BATCH // block_size, 1) * block_size
        self._idle: queue.SimpleQueue[tuple[Encoder, bytearray]] = queue.SimpleQueue()
        for _ in range(workers + 1):
            self._idle.put((self._encoder(), bytearray(self._batch)))
        self._zeros = bytes(block_size)
        self._counts = {"data": 0, "repeated": 0, "zero": 0, "parent": 0}

    def counts(self) -> tuple[int, int, int, int]:
        """Blocks stored, repeated, zero and left to the parent."""
        counts = self._counts
        return counts["data"], counts["repeated"], counts["zero"], counts["parent"]

    def add(self, name: str, image: DiskImage, base: Stream | None) -> None:
        """Pack one image as the stream `name`."""
        self._writer.begin(name)
        self.image_bytes += image.size
        pending: deque[Future[list[_Block]] | int] = deque()  # batches under way, and lengths of holes
        with ThreadPoolExecutor(self._workers, thread_name_prefix="pack") as pool:
            with Progress(f"packing {name}", image.size) as progress:
                try:
                    for span in image.spans(self._block_size, self._batch):
                        if span.hole:
                            pending.append(span.length)
                        else:
                            pending.append(pool.submit(self._encode, image, span.offset, span.length, base))
                        if len(pending) >= self._workers * BATCHES_PER_WORKER:
                            self._place(pending.popleft(), progress)
                    while pending:
                        self._place(pending.popleft(), progress)
                finally:
                    for batch in pending:
                        if isinstance(batch, Future):
                            batch.cancel()

    def _encode(self, image: DiskImage, offset: int, length: int, base: Stream | None) -> list[_Block]:
        idle = self._idle.get()  # no time-out: there is one for each thread
        try:
            encoder, data = idle
            view = memoryview(data)[:length]
            image.read_into(offset, view)
            return [
                self._encode_block(encoder, data, start, view[start : start + self._block_size], offset, base)
                for start in range(0, length, self._block_size)
            ]
        finally:
            self._idle.put(idle)

    def _encode_block(
        self, encoder: Encoder, data: bytearray, start: int, block: memoryview, offset: int, base: Stream | None
    ) -> _Block:
        # bytearray.startswith compares in C at the speed of memory; comparing memoryviews is a hundred times slower.
        length = len(block)
        if data.startswith(self._zeros if length == self._block_size else bytes(length), start):
            return _Block("zero", length)
        if base is not None and offset + start + length <= base.size:
            at = start
            for view in base.read(offset + start, length):
                if not data.startswith(view, at):
                    break
                at += len(view)
            else:
                return _Block("parent", length)
        key = crc32(block)
        if self._writer.find(key) is not None:
            return _Block("data", length, key, plain=bytes(block))
        stored = encoder.encode(block)
        return _Block("data", length, key, stored, crc32(stored))

    def _place(self, batch: Future[list[_Block]] | int, progress: Progress) -> None:
        if isinstance(batch, int):
            self._place_hole(batch, progress)
            return
        for block in batch.result():
            kind = block.kind
            if kind == "zero":
                self._writer.zero(block.length)
            elif kind == "parent":
                self._writer.parent(block.length)
            elif block.plain:
                kind = self._place_repeated(block)
            else:
                # An equal block may have come just before: one that was compressed at the same time.
                place = self._writer.find(block.key)
                if (
                    place is not None
                    and place.crc == crc32(block.stored)
                    and self._writer.stored(place) == block.stored
                ):
                    self._writer.repeat(place, block.length)
                    kind = "repeated"
                else:
                    self._writer.data(block.stored, block.crc, block.length, block.key)
            self._counts[kind] += 1
            progress.advance(block.length)

    def _place_repeated(self, block: _Block) -> str:
        place = self._writer.find(block.key)
        if place is not None:
            try:
                same = self._decoder.decode(self._writer.stored(place), block.length) == block.plain
            except BlockDamage:  # it has another length
                same = False
            if same:
                self._writer.repeat(place, block.length)
                return "repeated"
        stored = self._encoder().encode(block.plain)
        self._writer.data(stored, crc32(stored), block.length, block.key)
        return "data"

    def _place_hole(self, length: int, progress: Progress) -> None:
        for start in range(0, length, self._block_size):
            size = min(self._block_size, length - start)
            self._writer.zero(size)
            self._counts["zero"] += 1
            progress.advance(size)


def _train(path: str, block_size: int) -> bytes:
    """A dictionary from samples spread over the image.  Raises: UsageError when it does not give one."""
    samples: list[bytes | bytearray | memoryview] = []
    with open_image(path) as image:
        step = max(image.size // SAMPLES, block_size)
        for span in image.spans(step, step):
            if not span.hole:
                sample = image.read(span.offset, min(SAMPLE_BYTES, span.length))
                if sample.strip(b"\0"):
                    samples.append(sample)
    try:
        return bytes(zstandard.train_dictionary(MAX_DICTIONARY, samples).as_bytes())
    except zstandard.ZstdError as error:
        raise UsageError(f"{path}: gives no dictionary ({error}): pack it without --dictionary") from None
