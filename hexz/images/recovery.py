"""What an overlay's journal says after a kill or a loss of power."""

from __future__ import annotations

import logging
import os
import zlib

from hexz.images.backend import ImageError
from hexz.images.blockmap import ZERO_SLOT, BlockMap, Run
from hexz.images.journal import (
    HEAD_SIZE,
    RECORD_SIZE,
    Head,
    JournalError,
    Record,
    parse_head,
    parse_records,
    record_seed,
)

__all__ = ["JOURNAL_SUFFIX", "MAX_RUNS", "OverlayError", "read_journal", "replay"]

log = logging.getLogger("hexz.images")

JOURNAL_SUFFIX = ".map"
READ = 1 << 20
MAX_RUNS = 1 << 20
"""Most runs of a map, about 200 MiB of memory: a terabyte written here and there in megabytes."""
MAX_JOURNAL = HEAD_SIZE + 8 * MAX_RUNS * RECORD_SIZE


class OverlayError(ImageError):
    """An overlay's files are damaged, in use, or lie over another snapshot."""

    exit_status = 65


def read_journal(path: str) -> tuple[Head, int, list[Record]]:
    """Head, seed and records of the overlay whose data file is `path`.

    Raises: OverlayError, OSError.
    """
    with open(path + JOURNAL_SUFFIX, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_JOURNAL:
            raise OverlayError(path + JOURNAL_SUFFIX, "larger than any overlay's journal")
        data = file.read()
    try:
        head = parse_head(data)
    except JournalError as error:
        raise OverlayError(path + JOURNAL_SUFFIX, str(error)) from None
    seed = record_seed(data)
    return head, seed, parse_records(data[HEAD_SIZE:], head, seed)


def replay(path: str, records: list[Record], data: int, block_size: int) -> BlockMap:
    """The map that `records` lead to; those behind the last mark have to fit the bytes of the data file `data`."""
    written = BlockMap()
    marks = [number for number, record in enumerate(records) if record.is_mark]
    sure = marks[-1] if marks else -1
    lost = 0
    for number, record in enumerate(records):
        if record.is_mark:
            continue
        if number < sure or record.run.slot == ZERO_SLOT or _crc_of(data, record.run, block_size) == record.crc:
            written.set(record.run)
        else:
            lost += 1
    if lost:
        log.warning("%s: %d unflushed writes did not reach the disk and are undone", path, lost)
    return written


def _crc_of(data: int, run: Run, block_size: int) -> int:
    crc = 0
    position, end = run.slot * block_size, (run.slot + run.length) * block_size
    while position < end:
        part = os.pread(data, min(READ, end - position), position)
        if not part:
            return -1
        crc = zlib.crc32(part, crc)
        position += len(part)
    return crc
