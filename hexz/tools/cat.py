"""``hexz cat``: bytes of a stream to standard output."""

from __future__ import annotations

from typing import BinaryIO

from hexz.errors import NoSuchSnapshot, SystemFailure, UsageError
from hexz.snapshot import Snapshot, Stream, new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY, SealPolicy

__all__ = ["cat", "stream_of"]

CACHE = 64 << 20
PIECE = 1 << 20


def stream_of(snapshot: Snapshot, name: str) -> Stream:
    """The stream called `name`.  Raises: NoSuchSnapshot when the snapshot has none."""
    stream = snapshot.streams.get(name)
    if stream is None:
        raise NoSuchSnapshot(f"{snapshot.path}: has no {name} stream")
    return stream


def cat(
    path: str,
    out: BinaryIO,
    name: str = "disk",
    offset: int = 0,
    length: int | None = None,
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
    seals: SealPolicy = NO_POLICY,
) -> int:
    """Write up to `length` bytes from `offset` on (default all) to `out`; how many that were.

    Raises: UsageError for an offset past the end; NoSuchSnapshot; SystemFailure; BrokenPipeError; what opening and
        reading raise.
    """
    with open_snapshot(path, new_context(CACHE, password, parent_dirs, seals=seals)) as snapshot:
        stream = stream_of(snapshot, name)
        if offset > stream.size:
            raise UsageError(f"offset {offset} is past the end: the {name} stream has {stream.size} bytes")
        end = stream.size if length is None else min(stream.size, offset + length)
        try:
            for position in range(offset, end, PIECE):
                for view in stream.read(position, min(PIECE, end - position)):
                    out.write(view)
            out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SystemFailure(f"cannot write the output: {error.strerror}") from error
        return end - offset
