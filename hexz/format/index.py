"""The master index, its pages and their entries (format.md section 4).

A page's entries are kept as columns (one array a field, sliced out of the raw
bytes in C), since a page has up to 4096 of them and a terabyte has 4096 pages.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import accumulate, chain, islice
from operator import add, eq, le, sub
from typing import NamedTuple

from hexz.format.errors import DamagedIndex
from hexz.format.header import HEADER_SIZE, Header
from hexz.format.records import RECORD, RECORD_SIZE, PageRecord, PageRecords

__all__ = [
    "MAX_BLOCK",
    "MAX_INDEX",
    "MAX_PAGE_ENTRIES",
    "PARENT_OFFSET",
    "BlockEntry",
    "MasterIndex",
    "Page",
    "PageRecord",
    "build_master_index",
    "build_page",
    "check_disjoint",
    "check_numbers",
    "check_records",
    "index_fits",
    "index_length",
    "parse_master_index",
    "parse_page",
]

MAX_PAGE_ENTRIES = 4096
MAX_BLOCK = 64 << 20
"""Largest stored block accepted, logical bytes: the released writers were tried up to here."""
STORED_SLACK = 1040
"""A block is stored in at most this many bytes and twice its logical ones: far more than codecs and tags add."""
MAX_INDEX = 64 << 20
"""Largest master index accepted, bytes: 2.3 million pages."""
MAX_U64 = (1 << 64) - 1
PARENT_OFFSET = MAX_U64
"""Stored offset of an entry whose bytes live in a parent."""
ENTRY_SIZES = (20, 52)
LARGEST_PAGE = 8 + 52 * MAX_PAGE_ENTRIES
HASH_SIZE = 32

_U64 = struct.Struct("<Q")
_SIZES = struct.Struct("<QQ")
_ENTRY52 = struct.Struct("<QIII32s")
_ALL_ONES = 0xFFFF_FFFF
_MARKS_IN_A_ROW = re.compile(rb"\x00+|\x01+|\x02+")


class MasterIndex(NamedTuple):
    """Both streams' pages and logical sizes in bytes; `length` is the index's own size in bytes.

    `entry_sizes` are those that the pages may have: both until `check_numbers` has told them.
    """

    main: PageRecords
    aux: PageRecords
    main_size: int
    aux_size: int
    length: int
    entry_sizes: tuple[int, ...] = ENTRY_SIZES

    def with_sizes(self, sizes: dict[str, int]) -> MasterIndex:
        """The same with other logical sizes for ``disk`` and ``memory``, where `sizes` has them."""
        disk, memory = sizes.get("disk", self.main_size), sizes.get("memory", self.aux_size)
        return self._replace(main_size=disk, aux_size=memory)


class BlockEntry(NamedTuple):
    """One block: where it is stored and what it holds; lengths in bytes.

    `hash` is the BLAKE3-256 of the logical bytes, empty in files of 20-byte entries.
    """

    stored_offset: int
    stored_length: int
    logical_length: int
    crc: int
    hash: bytes = b""

    @property
    def in_parent(self) -> bool:
        """The block lives in a parent."""
        return self.stored_offset == PARENT_OFFSET


def index_length(read: Callable[[int, int], bytes], available: int) -> int:
    """Bytes that a master index has, of `available` from its beginning to the file's end.

    `read(at, length)` gives bytes of it; nothing but the two counts is asked for.
    Raises: DamagedIndex when it lists more pages than there are bytes for, or is larger than `MAX_INDEX`.
    """
    length = 0
    for _ in range(2):
        if length + _U64.size > available:
            raise DamagedIndex("truncated: the master index is cut off")
        count = _U64.unpack(read(length, _U64.size))[0]
        length += _U64.size
        if count > (available - length) // RECORD_SIZE:
            raise DamagedIndex(
                f"truncated or damaged: the master index lists {count} pages, more than the file can hold"
            )
        length += count * RECORD_SIZE
        if length > MAX_INDEX:
            raise DamagedIndex(f"the master index has {length} bytes: at most {MAX_INDEX} are accepted")
    if length + _SIZES.size > available:
        raise DamagedIndex("truncated: the master index is cut off")
    return length + _SIZES.size


def parse_master_index(data: bytes) -> MasterIndex:
    """The master index that begins at `data[0]`; what follows it is ignored.

    Raises: DamagedIndex when it is cut off, or its counts exceed the bytes that are there.
    """
    length = index_length(lambda at, size: data[at : at + size], len(data))
    view = memoryview(data)
    middle = _U64.size + _U64.unpack_from(data)[0] * RECORD_SIZE
    main, aux = PageRecords(view[_U64.size : middle]), PageRecords(view[middle + _U64.size : length - _SIZES.size])
    main_size, aux_size = _SIZES.unpack_from(data, length - _SIZES.size)
    return MasterIndex(main, aux, main_size, aux_size, length)


def index_fits(header: Header, index: MasterIndex) -> bool:
    """The header's two stream flags agree with the pages listed (format.md section 3, rule 5)."""
    return header.has_main == bool(index.main) and header.has_aux == bool(index.aux)


def check_records(records: PageRecords, size: int, index_offset: int) -> None:
    """See that the records make sense for a stream of `size` bytes.

    Raises: DamagedIndex when a page lies outside the block area, has an impossible
    length, or the logical positions do not run upwards from 0 within the stream.
    """
    if not records:
        return
    positions = records.positions
    # Scans in C prove right what is right; only where they fail somebody has to be told which page it is.
    if (
        min(records.offsets) < HEADER_SIZE
        or max(map(add, records.offsets, records.lengths)) > index_offset
        or max(records.lengths) > LARGEST_PAGE
        or not all(map(_possible_length, set(records.lengths)))
        or not all(map(le, positions, islice(positions, 1, None)))
        or positions[-1] > size
        or max(records.first_blocks) > MAX_U64 - MAX_PAGE_ENTRIES
    ):
        _tell_record(records, size, index_offset)
    if positions[0] != 0:
        raise DamagedIndex("the first page does not begin at 0")


def _possible_length(length: int) -> bool:
    return any(not (length - 8) % size and 1 <= (length - 8) // size <= MAX_PAGE_ENTRIES for size in ENTRY_SIZES)


def _tell_record(records: PageRecords, size: int, index_offset: int) -> None:
    last = 0
    for number, record in enumerate(records):
        if not HEADER_SIZE <= record.offset <= index_offset - record.length:
            raise DamagedIndex(f"page {number} lies outside the block area")
        if not _possible_length(record.length):
            raise DamagedIndex(f"page {number} has an impossible length of {record.length} bytes")
        if record.position < last or record.position > size:
            raise DamagedIndex(f"page {number} begins at {record.position}, out of order or past the stream's end")
        if record.first_block > MAX_U64 - MAX_PAGE_ENTRIES:
            raise DamagedIndex(f"page {number} has an impossible block number")
        last = record.position


def check_disjoint(*streams: PageRecords) -> None:
    """See that no two pages share bytes, so that all pages together are no larger than the file.

    Raises: DamagedIndex.
    """
    in_order = [
        all(map(le, map(add, records.offsets, records.lengths), islice(records.offsets, 1, None)))
        for records in streams
        if records
    ]
    if in_order in ([], [True]):
        return
    end = 0
    places = (offset << 32 | length for records in streams for offset, length in zip(records.offsets, records.lengths))
    for place in sorted(places):
        offset = place >> 32
        if offset < end:
            raise DamagedIndex(f"the index pages overlap at {offset}")
        end = offset + (place & _ALL_ONES)


def check_numbers(index: MasterIndex) -> tuple[int, ...]:
    """The sizes of entries with which the pages number the file's blocks 0, 1, 2, ... (format.md section 4).

    Each stream's pages are in the order of their numbers, both streams' together have every number once.  So no page
    is missing but at the end, none is listed twice, and none in the place of another; and as an encrypted block can
    be decrypted under its number alone, none of its blocks either.
    Raises: DamagedIndex when no size does.
    """
    streams = [records for records in (index.main, index.aux) if records]
    streams.sort(key=lambda records: records.first_blocks[0])
    lengths = {length for records in streams for length in set(records.lengths)}
    possible = [size for size in ENTRY_SIZES if all(not (length - 8) % size for length in lengths)]
    fitting = tuple(size for size in possible if _numbered(streams, size))
    if streams and not fitting:
        raise DamagedIndex("the index pages do not number the blocks 0, 1, 2, ...: some are missing, doubled or moved")
    return fitting or ENTRY_SIZES


def _numbered(streams: Sequence[PageRecords], entry_size: int) -> bool:
    counts = {length: (length - 8) // entry_size for records in streams for length in set(records.lengths)}
    firsts = chain.from_iterable(records.first_blocks for records in streams)
    lengths = chain.from_iterable(records.lengths for records in streams)
    # Mostly one stream comes behind the other; the loop is for those that take turns.
    if all(map(eq, firsts, accumulate(map(counts.__getitem__, lengths), initial=0))):
        return True
    expected = 0
    for first, length in merge(*(zip(records.first_blocks, records.lengths) for records in streams)):
        if first != expected:
            return False
        expected += counts[length]
    return True


class Page:
    """The entries of one page as columns, and the logical position where each block begins.

    `uniform` is the length in bytes that every block but the last has, or 0 when
    blocks differ: with it a position is found by one division, else by bisection.
    `unlisted` blocks at the end are not in the file: zeros that `add_zeros` put there.
    """

    __slots__ = ("_high", "_low", "_marks", "_raw", "count", "crc", "end", "entry_size", "first_block", "logical",
                 "start", "starts", "stored", "uniform", "unlisted")  # fmt: skip

    def __init__(self, raw: bytes, record: PageRecord, entry_size: int, count: int) -> None:
        words = array("I")
        words.frombytes(raw[8:])
        if sys.byteorder == "big":
            words.byteswap()
        stride = entry_size // 4
        self.count = count
        self.entry_size = entry_size
        self.first_block = record.first_block
        self.start = record.position
        self._low = words[0::stride]
        self._high = words[1::stride]
        self.stored = words[2::stride]
        self.logical = words[3::stride]
        self.crc = words[4::stride]
        self._raw = raw if entry_size == 52 else b""
        self._marks = b""  # made when it is first needed
        self.unlisted = 0
        self._find_starts()

    def _find_starts(self) -> None:
        self.end = self.start + sum(self.logical)
        first = self.logical[0]
        self.uniform = 0
        self.starts: Sequence[int] = ()
        if 0 < self.logical[-1] <= first and self.logical[:-1].count(first) == self.count - 1:
            self.uniform = first
        else:
            self.starts = list(accumulate(self.logical[:-1], initial=self.start))

    def add_zeros(self, length: int) -> None:
        """Let the page end in one more block, of `length` zeros (up to 2^64-1)."""
        self.logical = array("Q", self.logical)
        self.logical.append(length)
        for column in (self._low, self._high, self.stored, self.crc):
            column.append(0)
        if self._raw:
            self._raw += bytes(self.entry_size)
        self.count += 1
        self.unlisted += 1
        self._find_starts()

    @property
    def cost(self) -> int:
        """Bytes of memory that the page holds, roughly."""
        return self.count * 21 + len(self._raw) + len(self.starts) * 40

    def find(self, position: int) -> int:
        """The number within the page of the block that covers `position`, which must lie in [start, end)."""
        if self.uniform:
            return (position - self.start) // self.uniform
        return bisect_right(self.starts, position) - 1

    def block_start(self, number: int) -> int:
        """The logical position where block `number` of the page begins."""
        return self.start + number * self.uniform if self.uniform else self.starts[number]

    def stored_offset(self, number: int) -> int:
        """Where block `number` is stored in the file; `PARENT_OFFSET` if it is in a parent."""
        return self._low[number] | self._high[number] << 32

    def hash(self, number: int) -> bytes:
        """The recorded BLAKE3-256 of block `number`; empty in files of 20-byte entries."""
        if not self._raw:
            return b""
        start = 8 + number * 52 + 20
        return self._raw[start : start + HASH_SIZE]

    def hashes(self) -> Iterator[bytes]:
        """The recorded hash of every block; none in files of 20-byte entries."""
        return (fields[4] for fields in _ENTRY52.iter_unpack(self._raw[8:]))

    def entry(self, number: int) -> BlockEntry:
        """Block `number` as one value."""
        return BlockEntry(
            self.stored_offset(number),
            self.stored[number],
            self.logical[number],
            self.crc[number],
            self.hash(number),
        )

    def only_data(self) -> bool:
        """Every block of the page is stored data: neither zero nor in a parent."""
        return not self.stored.count(0)

    def runs(self, number: int) -> Iterator[tuple[int, int]]:
        """From block `number` on, the blocks of one kind in a row: the first one's number, and one past the last's.

        The kinds are stored data, zero, and in a parent.
        """
        marks = self._marks or self._mark()
        if len(marks) == 1:
            yield number, self.count
            return
        for run in _MARKS_IN_A_ROW.finditer(marks, number):
            yield run.span()

    def _mark(self) -> bytes:
        """A byte for each block (0 is zero, 1 stored, 2 in a parent), or a single one where all are alike."""
        stored, high = bytes(map(bool, self.stored)), bytes(map(bool, self._high))
        # Both at once for all blocks: a loop over them would be what takes the time.
        both = int.from_bytes(stored, "little") | int.from_bytes(high, "little") << 1
        marks = both.to_bytes(self.count, "little").replace(b"\x03", b"\x01")
        self._marks = marks[:1] if marks.count(marks[0]) == self.count else marks
        return self._marks

    def in_parent(self, number: int) -> bool:
        """Block `number` lives in a parent."""
        return self.stored[number] == 0 and self._high[number] == _ALL_ONES and self._low[number] == _ALL_ONES


def parse_page(
    raw: bytes,
    record: PageRecord,
    end: int | None,
    index_offset: int,
    zeros_from: Callable[[int], bool] | None = None,
    entry_sizes: Sequence[int] = ENTRY_SIZES,
) -> Page:
    """The page at `record`, whose blocks must end at logical position `end`, None for anywhere.

    Its entries have one of `entry_sizes`.  If they end earlier, `zeros_from` is asked whether there are only zeros
    from there on.
    Raises: DamagedIndex when the length, the positions, or any entry cannot be right.
    """
    if len(raw) != record.length or len(raw) < 8:
        raise DamagedIndex("the page is cut off")
    count = _U64.unpack_from(raw)[0]
    if not 1 <= count <= MAX_PAGE_ENTRIES:
        raise DamagedIndex(f"the page claims {count} blocks: 1 to {MAX_PAGE_ENTRIES} are possible")
    for entry_size in entry_sizes:
        if len(raw) == 8 + entry_size * count:
            break
    else:
        raise DamagedIndex(f"the page has {len(raw)} bytes, which fits no entry size for {count} blocks")
    page = Page(raw, record, entry_size, count)
    if end is None:
        end = page.end
    padded = page.end < end and zeros_from is not None and zeros_from(page.end)
    if page.end != end and not padded:
        raise DamagedIndex(f"the page's blocks end at {page.end}, the next begins at {end}")
    if max(page.logical) > MAX_BLOCK:
        _check_large_blocks(page)
    _check_places(page, index_offset)
    if padded:
        page.add_zeros(end - page.end)
    return page


def _check_large_blocks(page: Page) -> None:
    # A zero or parent entry allocates nothing by its length; only data is decoded as a whole.
    for number in range(page.count):
        if page.stored[number] and page.logical[number] > MAX_BLOCK:
            raise DamagedIndex(f"a block of {page.logical[number]} bytes: at most {MAX_BLOCK} are accepted")


def _check_stored_lengths(page: Page) -> None:
    for number in range(page.count):
        if page.stored[number] > STORED_SLACK + 2 * page.logical[number]:
            raise DamagedIndex(
                f"block {page.first_block + number} of {page.logical[number]} bytes is stored in "
                f"{page.stored[number]}: no codec makes so many of so few"
            )


def _check_places(page: Page, index_offset: int) -> None:
    # Pages are mostly all data or all zeros: scans in C prove those right, and the loop runs for the others.
    low, high, stored, crc, count = page._low, page._high, page.stored, page.crc, page.count
    zeros = stored.count(0)
    if max(stored) > STORED_SLACK + 2 * min(page.logical) and max(map(sub, stored, page.logical)) > STORED_SLACK:
        _check_stored_lengths(page)
    if not zeros and high.count(high[0]) == count:
        base = high[0] << 32
        if base + min(low) >= HEADER_SIZE and base + max(map(add, low, stored)) <= index_offset:
            return
    if zeros == count and low.count(0) == high.count(0) == crc.count(0) == count:
        return
    for number in range(count):
        if stored[number]:
            offset = low[number] | high[number] << 32
            if offset < HEADER_SIZE or offset + stored[number] > index_offset:
                raise DamagedIndex(f"block {page.first_block + number} is stored outside the block area")
        elif crc[number] or not (low[number] == high[number] and low[number] in (0, _ALL_ONES)):
            raise DamagedIndex(f"block {page.first_block + number} has nothing stored, but a place or a CRC")


def build_page(entries: Iterable[BlockEntry]) -> bytes:
    """A page of 52-byte entries; entries without a hash get zeros (format.md section 16)."""
    packed = [_ENTRY52.pack(e.stored_offset, e.stored_length, e.logical_length, e.crc, e.hash) for e in entries]
    return _U64.pack(len(packed)) + b"".join(packed)


def build_master_index(main: Sequence[PageRecord], aux: Sequence[PageRecord], main_size: int, aux_size: int) -> bytes:
    """The bytes of a master index."""
    parts = []
    for records in (main, aux):
        parts.append(_U64.pack(len(records)))
        parts.extend(RECORD.pack(*record) for record in records)
    parts.append(_SIZES.pack(main_size, aux_size))
    return b"".join(parts)
