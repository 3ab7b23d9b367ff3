"""``hexz extract``: a stream to a sparse file, or the files of an archive to a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import BinaryIO, NamedTuple

from hexz.errors import CorruptSnapshot, SystemFailure, UsageError
from hexz.format.metadata import ArchivedFile
from hexz.snapshot import DATA, Snapshot, Stream, new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY, SealPolicy
from hexz.tools.cat import stream_of
from hexz.tools.output import check_output, hidden_name, whole_file
from hexz.tools.progress import Progress

__all__ = ["Extracted", "extract"]

CACHE = 64 << 20
PIECE = 1 << 20
ZEROS = bytes(PIECE)
LARGEST_FILE = (1 << 63) - 1
"""Bytes of a file that the operating system can address."""
SAFE_MODE = 0o777
"""Permission bits taken from an archive: never set-uid, set-gid or sticky."""
NO_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""What file systems say of names that they cannot hold."""


class Extracted(NamedTuple):
    """The bytes written, and a line for each thing that was left out.

    That is a file of an archive that cannot have its name here, or the bytes of a stream that declares none.
    """

    written: int
    left_out: list[str]


def extract(
    path: str,
    out: str,
    name: str | None = None,
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
    seals: SealPolicy = NO_POLICY,
    undeclared: bool = False,
) -> Extracted:
    """Write a stream of the snapshot to the file `out`, or the files that it lists to the new folder `out`.

    Without a stream's `name`, a folder archive or tar conversion gives its files and anything else its disk.
    With `undeclared` a stream that declares no bytes gives what its blocks hold.
    A memory, and what was encrypted, is its owner's alone.
    Raises: UsageError when the folder exists; NoSuchSnapshot; SystemFailure; what opening and reading raise.
    """
    context = new_context(CACHE, password, parent_dirs, seals=seals)._replace(take_undeclared=undeclared)
    with open_snapshot(path, context) as snapshot:
        files = snapshot.files if name is None else None
        if files is not None:
            return _extract_folder(snapshot, files, out)
        stream = stream_of(snapshot, name or "disk")
        check_output(out, [file.path for file in snapshot.family()])
        if stream.size > LARGEST_FILE:
            raise SystemFailure(f"{out}: cannot write: no file can have {stream.size} bytes")
        private = stream.name == "memory" or _encrypted(snapshot)
        with Progress(f"extracting {stream.name}", stream.size) as progress, whole_file(out, private) as file:
            _copy(stream, 0, stream.size, file, progress)
        lost = snapshot.undeclared.get(stream.name, 0) - stream.size
        told = f"{lost} bytes of the {stream.name} stream, which declares none: --undeclared saves them"
        return Extracted(stream.size, [told] if lost > 0 else [])


def _encrypted(snapshot: Snapshot) -> bool:
    return any(file.encrypted for file in snapshot.family())


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


def _extract_folder(snapshot: Snapshot, files: list[ArchivedFile], out: str) -> Extracted:
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists already: files are extracted to a new folder")
    total = sum(file.size for file in files)
    if total > sum(stream.size for stream in snapshot.streams.values()):
        # Overlapping files could make a small archive fill any disk; no writer shares bytes between files.
        raise CorruptSnapshot(snapshot.path, "the files that it lists overlap")
    left_out: list[str] = []
    aside = hidden_name(os.path.dirname(os.path.abspath(out)))
    try:
        os.mkdir(aside, 0o700 if _encrypted(snapshot) else 0o777)
        with Progress("extracting files", total) as progress:
            for file in files:
                trouble = _extract_file(snapshot, file, aside, progress)
                if trouble is not None:
                    left_out.append(f"{file.path!r} at {file.offset} of the {file.stream} stream: {trouble}")
                    total -= file.size
        os.rename(aside, out)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise SystemFailure(f"{out}: cannot write: {error.strerror}") from error
        raise
    return Extracted(total, left_out)


def _extract_file(snapshot: Snapshot, file: ArchivedFile, root: str, progress: Progress) -> str | None:
    """Write one file; why that is not possible under its name, if it is not."""
    # Listed paths are relative and have no "..", and nothing here makes links to follow.
    try:
        path = os.path.join(root, *file.path.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = open(path, "xb")  # noqa: SIM115 - closed below
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return "it is listed as a file and as a folder"
    except ValueError:
        return "this name is not possible here"
    except OSError as error:
        if error.errno in NO_NAME:
            return "this name is not possible here"
        raise
    with target:
        if file.size:
            _copy(stream_of(snapshot, file.stream), file.offset, file.size, target, progress)
        os.fchmod(target.fileno(), stat.S_IMODE(file.mode) & SAFE_MODE)
    if file.mtime is not None:
        with contextlib.suppress(OverflowError):  # a time that this system cannot have: the file keeps today's
            os.utime(path, (file.mtime, file.mtime))
    return None
