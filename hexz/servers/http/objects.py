"""What a snapshot has to offer under a name: shared by the protocols that give it out as files."""

from __future__ import annotations

import hashlib
import mimetypes
import threading
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from hexz.errors import NoSuchSnapshot
from hexz.format.metadata import MAX_FILES, ArchivedFile
from hexz.protocol.http.responses import ByteSource
from hexz.snapshot import Snapshot, Stream

__all__ = [
    "ARCHIVED_GUARD",
    "ARCHIVE_FOLDER",
    "OCTETS",
    "Archive",
    "Contents",
    "archive_of",
    "archived_contents",
    "archived_etag",
    "file_contents",
    "public_facts",
]

OCTETS = "application/octet-stream"
ARCHIVE_FOLDER = "files/"
"""What the paths of archived files are below, beside the streams."""
ARCHIVED_GUARD = (("Content-Security-Policy", "sandbox"), ("X-Content-Type-Options", "nosniff"))
"""Headers for archived files: an archive may hold any page, and a browser shows it as if it came from nowhere."""


FILE_BYTES = 256 << 10
"""Most bytes of a .hxz file read for one send: they are nowhere else in the process."""


class Contents(NamedTuple):
    """Some bytes of a snapshot: where they come from, how many, of what kind, and their strong entity tag."""

    source: ByteSource
    size: int
    content_type: str
    etag: str


class Archive:
    """The files of a folder archive, by ``files/PATH``, sorted once; it does not know the snapshot."""

    def __init__(self, files: Iterable[ArchivedFile]) -> None:
        self.files = {f"{ARCHIVE_FOLDER}{file.path}": file for file in files}
        self.keys = sorted(self.files)


_archives: weakref.WeakKeyDictionary[Snapshot, Archive] = weakref.WeakKeyDictionary()
_sorting = threading.Lock()  # held while an archive is sorted, so that many who ask at once take the memory of one


def archive_of(snapshot: Snapshot) -> Archive | None:
    """The archive that the snapshot is, None if it is none.  Raises: SnapshotTooLarge, StorageError."""
    archive = _archives.get(snapshot)
    if archive is None:
        files = snapshot.files
        if files is None:
            return None
        with _sorting:
            archive = _archives.get(snapshot)
            if archive is None:
                archive = _archives[snapshot] = Archive(files)
                while sum(len(one.keys) for one in _archives.values()) > MAX_FILES:  # one alone never has more
                    del _archives[next(iter(_archives))]
    return archive


class _FileSource:
    """The bytes of a .hxz file, as they are."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def read(self, offset: int, length: int) -> list[bytes | memoryview]:
        return [self._snapshot.read_file(offset, min(length, FILE_BYTES))]


class _PartSource:
    """One archived file: a span of a stream."""

    def __init__(self, stream: Stream, offset: int) -> None:
        self._stream = stream
        self._offset = offset

    def read(self, offset: int, length: int) -> list[memoryview]:
        return self._stream.read(self._offset + offset, length)


def file_contents(snapshot: Snapshot) -> Contents:
    """The ``.hxz`` file itself."""
    return Contents(_FileSource(snapshot), snapshot.file_size, OCTETS, snapshot.etag)


def archived_contents(snapshot: Snapshot, file: ArchivedFile) -> Contents:
    """One file of a folder archive.

    Raises: NoSuchSnapshot when the snapshot lacks the stream that the file lies in.
    """
    stream = snapshot.streams.get(file.stream)
    if stream is None and file.size:
        raise NoSuchSnapshot(f"{file.path!r} lies in a stream that the snapshot does not have")
    source = _PartSource(stream, file.offset) if stream is not None else _FileSource(snapshot)
    kind = mimetypes.guess_type(file.path, strict=False)[0] or OCTETS
    return Contents(source, file.size, kind, archived_etag(snapshot, file))


def archived_etag(snapshot: Snapshot, file: ArchivedFile) -> str:
    """The tag of an archived file: of its snapshot and its place in it."""
    place = f"{snapshot.file.digest(f'files {file.stream}')} {file.offset} {file.size}"
    return f"{hashlib.blake2b(place.encode(), digest_size=16).hexdigest()}-1"


def public_facts(name: str, snapshot: Snapshot) -> dict[str, Any]:
    """What may be told about a snapshot, ready for JSON: where files lie on the server is nobody's business."""
    facts: dict[str, Any] = {"name": name, **snapshot.info()}
    del facts["path"]
    for parent in facts["parents"]:
        del parent["path"]
    return facts
