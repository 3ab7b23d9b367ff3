"""``hexz verify``: read every block and say which are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from hexz.errors import ConfigError, CryptographyMissing, HexzError
from hexz.format.crypto import SIGNATURE_SIZE, signature_valid
from hexz.format.errors import CryptographyNeeded
from hexz.format.index import MAX_BLOCK, MAX_INDEX
from hexz.installation import how_to_get
from hexz.snapshot import Snapshot, Stream, doubt, new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY, SealPolicy
from hexz.tools.progress import Progress

__all__ = ["Verified", "verify"]

CACHE = 2 * MAX_BLOCK
MAX_SIGNED = 2 * MAX_INDEX
"""Most bytes of index and metadata that a signature is checked over."""
PIECE = 1 << 20
"""Bytes of a sealed file compared at a time."""


class Verified(NamedTuple):
    """The outcome for one file: how many places are damaged, the bytes that were checked, and what is strange.

    `oddities` harm nothing: they are what no writer of a sound list of files does, one line each.  `doubt` is a line
    on what could not be checked, or empty.
    """

    damaged: int
    checked: int
    oddities: list[str]
    doubt: str = ""


def verify(
    path: str,
    report: Callable[[str], object],
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
    public_key: bytes | None = None,
    seals: SealPolicy = NO_POLICY,
) -> Verified:
    """Decompress every block of both streams and check it; parents are checked as far as they are used.

    `report` gets one line for each damaged place, as it is found.  With `public_key` (32 bytes) the file must carry
    a signature that fits it.  Where there is a seal every byte of the file is compared with it,
    also what no block uses.
    Raises: HexzError when the file cannot be opened at all.
    """
    damaged = checked = 0
    context = new_context(CACHE, password, parent_dirs, seals=seals)
    with open_snapshot(path, context) as snapshot:
        total = sum(snapshot.undeclared.get(name, stream.size) for name, stream in snapshot.streams.items())
        total += snapshot.file_size if snapshot.storage.seal is not None else 0
        with Progress("verifying", total) as progress:
            stored = ((length, False, trouble) for length, trouble in _check_seal(snapshot))
            plain = ((length, True, trouble) for length, trouble in _check(snapshot, public_key))
            for length, counted, trouble in chain(stored, plain):
                checked += length if counted else 0
                if trouble is not None:
                    damaged += 1
                    progress.clear()
                    report(trouble)
                progress.advance(length)
        oddities, doubted = snapshot.oddities, doubt(snapshot)
    context.lanes.stop()
    return Verified(damaged, checked, oddities, doubted)


def _check(snapshot: Snapshot, public_key: bytes | None) -> Iterator[tuple[int, str | None]]:
    """(bytes, None or what is wrong) for each place of the file."""
    if public_key is not None:
        yield 0, _check_signature(snapshot, public_key)
    for stream in snapshot.streams.values():
        if not stream.pages.records:
            yield from _read(stream, 0, stream.size)
        for number in range(len(stream.pages.records)):
            yield from _check_page(stream, number)


def _check_seal(snapshot: Snapshot) -> Iterator[tuple[int, str | None]]:
    """(bytes, None or what is wrong) for each part of a sealed file, whether or not a block uses it."""
    seal = snapshot.storage.seal
    if seal is None:
        return
    for start in range(0, snapshot.file_size, PIECE):
        piece = min(PIECE, snapshot.file_size - start)
        try:
            snapshot.read_file(start, piece)
        except HexzError:
            # Once more leaf by leaf, to tell each that is wrong.
            for at in range(start, start + piece, seal.leaf_size):
                size = min(seal.leaf_size, snapshot.file_size - at)
                try:
                    snapshot.read_file(at, size)
                except HexzError as error:
                    yield size, str(error)
                else:
                    yield size, None
        else:
            yield piece, None


def _check_signature(snapshot: Snapshot, public_key: bytes) -> str | None:
    """What is wrong with the signature, which covers the index and the metadata (format.md section 12)."""
    place, start = snapshot.header.signature, snapshot.header.index_offset
    if place is None:
        return f"{snapshot.path}: is not signed"
    if place.length != SIGNATURE_SIZE or not 0 < place.offset - start <= MAX_SIGNED:
        return f"{snapshot.path}: the signature is damaged"
    signed = bytes(snapshot.read_file(start, place.offset - start))
    try:
        if signature_valid(public_key, bytes(snapshot.read_file(*place)), signed):
            return None
    except CryptographyNeeded:
        reason = f"signatures need the package cryptography: {how_to_get(['cryptography'])}"
        raise CryptographyMissing(snapshot.path, reason) from None
    except ValueError as error:
        raise ConfigError(f"the public key is none: {error}") from None
    return f"{snapshot.path}: the signature does not fit the key"


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
