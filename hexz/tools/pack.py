"""``python -m hexz pack``: a disk image, and a memory image if wanted, into one snapshot.

One thread reads and writes; the others hash and compress.  Memory is bounded: a
few batches are under way at once, whatever the image's size.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import zstandard

from hexz.errors import SnapshotNotFound, SnapshotUnreadable, SystemFailure, UsageError
from hexz.format.codec import Encoder
from hexz.format.header import MAX_DICTIONARY, Compression, HeaderError
from hexz.format.index import MAX_BLOCK
from hexz.format.writer import SnapshotWriter
from hexz.snapshot import Stream, new_context, open_snapshot
from hexz.tools.output import whole_file
from hexz.tools.progress import Progress

__all__ = ["DEFAULT_BLOCK", "Packed", "pack"]

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
    """What was written: sizes in bytes, and the number of blocks of each kind."""

    image_bytes: int
    file_bytes: int
    data: int
    repeated: int
    zero: int
    parent: int


class _Block(NamedTuple):
    """A block on its way: what it is, and its bytes, compressed unless an equal block was stored before."""

    kind: str  # "data", "zero" or "parent"
    length: int
    plain: memoryview | None = None
    stored: bytes | None = None
    digest: bytes | None = None


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
) -> Packed:
    """Write the snapshot `out` of the images `disk` and `memory`.

    With `parent`, blocks that it has at the same place are left out (a thin snapshot).
    `block_size` is in bytes; `workers` is the number of threads that compress.
    Raises: UsageError, SnapshotNotFound, SystemFailure, and what opening `parent` raises.
    """
    codec = _check(compression, level, block_size, dictionary)
    sources = {"disk": disk} if memory is None else {"disk": disk, "memory": memory}
    _check_output(out, [*sources.values(), *([parent] if parent else [])])
    base = open_snapshot(parent, new_context(PARENT_CACHE)) if parent else None
    try:
        stored_parents = (_stored_path(parent, out),) if parent else ()
        trained = _train(disk, block_size) if dictionary else None
        with whole_file(out) as file:
            writer = SnapshotWriter(file, codec, block_size, trained, stored_parents)
            packer = _Packer(writer, codec, level, trained, block_size, workers or os.cpu_count() or 1)
            for name, path in sources.items():
                packer.add(name, path, base.streams.get(name) if base else None)
            try:
                size = writer.finish()
            except HeaderError as error:
                raise UsageError(f"{out}: {error}") from None
        return Packed(packer.image_bytes, size, *packer.counts())
    finally:
        if base is not None:
            base.close()


def _check(compression: str, level: int | None, block_size: int, dictionary: bool) -> Compression:
    try:
        codec = Compression[compression.upper()]
    except KeyError:
        raise UsageError(f"compression '{compression}' is unknown: lz4 or zstd") from None
    levels = LEVELS[codec]
    if level is not None and level not in levels:
        raise UsageError(f"level {level} is not possible with {compression}: {levels[0]} to {levels[-1]}")
    if not SMALLEST_BLOCK <= block_size <= MAX_BLOCK:
        raise UsageError(f"block size {block_size} is not possible: {SMALLEST_BLOCK} bytes to {MAX_BLOCK >> 20}M")
    if dictionary and codec is not Compression.ZSTD:
        raise UsageError("--dictionary needs --compression zstd")
    return codec


def _check_output(out: str, inputs: list[str]) -> None:
    for path in inputs:
        if os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
            raise UsageError(f"{out}: is also an input: choose another name for the snapshot")
    if os.path.isdir(out):
        raise UsageError(f"{out}: is a directory")


def _stored_path(parent: str, out: str) -> str:
    """The parent's path as the snapshot will name it: relative below the snapshot's folder, else absolute."""
    folder = os.path.dirname(os.path.realpath(out))
    real = os.path.realpath(parent)
    inside = os.path.commonpath((folder, real)) == folder
    return os.path.relpath(real, folder) if inside else real


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
        self._codec = codec
        self._level = level
        self._dictionary = dictionary
        self._block_size = block_size
        self._workers = workers
        self._encoders: deque[Encoder] = deque()  # idle ones; a deque hands them out atomically
        self._zeros = bytes(block_size)
        self._counts = {"data": 0, "repeated": 0, "zero": 0, "parent": 0}

    def _make_encoder(self) -> Encoder:
        return Encoder(self._codec, self._level, self._dictionary)

    def counts(self) -> tuple[int, int, int, int]:
        """Blocks stored, repeated, zero and left to the parent."""
        counts = self._counts
        return counts["data"], counts["repeated"], counts["zero"], counts["parent"]

    def add(self, name: str, path: str, base: Stream | None) -> None:
        """Pack one image as the stream `name`."""
        with _open_image(path) as image, ThreadPoolExecutor(self._workers, thread_name_prefix="pack") as pool:
            self._writer.begin(name)
            self.image_bytes += image.size
            batch = max(BATCH // self._block_size, 1) * self._block_size
            pending: deque[Future[list[_Block]]] = deque()
            with Progress(f"packing {name}", image.size) as progress:
                try:
                    for offset in range(0, image.size, batch):
                        length = min(batch, image.size - offset)
                        pending.append(pool.submit(self._encode, image, offset, length, base))
                        if len(pending) >= self._workers * BATCHES_PER_WORKER:
                            self._place(pending.popleft().result(), progress)
                    while pending:
                        self._place(pending.popleft().result(), progress)
                finally:
                    for future in pending:
                        future.cancel()

    def _encode(self, image: _Image, offset: int, length: int, base: Stream | None) -> list[_Block]:
        if image.is_hole(offset, length):
            return [_Block("zero", size) for _, size in self._cut(offset, length)]
        data = memoryview(image.read(offset, length))
        encoder = self._encoders.pop() if self._encoders else self._make_encoder()
        try:
            return [
                self._encode_block(encoder, data[start - offset : start - offset + size], start, base)
                for start, size in self._cut(offset, length)
            ]
        finally:
            self._encoders.append(encoder)

    def _cut(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for start in range(offset, offset + length, self._block_size):
            yield start, min(self._block_size, offset + length - start)

    def _encode_block(self, encoder: Encoder, data: memoryview, start: int, base: Stream | None) -> _Block:
        length = len(data)
        if data == self._zeros[:length]:
            return _Block("zero", length)
        if base is not None and start + length <= base.size and _equal(data, base.read(start, length)):
            return _Block("parent", length)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        stored = None if self._writer.knows(digest) else encoder.encode(data)
        return _Block("data", length, data, stored, digest)

    def _place(self, blocks: list[_Block], progress: Progress) -> None:
        for block in blocks:
            kind = block.kind
            if kind == "zero":
                self._writer.zero(block.length)
            elif kind == "parent":
                self._writer.parent(block.length)
            elif block.digest is not None and self._writer.repeat(block.digest, block.length):
                kind = "repeated"
            elif block.plain is not None:
                # Without `stored` the equal block was forgotten in the meantime.
                stored = block.stored or self._make_encoder().encode(block.plain)
                self._writer.data(stored, block.length, block.digest)
            self._counts[kind] += 1
            progress.advance(block.length)


def _equal(data: memoryview, views: list[memoryview]) -> bool:
    at = 0
    for view in views:
        if data[at : at + len(view)] != view:
            return False
        at += len(view)
    return True


class _Image:
    """A raw image: a regular file or a block device, read by position, its holes known."""

    def __init__(self, path: str, fd: int, size: int) -> None:
        self.path = path
        self.size = size
        self._fd = fd

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes.  Raises: SystemFailure."""
        parts: list[bytes] = []
        while length:
            try:
                part = os.pread(self._fd, length, offset)
            except OSError as error:
                raise SystemFailure(f"{self.path}: reading at {offset}: {error.strerror}") from error
            if not part:
                raise SystemFailure(f"{self.path}: ends at {offset}: it shrank while it was packed")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether the file system has nothing stored for the span, so that it reads as zeros."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) >= offset + length
        except OSError:  # ENXIO: no data from here to the end; else a device that cannot tell, which then is read
            try:
                return os.lseek(self._fd, offset, os.SEEK_HOLE) == offset
            except OSError:
                return False

    def __enter__(self) -> _Image:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _open_image(path: str) -> _Image:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise SnapshotNotFound(path, "no such file") from None
    except PermissionError:
        raise SnapshotUnreadable(path, "permission denied") from None
    except OSError as error:
        raise SystemFailure(f"{path}: cannot open: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise UsageError(f"{path}: is neither a file nor a block device")
    return _Image(path, fd, os.lseek(fd, 0, os.SEEK_END))


def _train(path: str, block_size: int) -> bytes:
    """A dictionary from samples spread over the image.  Raises: UsageError when it does not give one."""
    with _open_image(path) as image:
        step = max(image.size // SAMPLES, block_size)
        samples = [
            image.read(offset, min(SAMPLE_BYTES, image.size - offset))
            for offset in range(0, image.size, step)
            if not image.is_hole(offset, SAMPLE_BYTES)
        ]
    try:
        return bytes(zstandard.train_dictionary(MAX_DICTIONARY, [s for s in samples if s.strip(b"\0")]).as_bytes())
    except zstandard.ZstdError as error:
        raise UsageError(f"{path}: gives no dictionary ({error}): pack it without --dictionary") from None
