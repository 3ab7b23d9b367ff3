"""``python -m hexz seal``: write the seal of a snapshot beside it (hexz.format.seal)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from hexz.errors import NotASnapshot, SystemFailure, UsageError
from hexz.format.errors import HeaderError
from hexz.format.header import HEADER_SIZE, header_candidates
from hexz.format.seal import LEAF_SIZE, SUFFIX, SealBuilder, SealHeader, SealTree
from hexz.storage import LocalFile
from hexz.tools.output import check_output, whole_file
from hexz.tools.progress import Progress

__all__ = ["Sealed", "seal", "sealed_file"]

PIECE = 1 << 20
"""Bytes read at a time: whole leaves."""


class Sealed(NamedTuple):
    """A seal that was written: where, and what it says."""

    path: str
    header: SealHeader


def seal(path: str, key: bytes | None = None) -> Sealed:
    """Write the seal of the snapshot at `path`, in the place of one that is there; keyed if there is a `key`.

    The file is sealed as it is: whether it is well is for ``verify`` to say, before.
    Raises: NotASnapshot, SnapshotNotFound, SnapshotUnreadable, StorageError, SystemFailure, UsageError.
    """
    # Readers find the seal beside the file itself, whatever links lead to it.
    real = os.path.realpath(path)
    out = real + SUFFIX
    file = LocalFile(real)
    try:
        try:
            header_candidates(file.read(0, min(HEADER_SIZE, file.size)), file.size)
        except HeaderError as error:
            raise NotASnapshot(path, str(error)) from None
        check_output(out, [real])
        with whole_file(out, private=True) as target:
            _lend_access(real, target)
            header = _write(target, file.read, file.size, key, os.path.basename(path))
            again = LocalFile(real)
            again.close()
            if again.identity != file.identity:
                raise SystemFailure(f"{path}: was changed or replaced while it was sealed")
    finally:
        file.close()
    return Sealed(out, header)


def _lend_access(path: str, target: BinaryIO) -> None:
    """Let who may read the file at `path`, and nobody else, read its seal."""
    status = os.stat(path)
    with contextlib.suppress(PermissionError):  # only root gives files away; others seal their own
        os.fchown(target.fileno(), status.st_uid, status.st_gid)
    os.fchmod(target.fileno(), status.st_mode & 0o666)


def _write(target: BinaryIO, read: Callable[[int, int], bytes], size: int, key: bytes | None, label: str) -> SealHeader:
    """Write the seal of `size` bytes, which `read` (offset, length) gives, to the empty file `target`.

    Raises: what `read` and `target` raise.
    """
    tree = SealTree(size, LEAF_SIZE, key)
    builder = SealBuilder(tree)
    with Progress(f"sealing {label}", size) as progress:
        for number, leaf in enumerate(_leaves(read, size)):
            for offset, data in builder.add(tree.leaf(number, leaf)):
                target.seek(offset)
                target.write(data)
            progress.advance(len(leaf))
    header, rest = builder.finish()
    for offset, data in rest:
        target.seek(offset)
        target.write(data)
    return header


def _leaves(read: Callable[[int, int], bytes], size: int) -> Iterator[memoryview]:
    for offset in range(0, size, PIECE):
        piece = memoryview(read(offset, min(PIECE, size - offset)))
        for at in range(0, len(piece), LEAF_SIZE):
            yield piece[at : at + LEAF_SIZE]


@contextlib.contextmanager
def sealed_file(
    path: str, wanted: bool, key: bytes | None, private: bool = False, replace: bool = True
) -> Iterator[BinaryIO]:
    """A new file as `whole_file` makes it, and if `wanted` its seal, which gets its name right after it.

    Raises: UsageError when a seal is there and none is wanted: it would make the new file unreadable; SystemFailure.
    """
    out = path + SUFFIX
    if not wanted:
        if os.path.lexists(out):
            raise UsageError(f"{out}: is the seal of the file to be replaced: give --seal, or remove it first")
        with whole_file(path, private, replace) as file:
            yield file
        return
    check_output(out, ())
    with whole_file(out, private) as target, whole_file(path, private, replace) as file:
        yield file
        size = file.seek(0, os.SEEK_END)

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        _write(target, read, size, key, os.path.basename(path))
