"""Open a snapshot: which layout it has, whether its parts agree, its key, its parents.

Cost is in the number of pages listed, never in the number of blocks: index pages
are read when a position in them is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

from hexz.errors import (
    CorruptSnapshot,
    CryptographyMissing,
    NotASnapshot,
    NotEncrypted,
    ParentMissing,
    ParentRefused,
    PasswordNeeded,
    SealMismatch,
    SnapshotNotFound,
    SnapshotTooLarge,
    SnapshotUnreadable,
    StorageError,
    WrongPassword,
)
from hexz.format.codec import Codec
from hexz.format.crypto import BlockCipher, derive_key
from hexz.format.errors import BlockDamage, CryptographyNeeded, DamagedIndex, HeaderError, TagMismatch
from hexz.format.header import HEADER_SIZE, Compression, Header, Variant, header_candidates
from hexz.format.index import (
    MasterIndex,
    check_disjoint,
    check_numbers,
    check_records,
    index_fits,
    index_length,
    parse_master_index,
    parse_page,
)
from hexz.format.records import RECORD_SIZE
from hexz.installation import how_to_get
from hexz.snapshot.context import OpenContext, lies_in
from hexz.snapshot.identity import identify
from hexz.snapshot.pages import RECORD_COST, PageCache
from hexz.snapshot.snapshot import Snapshot, sizes_of_streams
from hexz.snapshot.stored import StoredFile
from hexz.storage import Storage
from hexz.storage.opening import open_storage
from hexz.storage.remote import is_remote, public_name
from hexz.storage.remote.places import below, folder_of
from hexz.units import format_size

__all__ = ["MAX_ANCESTORS", "MAX_CHAIN", "Opener", "open_snapshot"]

MAX_CHAIN = 64
"""Longest chain of parents followed, the snapshot itself included."""
MAX_ANCESTORS = 256
"""Most ancestors of one snapshot in all."""
TOO_MANY = f"too many parents: at most {MAX_CHAIN} deep and {MAX_ANCESTORS} in all"
INDEX_READ = 64 << 10
"""Bytes read where the master index begins; it is rarely longer (2,300 pages, some 600 GiB in blocks of 64 KiB)."""
MAX_ROUNDS = 40_000_000
"""Most rounds of key derivation for one snapshot with its ancestors: a chain of `MAX_CHAIN` takes 600,000 for each."""
MAX_PAGES_PROBED = 4
"""Index pages looked at to find the first encrypted block when the password is tried."""


class _Family(NamedTuple):
    """Who is being opened: the identities from the first child down to here, all so far, and their keys' rounds."""

    line: tuple[str, ...]
    opened: list[str]
    rounds: list[int]


class Opener:
    """Opens snapshots, with their parents, with what a `context` holds for all of them.

    Each file is open, and cached, once: a base that is served itself and supplies its children, too.
    """

    def __init__(self, context: OpenContext) -> None:
        self.context = context
        self._opened: dict[tuple[str, str, str], Snapshot] = {}  # by what `_key` gives

    def open(self, path: str) -> Snapshot:
        """Open the snapshot at `path` with its parents; `close` it when done.

        Raises: a SnapshotError that says what is wrong with which file; SystemFailure.
        """
        if is_remote(path):
            return self._open(public_name(path), path, _Family((), [], []))
        try:
            real = os.path.realpath(path)
        except ValueError:
            raise SnapshotNotFound(repr(path), "not a possible file name") from None
        return self._open(path, real, _Family((), [], []))

    def _open(self, path: str, real: str, family: _Family) -> Snapshot:
        """Open the file at `real`, which messages call `path`."""
        context = self.context
        # What was found out about the real path holds for what is opened: no link on it is followed any more.
        seals, pieces = context.seals.policy, context.sealed_pieces
        storage = open_storage(real, seals, pieces, context.remote, resolved=True)
        key = _key(storage, real)
        shared = self._opened.get(key)
        if shared is not None and storage.identity not in family.line and shared.retain():
            if shared.look():
                storage.close()
                return shared
            shared.close()
        parents: list[Snapshot] = []
        try:
            header, index, undeclared = _read_structure(storage, context.pages)
            if context.take_undeclared:
                index = index.with_sizes(undeclared)
            line = _join(path, storage, header, family, context)
            for stored in header.parents:
                relatives = _Family(line, family.opened, family.rounds)
                parents.append(self._open_parent(path, real, stored, relatives))
            _check_family(path, parents)
            if header.encryption is None:
                _check_plain_text(path, "it itself is not", parents, context)
            cipher = _cipher(storage, header, context.password)
            layout = _layout(storage, header, index)
            identity = identify(storage, header, index, [parent.file.identity for parent in parents])
            codec, counts = _codec(storage, header), [parent.counts for parent in parents]
            file = StoredFile(storage, header, codec, cipher, identity, sizes_of_streams(index), counts)
            snapshot = Snapshot(file, index, layout, undeclared, parents, context, self._forget)
            try:
                _check_ends(snapshot, index)
                if cipher is not None and not _try_password(snapshot):
                    _check_plain_text(
                        path, "it has no block that shows that its writer knew the password", parents, context
                    )
            except BaseException:
                snapshot.lineage.close()
                raise
            self._opened[key] = snapshot
            return snapshot
        except BaseException:
            storage.close()
            for parent in parents:
                parent.close()
            raise

    def _open_parent(self, child: str, real: str, stored: str, family: _Family) -> Snapshot:
        """The parent that is called `stored` in the child at `real`, which is a path or an address."""
        folders = list(map(os.path.realpath, self.context.parent_dirs))
        addresses = [*self.context.remote.settings.parent_urls]
        if is_remote(real):
            addresses.insert(0, folder_of(real))
        else:
            folders.insert(0, os.path.dirname(real))
        refused: SnapshotUnreadable | None = None
        for place in _parent_places(stored, folders, addresses):
            shown = public_name(place)
            try:
                return self._open(shown, place, family)
            except SnapshotNotFound as error:
                if error.path != shown:
                    raise
            except SnapshotUnreadable as error:
                if is_remote(place) and error.path == shown:
                    # Stores refuse what is not there to who may not list it.
                    refused = refused or error
                elif not os.path.isdir(place):
                    raise
        if refused is not None:
            raise refused
        looked = ", ".join(dict.fromkeys([*folders, *addresses]))
        raise ParentMissing(
            child,
            f"its parent {stored!r} was not found in {looked}, where links that lead out are not followed: "
            "put it there or name its folder with --parent-dir or --parent-url",
        )

    def _forget(self, snapshot: Snapshot) -> None:
        """The snapshot is closed."""
        for key in [key for key, one in list(self._opened.items()) if one is snapshot]:
            del self._opened[key]


def _key(storage: Storage, real: str) -> tuple[str, str, str]:
    """What is the same for a file that is open already: of an address also what its query permits, which may end."""
    return storage.name, storage.identity, real if is_remote(real) else ""


def open_snapshot(path: str, context: OpenContext) -> Snapshot:
    """Open one snapshot, as `Opener.open` does: for who wants no second one."""
    return Opener(context).open(path)


def _join(path: str, storage: Storage, header: Header, family: _Family, context: OpenContext) -> tuple[str, ...]:
    """Make the file one of the `family` that is being opened; the identities from the first child down to it.

    Raises: CorruptSnapshot, NotEncrypted, ParentRefused.
    """
    line = (*family.line, storage.identity)
    if storage.identity in family.line:
        raise CorruptSnapshot(path, "is its own ancestor: the parents form a circle")
    if len(line) > MAX_CHAIN or len(family.opened) >= MAX_ANCESTORS:
        raise CorruptSnapshot(path, TOO_MANY)
    family.opened.append(storage.identity)
    if header.encryption is None and context.require_encrypted:
        raise NotEncrypted(path, "is not encrypted, and --require-encrypted was given")
    if header.encryption is not None:
        family.rounds.append(header.encryption.iterations)
        if sum(family.rounds) > MAX_ROUNDS:
            raise CorruptSnapshot(path, f"its key and its family's take more than {MAX_ROUNDS} rounds")
    if header.parents and not context.follow_parents:
        named = ", ".join(map(repr, header.parents))
        raise ParentRefused(path, f"has parents ({named}), and --no-parents was given: pack it without")
    return line


def _check_family(path: str, parents: Sequence[Snapshot]) -> None:
    """See that the snapshot has no more ancestors than are read; those that were open already count as well."""
    ancestors = {file.uid for parent in parents for file in parent.family()}
    if any(parent.lineage.generations >= MAX_CHAIN for parent in parents) or len(ancestors) > MAX_ANCESTORS:
        raise CorruptSnapshot(path, TOO_MANY)


def _check_plain_text(path: str, reason: str, parents: Sequence[Snapshot], context: OpenContext) -> None:
    """See that the snapshot does not make plain text of an encrypted parent, unless that lies where parents are kept.

    Whoever puts a file into a folder would otherwise read all encrypted ones in it: the password opens them.
    """
    for parent in parents:
        if parent.encrypted and not context.in_parent_dirs(parent.path):
            where = f"--parent-dir {os.path.dirname(parent.path)}"
            if is_remote(parent.path):
                where = f"--parent-url {folder_of(parent.path)}"
            raise ParentRefused(
                path,
                f"its parent {parent.path} is encrypted, and {reason}: if its readers may have the parent's "
                f"plain text, give {where}",
            )


def _read_structure(storage: Storage, pages: PageCache) -> tuple[Header, MasterIndex, dict[str, int]]:
    """The header and the index that agree with each other (format.md section 3), and what `_check_index` gives."""
    name = storage.name
    try:
        candidates = header_candidates(storage.read(0, min(HEADER_SIZE, storage.size)), storage.size)
    except HeaderError as error:
        raise NotASnapshot(name, str(error)) from None
    reason = "the index does not fit the header"
    for header in candidates:
        try:
            index = parse_master_index(_read_index(storage, header.index_offset, pages))
        except DamagedIndex as error:
            reason = str(error)
            continue
        if index_fits(header, index):
            undeclared = _check_index(storage, header, index)
            try:
                return header, index._replace(entry_sizes=check_numbers(index)), undeclared
            except DamagedIndex as error:
                raise CorruptSnapshot(name, str(error)) from None
    raise CorruptSnapshot(name, reason)


def _read_index(storage: Storage, offset: int, pages: PageCache) -> bytes:
    """The master index at `offset`, read whole once its counts are known to be possible, and to have room in memory.

    Raises: DamagedIndex, SnapshotTooLarge, StorageError.
    """
    available = storage.size - offset
    head = storage.read(offset, min(available, INDEX_READ))

    def read(at: int, length: int) -> bytes:
        return head[at : at + length] if at + length <= len(head) else storage.read(offset + at, length)

    length = index_length(read, available)
    needed = length // RECORD_SIZE * RECORD_COST
    if not pages.has_room(needed):
        reason = f"its index needs {format_size(needed)} of memory, more than is left: give a larger --cache-size"
        raise SnapshotTooLarge(storage.name, reason)
    return head[:length] if length <= len(head) else storage.read(offset, length)


def _check_index(storage: Storage, header: Header, index: MasterIndex) -> dict[str, int]:
    """What the blocks of each stream hold in bytes that declares none at all (format.md section 19)."""
    undeclared = {}
    try:
        check_disjoint(index.main, index.aux)
        for name, records, size in (("disk", index.main, index.main_size), ("memory", index.aux, index.aux_size)):
            if not records:
                continue
            last = records[-1]
            check_records(records, size or last.position, header.index_offset)
            if not size or last.position == size:
                # No reader will ever need this page: it must be an empty one, or the size is wrong.
                raw = storage.read(last.offset, last.length)
                end = parse_page(raw, last, size or None, header.index_offset).end
                if end != size:
                    undeclared[name] = end
    except DamagedIndex as error:
        raise CorruptSnapshot(storage.name, str(error)) from None
    return undeclared


def _check_ends(snapshot: Snapshot, index: MasterIndex) -> None:
    """See that the blocks of each stream end where it does.

    Raises: CorruptSnapshot; not for a last page that cannot be read or used: its readers will be told.
    """
    for name, stream in snapshot.streams.items():
        records = stream.pages.records
        if not records:
            continue
        last, sizes = records[-1], index.entry_sizes
        try:
            raw = snapshot.storage.read(last.offset, last.length)
            end = parse_page(raw, last, None, snapshot.header.index_offset, entry_sizes=sizes).end
        except (DamagedIndex, StorageError) as error:
            snapshot.file.note_failure(CorruptSnapshot(snapshot.path, f"the last index page of the {name}: {error}"))
            continue
        held = snapshot.undeclared.get(name, stream.size)
        if end != held and not stream.pages.zeros_from(end):
            raise CorruptSnapshot(
                snapshot.path, f"the blocks of the {name} stream end at {end}, and its size is said to be {held}"
            )


def _layout(storage: Storage, header: Header, index: MasterIndex) -> str:
    """A20, A52, B52 or C52; a file without blocks has no entry size and is called by its header alone."""
    records = index.main or index.aux
    if not records:
        return "A" if header.variant is Variant.A else "B"
    count = int.from_bytes(storage.read(records[0].offset, 8), "little")
    entry_size = (records[0].length - 8) // count if count else 0
    letter = "A" if header.variant is Variant.A else "C" if header.cdc is not None else "B"
    return f"{letter}{entry_size}"


def _codec(storage: Storage, header: Header) -> Codec:
    dictionary = None
    if header.dictionary is not None and header.compression is Compression.ZSTD:
        dictionary = storage.read(*header.dictionary)
    try:
        return Codec(header.compression, dictionary)
    except ValueError as error:
        raise CorruptSnapshot(storage.name, f"the dictionary is damaged: {error}") from None


def _cipher(storage: Storage, header: Header, password: bytes | None) -> BlockCipher | None:
    if header.encryption is None:
        return None
    if password is None:
        raise PasswordNeeded(storage.name, "is encrypted: give its password with --password-file")
    try:
        return BlockCipher(derive_key(password, header.encryption))
    except CryptographyNeeded:
        reason = f"is encrypted, and the package cryptography is missing: {how_to_get(['cryptography'])}"
        raise CryptographyMissing(storage.name, reason) from None
    except ValueError as error:
        raise CorruptSnapshot(storage.name, str(error)) from None


def _try_password(snapshot: Snapshot) -> bool:
    """Decrypt the first stored block: there is no other way to tell a wrong password (format.md section 6).

    False when no block was found that could tell.
    """
    for stream in snapshot.streams.values():
        for number in range(min(len(stream.pages.records), MAX_PAGES_PROBED)):
            page = stream.pages.read(number)
            for entry in range(page.count):
                if page.stored[entry]:
                    try:
                        stored = snapshot.storage.read(page.stored_offset(entry), page.stored[entry])
                        snapshot.file.decode(stored, page.logical[entry], page.crc[entry], page.first_block + entry)
                    except TagMismatch:
                        raise WrongPassword(snapshot.path, "wrong password") from None
                    except (BlockDamage, SealMismatch):
                        # Damage is not the password's fault; the block's readers will be told.
                        return False
                    return True
    return False


def _parent_places(stored: str, folders: Sequence[str], addresses: Sequence[str]) -> list[str]:
    """Where the parent may be: inside the child's folder or a configured one, never anywhere else."""
    places: list[str] = []
    relative = stored.replace("\0", "")
    names = [relative, os.path.basename(relative)]
    if is_remote(stored):
        # An address is taken as it is where it is allowed, and for a name in the folders.
        names = [os.path.basename(unquote(public_name(stored)))]
    for root in folders:
        for name in names:
            real = os.path.realpath(os.path.join(root, name))
            if lies_in(real, root) and real not in places:
                places.append(real)
    for root in addresses:
        for name in [relative, *names] if is_remote(stored) else names:
            address = below(root, name)
            if address is not None and address not in places:
                places.append(address)
    return places
