"""What entity tags are made of: enough of a file to tell it from every other one, read in little time.

Everything but blocks goes in: the header, the dictionary, what lies from the master
index to the file's end, and the index pages, which have a CRC-32 of each block and mostly
a hash of its content as well.  Where that is much, a part of it goes in: a
snapshot of any size opens at once.  The time of the file's last change goes in
too, for what then is left out.  Where a server tells versions apart, its word for this one stands for all of that.

What does not go in is what differs between copies of one file, or changes without its
bytes: its place, its inode, its links, owner and mode.  So a copy that keeps the time
(``cp -p``, ``rsync -t``) has the same tags on another host, and every file keeps its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hexz.errors import StorageError
from hexz.format.header import HEADER_SIZE, Header, Section
from hexz.format.index import MasterIndex
from hexz.format.records import PageRecords
from hexz.storage import Storage

__all__ = ["Identity", "digest_of", "identify"]

MOST_PAGE_BYTES = 64 << 20
MOST_PAGES = 4096
"""Up to so many bytes in so many pages a stream's pages go in whole: those of 80 GiB in blocks of 64 KiB."""
SAMPLED_PAGES = 64
"""Of more pages so many go in, the first and the last and evenly between them."""
MOST_TAIL = 64 << 20
"""Of a longer end of the file its first and last halves of so many bytes go in."""
PIECE = 1 << 20


class Identity(NamedTuple):
    """Two digests of a file: as it is told today, and as releases up to 0.1 told it, which only saw the index.

    `fingerprint` is 32 hex digits of header and index alone, the same for every copy.
    """

    current: bytes
    former: bytes
    fingerprint: str


def digest_of(identity: bytes, what: str) -> str:
    """32 hex digits that identify the bytes of `what` (a stream's name, or ``file``)."""
    return hashlib.blake2b(identity, digest_size=16, person=what.encode()).hexdigest()


def identify(storage: Storage, header: Header, index: MasterIndex, parents: Sequence[Identity]) -> Identity:
    """The file's identity; what its parents supply is part of its content.

    Raises: StorageError, though not for pages that cannot be read: their readers will be told.
    """
    former = hashlib.blake2b(storage.read(0, HEADER_SIZE), digest_size=32)
    for piece in _pieces(Section(header.index_offset, index.length)):
        former.update(storage.read(*piece))
    fingerprint = former.hexdigest()[:32]
    former.update(f"{storage.size}:{storage.modified_ns}".encode())
    current = former.copy()
    for parent in parents:
        former.update(digest_of(parent.former, "file").encode())
        current.update(digest_of(parent.current, "file").encode())
    if storage.version:
        current.update(storage.version.encode())
        return Identity(current.digest(), former.digest(), fingerprint)
    for place in _places(storage, header, index):
        try:
            for piece in _pieces(place):
                current.update(storage.read(*piece))
        except StorageError:
            current.update(b"unreadable")
    return Identity(current.digest(), former.digest(), fingerprint)


def _places(storage: Storage, header: Header, index: MasterIndex) -> Iterator[Section]:
    if header.dictionary is not None:
        yield header.dictionary
    after = header.index_offset + index.length
    tail = storage.size - after
    if tail <= MOST_TAIL:
        yield Section(after, tail)
    else:
        yield Section(after, MOST_TAIL // 2)
        yield Section(storage.size - MOST_TAIL // 2, MOST_TAIL // 2)
    for records in (index.main, index.aux):
        for number in _chosen(records):
            yield Section(records.offsets[number], records.lengths[number])


def _chosen(records: PageRecords) -> Sequence[int]:
    """The numbers of the pages that go in."""
    count = len(records)
    if count <= MOST_PAGES and sum(records.lengths) <= MOST_PAGE_BYTES:
        return range(count)
    wanted = min(SAMPLED_PAGES, count)
    return [number * (count - 1) // (wanted - 1) for number in range(wanted)]


def _pieces(place: Section) -> Iterator[Section]:
    """`place` in pieces that are read at once."""
    for offset in range(place.offset, place.end, PIECE):
        yield Section(offset, min(PIECE, place.end - offset))
