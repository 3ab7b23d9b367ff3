"""What cannot be known of an open snapshot, though nothing of it is wrong: whether its dictionary is still the one.

A dictionary has no checksum in the file (format.md section 5).  Damage of it shows only where frames carry a checksum
of what they decompress to, which those of the released writers do not, where a recorded hash of that is checked, or
where a seal covers the file.
"""

from __future__ import annotations

from hexz.errors import HexzError
from hexz.format.codec import MAX_FRAME_HEADER, frame_marks
from hexz.format.digest import NO_HASH
from hexz.format.errors import BlockDamage
from hexz.format.header import Compression
from hexz.snapshot.lineage import Lineage
from hexz.snapshot.snapshot import Snapshot

__all__ = ["doubt"]

MAX_PAGES_LOOKED_AT = 4
"""Index pages of a stream looked through for its first stored block."""
NAMED = 3
"""Ancestors whose dictionaries are named; the others are counted."""


def doubt(snapshot: Snapshot) -> str:
    """One line on the dictionaries, its own and its ancestors', whose damage would not be noticed; empty without any.

    The first stored block of a file speaks for all of them.
    """
    paths = [one.file.path for one in (snapshot.lineage, *snapshot.lineage.ancestors()) if _unchecked_dictionary(one)]
    if not paths:
        return ""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    whose = "its dictionary" if paths == [snapshot.path] else f"the dictionary of {', '.join(paths[:NAMED])}{more}"
    return (
        f"{snapshot.path}: damage of {whose} cannot be noticed, as the blocks carry no checksum of what they "
        "decompress to: hexz seal closes that"
    )


def _unchecked_dictionary(lineage: Lineage) -> bool:
    header = lineage.file.header
    if header.dictionary is None or header.compression is not Compression.ZSTD or lineage.file.storage.seal is not None:
        return False
    try:
        frame = _first_unchecked_frame(lineage)
        marks = frame_marks(frame) if frame is not None else None
    except (HexzError, BlockDamage):
        return False  # whoever reads it will be told
    return marks is not None and marks.dictionary_id != 0 and not marks.has_checksum


def _first_unchecked_frame(lineage: Lineage) -> bytes | memoryview | None:
    """The beginning, at least, of the first stored block as it was compressed; None if a hash of it is checked.

    Raises: HexzError, BlockDamage.
    """
    file = lineage.file
    for pages in lineage.tables.values():
        for number in range(min(len(pages.records), MAX_PAGES_LOOKED_AT)):
            page = pages.read(number)
            for entry in range(page.count):
                if page.stored[entry]:
                    if file.checks_hashes and page.hash(entry) not in (b"", NO_HASH):
                        return None
                    length = page.stored[entry]
                    if not file.encrypted:
                        length = min(length, MAX_FRAME_HEADER)
                    stored = file.storage.read(page.stored_offset(entry), length)
                    return file.compressed(stored, page.first_block + entry)
    return None
