"""What an overlay's journal says after a kill or a loss of power."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from hexz.images.errors import JournalError, OverlayError
from hexz.images.overlay.blockmap import ZERO_SLOT, BlockMap, BlockRun
from hexz.images.overlay.journal import HEAD_SIZE, RECORD_SIZE, Head, Record, parse_head, parse_records, record_seed

__all__ = [
    "JOURNAL_SUFFIX",
    "MAX_RUNS",
    "Recovered",
    "crc_of",
    "read_head",
    "recover",
]

log = logging.getLogger("hexz.images")

JOURNAL_SUFFIX = ".map"
READ = 1 << 20
AT_ONCE = 1 << 15
"""Records read at once: however long a journal is, what it takes to read it is bounded."""
MAX_RUNS = 1 << 20
"""Most runs of a map, about 200 MiB of memory: a terabyte written here and there in megabytes."""


class Recovered(NamedTuple):
    """The map, and of the records that no mark follows how many there are and which slots have which CRC-32."""

    written: BlockMap
    unmarked: int
    unflushed: list[tuple[BlockRun, int]]


def read_head(path: str, journal: int) -> Head:
    """Head of the open `journal` of the overlay whose data file is `path`.  Raises: OverlayError, OSError."""
    try:
        return parse_head(os.pread(journal, HEAD_SIZE, 0))
    except JournalError as error:
        raise OverlayError(path + JOURNAL_SUFFIX, str(error)) from None


def recover(path: str, journal: int, head: Head, data: int) -> Recovered:
    """The map that the records lead to; those behind the last mark have to fit the bytes of the data file `data`.

    Raises: OSError.
    """
    sure = -1
    for number, record in enumerate(_records(journal, head)):
        if record.is_mark:
            sure = number
    written = BlockMap()
    unflushed: list[tuple[BlockRun, int]] = []
    unmarked = lost = 0
    for number, record in enumerate(_records(journal, head)):
        if number > sure:
            unmarked += 1
            if record.run.slot != ZERO_SLOT:
                if crc_of(data, record.run, head.block_size) != record.crc:
                    lost += 1
                    continue
                unflushed.append((record.run, record.crc))
        if not record.is_mark:
            written.set(record.run)
    if lost:
        log.warning("%s: %d unflushed writes did not reach the disk and are undone", path, lost)
    return Recovered(written, unmarked, unflushed)


def _records(journal: int, head: Head) -> Iterator[Record]:
    """The records up to the first that is damaged."""
    seed = record_seed(os.pread(journal, HEAD_SIZE, 0))
    before = 0
    while True:
        data = os.pread(journal, AT_ONCE * RECORD_SIZE, HEAD_SIZE + before * RECORD_SIZE)
        records = parse_records(data, head, seed, before)
        yield from records
        before += len(records)
        if len(records) < AT_ONCE:
            return


def crc_of(data: int, run: BlockRun, block_size: int) -> int:
    """The CRC-32 of a run's bytes in the data file; -1 when it ends before them.  Raises: OSError."""
    crc = 0
    position, end = run.slot * block_size, (run.slot + run.length) * block_size
    while position < end:
        part = os.pread(data, min(READ, end - position), position) if data >= 0 else b""
        if not part:
            return -1
        crc = zlib.crc32(part, crc)
        position += len(part)
    return crc
