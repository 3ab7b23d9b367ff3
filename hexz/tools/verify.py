"""``python -m hexz verify``: read every block and say which are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hexz.errors import HexzError, SnapshotError, StorageError
from hexz.snapshot import Snapshot, Stream, new_context, open_snapshot
from hexz.tools.progress import Progress

__all__ = ["Verified", "verify"]

CACHE = 64 << 20


class Verified(NamedTuple):
    """The outcome for one file: one line for each damaged place, and the bytes that were checked."""

    damage: list[str]
    checked: int


def verify(path: str, password: bytes | None, parent_dirs: tuple[str, ...]) -> Verified:
    """Decompress every block of both streams and check it; parents are checked as far as they are used.

    Raises: SnapshotError when the file cannot be opened at all.
    """
    damage: list[str] = []
    checked = 0
    context = new_context(CACHE, password, parent_dirs)
    with open_snapshot(path, context) as snapshot:
        total = sum(stream.size for stream in snapshot.streams.values())
        with Progress(f"verifying {path}", total) as progress:
            for stream in snapshot.streams.values():
                for length, trouble in _blocks(snapshot, stream):
                    checked += length
                    progress.advance(length)
                    if trouble is not None:
                        damage.append(trouble)
        try:
            _ = snapshot.files
        except SnapshotError as error:
            damage.append(str(error))
    context.workers.stop()
    return Verified(damage, checked)


def _blocks(snapshot: Snapshot, stream: Stream) -> Iterator[tuple[int, str | None]]:
    """(bytes, None or what is wrong) for each block, or for a whole page whose index is damaged."""
    starts = [*stream.pages.starts, stream.size]
    for number in range(len(stream.pages.records)):
        try:
            page = stream.pages.at(stream.pages.starts[number]).page if starts[number] < starts[number + 1] else None
        except (SnapshotError, StorageError) as error:
            yield starts[number + 1] - starts[number], str(error)
            continue
        if page is None:
            continue
        for entry in range(page.count):
            if page.logical[entry]:
                yield page.logical[entry], _check(stream, page.block_start(entry), page.logical[entry])
    if not stream.pages.records and stream.size:
        yield stream.size, None


def _check(stream: Stream, position: int, length: int) -> str | None:
    try:
        stream.read(position, length)
    except HexzError as error:
        return str(error)
    return None
