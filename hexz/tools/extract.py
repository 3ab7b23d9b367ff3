"""``python -m hexz extract``: a stream to a sparse file, or a folder archive to a folder."""

from __future__ import annotations

import os
import shutil
import stat
from typing import BinaryIO

from hexz.errors import SystemFailure, UsageError
from hexz.format.metadata import ArchivedFile
from hexz.snapshot import DATA, Snapshot, Stream, new_context, open_snapshot
from hexz.tools.cat import stream_of
from hexz.tools.output import whole_file
from hexz.tools.progress import Progress

__all__ = ["extract"]

CACHE = 64 << 20
PIECE = 1 << 20
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
    with open_snapshot(path, new_context(CACHE, password, parent_dirs)) as snapshot:
        files = snapshot.files if name is None else None
        if files is not None:
            return _extract_folder(snapshot, files, out)
        stream = stream_of(snapshot, name or "disk")
        with Progress(f"extracting {stream.name}", stream.size) as progress, whole_file(out) as file:
            _copy(stream, 0, stream.size, file, progress)
        return stream.size


def _copy(stream: Stream, offset: int, length: int, file: BinaryIO, progress: Progress) -> None:
    """`length` bytes of the stream to the start of `file`; zeros become holes."""
    for extent in stream.flat_extents(offset, length):
        if extent.kind == DATA:
            file.seek(extent.start - offset)
            for position in range(extent.start, extent.start + extent.length, PIECE):
                for view in stream.read(position, min(PIECE, extent.start + extent.length - position)):
                    file.write(view)
                    progress.advance(len(view))
        else:
            progress.advance(extent.length)
    file.truncate(length)


def _extract_folder(snapshot: Snapshot, files: list[ArchivedFile], out: str) -> int:
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists already: a folder archive is extracted to a new folder")
    folder, base = os.path.split(os.path.abspath(out))
    aside = os.path.join(folder, f".{base}.{os.getpid()}.part")
    total = sum(file.size for file in files)
    try:
        os.mkdir(aside)
        with Progress("extracting files", total) as progress:
            for file in files:
                _extract_file(snapshot, file, aside, progress)
        os.rename(aside, out)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise SystemFailure(f"{error.filename or out}: cannot write: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return total


def _extract_file(snapshot: Snapshot, file: ArchivedFile, root: str, progress: Progress) -> None:
    # The manifest's paths were checked to be plain and relative, and nothing here makes links to follow.
    path = os.path.join(root, *file.path.split("/"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as target:
        if file.size:
            _copy(stream_of(snapshot, file.stream), file.offset, file.size, target, progress)
        os.fchmod(target.fileno(), stat.S_IMODE(file.mode) & SAFE_MODE)
    os.utime(path, (file.mtime, file.mtime))
