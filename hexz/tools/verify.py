"""``python -m hexz verify``: read every block and say which are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hexz.errors import HexzError, SnapshotError
from hexz.format.index import MAX_BLOCK
from hexz.snapshot import Snapshot, Stream, new_context, open_snapshot
from hexz.tools.progress import Progress

__all__ = ["Verified", "verify"]

CACHE = 2 * MAX_BLOCK


class Verified(NamedTuple):
    """The outcome for one file: how many places are damaged, and the bytes that were checked."""

    damaged: int
    checked: int


def verify(
    path: str,
    report: Callable[[str], object],
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
) -> Verified:
    """Decompress every block of both streams and check it; parents are checked as far as they are used.

    `report` gets one line for each damaged place, as it is found.
    Raises: HexzError when the file cannot be opened at all.
    """
    damaged = checked = 0
    context = new_context(CACHE, password, parent_dirs)
    with open_snapshot(path, context) as snapshot:
        total = sum(stream.size for stream in snapshot.streams.values())
        with Progress("verifying", total) as progress:
            for length, trouble in _check(snapshot):
                checked += length
                if trouble is not None:
                    damaged += 1
                    progress.clear()
                    report(trouble)
                progress.advance(length)
    context.workers.stop()
    return Verified(damaged, checked)


def _check(snapshot: Snapshot) -> Iterator[tuple[int, str | None]]:
    """(bytes, None or what is wrong) for each place of the file."""
    for stream in snapshot.streams.values():
        if not stream.pages.records:
            yield from _read(stream, 0, stream.size)
        for number in range(len(stream.pages.records)):
            yield from _check_page(stream, number)
    try:
        _ = snapshot.files
    except SnapshotError as error:
        yield 0, str(error)


def _check_page(stream: Stream, number: int) -> Iterator[tuple[int, str | None]]:
    try:
        page = stream.pages.read(number)
    except HexzError as error:
        starts = stream.pages.starts
        end = starts[number + 1] if number + 1 < len(starts) else stream.size
        yield end - starts[number], str(error)
        return
    for entry in range(page.count):
        if page.stored[entry] or page.in_parent(entry):
            yield from _read(stream, page.block_start(entry), page.logical[entry])
        else:
            yield page.logical[entry], None


def _read(stream: Stream, position: int, length: int) -> Iterator[tuple[int, str | None]]:
    """Read a block, or a long run of a parent in pieces."""
    end = position + length
    while position < end:
        size = min(MAX_BLOCK, end - position)
        try:
            stream.read(position, size)
        except HexzError as error:
            yield size, str(error)
        else:
            yield size, None
        position += size
