"""``hexz extract``: a stream to a sparse file, or a folder archive to a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import BinaryIO

from hexz.errors import CorruptSnapshot, SystemFailure, UsageError
from hexz.format.metadata import ArchivedFile
from hexz.snapshot import DATA, Snapshot, Stream, new_context, open_snapshot
from hexz.tools.cat import stream_of
from hexz.tools.output import check_output, hidden_name, whole_file
from hexz.tools.progress import Progress

__all__ = ["extract"]

CACHE = 64 << 20
PIECE = 1 << 20
ZEROS = bytes(PIECE)
LARGEST_FILE = (1 << 63) - 1
"""Bytes of a file that the operating system can address."""
SAFE_MODE = 0o777
"""Permission bits taken from an archive: never set-uid, set-gid or sticky."""


def extract(
    path: str,
    out: str,
    name: str | None = None,
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
) -> int:
    """Write a stream of the snapshot to the file `out`, or the files of a folder archive to the new folder `out`.

    Without a stream's `name`, a folder archive gives its files and anything else its disk.  Returns the bytes written.
    Raises: UsageError when the folder exists; NoSuchSnapshot; SystemFailure; what opening and reading raise.
    """
    context = new_context(CACHE, password, parent_dirs)
    with open_snapshot(path, context) as snapshot:
        files = snapshot.files if name is None else None
        if files is not None:
            return _extract_folder(snapshot, files, out)
        stream = stream_of(snapshot, name or "disk")
        check_output(out, [snapshot.path, *(parent.path for parent in snapshot.ancestors())])
        if stream.size > LARGEST_FILE:
            raise SystemFailure(f"{out}: cannot write: no file can have {stream.size} bytes")
        with Progress(f"extracting {stream.name}", stream.size) as progress, whole_file(out) as file:
            _copy(stream, 0, stream.size, file, progress)
        return stream.size


def _copy(stream: Stream, offset: int, length: int, file: BinaryIO, progress: Progress) -> None:
    """`length` bytes of the stream to the start of `file`; zeros, also those that are stored, become holes."""
    for extent in stream.flat_extents(offset, length):
        if extent.kind == DATA:
            end = extent.start + extent.length
            for position in range(extent.start, end, PIECE):
                at = position - offset
                for view in stream.read(position, min(PIECE, end - position)):
                    if not ZEROS.startswith(view):
                        file.seek(at)
                        file.write(view)
                    at += len(view)
                    progress.advance(len(view))
        else:
            progress.advance(extent.length)
    file.truncate(length)


def _extract_folder(snapshot: Snapshot, files: list[ArchivedFile], out: str) -> int:
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists already: a folder archive is extracted to a new folder")
    total = sum(file.size for file in files)
    if total > sum(stream.size for stream in snapshot.streams.values()):
        # Overlapping files could make a small archive fill any disk; no writer shares bytes between files.
        raise CorruptSnapshot(snapshot.path, "the manifest's files overlap")
    aside = hidden_name(os.path.dirname(os.path.abspath(out)))
    try:
        os.mkdir(aside)
        with Progress("extracting files", total) as progress:
            for file in files:
                _extract_file(snapshot, file, aside, progress)
        os.rename(aside, out)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise SystemFailure(f"{out}: cannot write: {error.strerror}") from error
        raise
    return total


def _extract_file(snapshot: Snapshot, file: ArchivedFile, root: str, progress: Progress) -> None:
    # The manifest's paths were checked to be plain and relative, and nothing here makes links to follow.
    try:
        path = os.path.join(root, *file.path.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = open(path, "xb")  # noqa: SIM115 - closed below
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise CorruptSnapshot(snapshot.path, f"the manifest has {file.path!r} as a file and as a folder") from None
    except UnicodeEncodeError:
        raise SystemFailure(f"{file.path!r}: this name is not possible here") from None
    with target:
        if file.size:
            _copy(stream_of(snapshot, file.stream), file.offset, file.size, target, progress)
        os.fchmod(target.fileno(), stat.S_IMODE(file.mode) & SAFE_MODE)
    with contextlib.suppress(OverflowError):  # a time that this system cannot have: the file keeps today's
        os.utime(path, (file.mtime, file.mtime))
