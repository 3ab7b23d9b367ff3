"""The free bytes after the index, and the lists of files that some writers keep there.

format.md sections 9, 11 and 19.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hexz.errors import JsonError
from hexz.format.errors import TooManyFiles
from hexz.format.members import MAX_VALUE, JsonText

__all__ = [
    "IMAGE_KIND",
    "MAX_FILES",
    "MAX_METADATA",
    "NO_LISTING",
    "ArchivedFile",
    "Listing",
    "member_path",
    "parse_listing",
]

MAX_METADATA = 16 << 20
"""Longest metadata read, bytes: the files of an archive have some 80 each in it, and more with longer paths."""
MAX_FILES = 1 << 18
"""Most entries of a list of files that is believed; each takes some 350 bytes of memory."""
NO_LIST = "the list of files is no list: it is taken for a remark"
IMAGE_KIND = "image"
"""`kind` in the metadata that `hexz pack` writes: its list of files only lets other readers find the disk."""
MAX_ODDITIES = 100
"""Most oddities of one list that are told one by one."""
PLAIN_FILE = 0o100644
"""Mode of files whose mode is not recorded."""
_LONGEST_TOLD = 100
_I64 = 1 << 63


class ArchivedFile(NamedTuple):
    """One file of a folder archive or of a tar conversion.

    `path` is relative with ``/``, without ``.``, ``..`` or empty parts; any other character may be in it.  `stream` is
    ``disk``, or ``memory`` for the one file the writers keep there; `offset` and `size` are
    bytes in it.  `mode` is the whole st_mode; `mtime` is in seconds, None where it is not recorded.
    """

    path: str
    stream: str
    offset: int
    size: int
    mode: int
    mtime: int | None


class Listing(NamedTuple):
    """What the metadata says of the streams.

    `files` is None where it lists none.  `oddities` says what no writer of a sound list does, one line each; it
    harms nobody: what can be read is in `files` all the same.  `blocks_end` is where a tar conversion says that the
    blocks of its disk end: from there on it is zeros (format.md section 19).
    """

    files: list[ArchivedFile] | None
    oddities: list[str]
    blocks_end: int | None


NO_LISTING = Listing(None, [], None)
"""What metadata says that has nothing to do with files."""


def parse_listing(data: bytes, disk_size: int, memory_size: int) -> Listing:
    """What metadata says of streams of these sizes, in bytes; nothing, if it is no JSON object (any bytes are allowed).

    A folder archive's file named ``memory`` at offset 0 lies in the memory stream when there is one.
    """
    if b'"files"' not in data and b'"source"' not in data:
        return NO_LISTING
    try:
        text = JsonText(data)
        if not text.begins_with(text.start, b"{"):
            return NO_LISTING
        listing = _read_listing(text, disk_size, memory_size)
        text.check_end()
    except JsonError:
        return NO_LISTING
    except TooManyFiles:
        return Listing(None, [f"it lists more than {MAX_FILES} files: the list is not read"], None)
    return listing


def _read_listing(text: JsonText, disk_size: int, memory_size: int) -> Listing:
    listing = NO_LISTING
    of_source = True
    kind = None
    for key, at in text.members(text.start):
        if key == "files":
            listing, of_source = _archive(text, at, disk_size, memory_size), False
        elif key == "source" and of_source:
            listing = _conversion(text, at, disk_size)
        elif key == "kind":
            kind = text.value_at(at)
    return NO_LISTING if kind == IMAGE_KIND and not of_source else listing


def _archive(text: JsonText, start: int, disk_size: int, memory_size: int) -> Listing:
    reader = _Reader("path", disk_size, memory_size)
    files = reader.read(text, start)
    if files == [] and (reader.entries or disk_size or memory_size):
        # Who commits a disk may give it any message, also one that looks like a manifest.
        files = None
        reader.note("the list of files names none that is here: it is taken for a remark")
    return Listing(files, reader.told(), None)


def _conversion(text: JsonText, start: int, disk_size: int) -> Listing:
    if not text.begins_with(start, b"{"):
        return NO_LISTING
    reader = _Reader("name", disk_size, 0)
    kind = end = files = None
    listed = False
    for key, at in text.members(start):
        if key == "format":
            kind = text.value_at(at)
        elif key == "total_bytes":
            end = _number(text.value_at(at))
        elif key == "source_files":
            files, listed = reader.read(text, at), True
    if kind != "tar":
        return NO_LISTING
    if not listed:
        reader.note(NO_LIST)
    return Listing(files, reader.told(), end)


def member_path(name: str) -> str:
    """The path below a folder that a recorded name stands for; empty when it stands for no file.

    As tar does it: without leading slashes, and without all that comes before the last ``..``.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    # Halves of surrogate pairs, which JSON can have and UTF-8 has not.
    return "/".join(parts).encode("utf-8", "replace").decode("utf-8")


class _Reader:
    """Reads one list of files and keeps what is odd about it."""

    def __init__(self, key: str, disk_size: int, memory_size: int) -> None:
        """`key` is what a file's path is called."""
        self._key = key
        self._sizes = {"disk": disk_size, "memory": memory_size}
        self._oddities: list[str] = []
        self._untold = 0
        self.entries = 0

    def note(self, oddity: str) -> None:
        if len(self._oddities) < MAX_ODDITIES:
            self._oddities.append(oddity)
        else:
            self._untold += 1

    def told(self) -> list[str]:
        return self._oddities + ([f"and {self._untold} oddities more"] if self._untold else [])

    def read(self, text: JsonText, start: int) -> list[ArchivedFile] | None:
        """The files that can be read, of equal paths the last; None when it is no list at all.

        Raises: JsonError, TooManyFiles.
        """
        if not text.begins_with(start, b"["):
            self.note(NO_LIST)
            return None
        found: dict[str, ArchivedFile] = {}
        for span in text.items(start):
            self.entries += 1
            if self.entries > MAX_FILES:
                raise TooManyFiles
            if span.end - span.start > MAX_VALUE:
                self.note(f"the list of files has an entry of {span.end - span.start} bytes: it is left out")
                continue
            file = self._file(text.value(span))
            if file is not None:
                if found.pop(file.path, None) is not None:
                    self.note(f"the path {_told(file.path)} comes more than once: the last one counts")
                found[file.path] = file
        return list(found.values())

    def _file(self, item: Any) -> ArchivedFile | None:
        name = item.get(self._key) if isinstance(item, dict) else None
        if not isinstance(name, str):
            self.note("the list of files has an entry without a name: it is left out")
            return None
        path = member_path(name)
        if not path:
            self.note(f"the name {_told(name)} is no file's: it is left out")
            return None
        if path != name:
            self.note(f"the name {_told(name)} is taken for {_told(path)}")
        offset, size = _number(item.get("offset")), _number(item.get("size"))
        stream = "memory" if path == "memory" and offset == 0 and self._sizes["memory"] else "disk"
        limit = self._sizes[stream]
        if offset is None or size is None or offset + size > limit:
            self.note(f"the place of {_told(path)} is not within the {stream} stream of {limit} bytes: it is left out")
            return None
        mode, mtime = _number(item.get("mode"), PLAIN_FILE), item.get("mtime")
        if isinstance(mtime, bool) or not isinstance(mtime, int) or not -_I64 <= mtime < _I64:
            mtime = None
        return ArchivedFile(path, stream, offset, size, PLAIN_FILE if mode is None else mode, mtime)


def _number(value: Any, default: int | None = None) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _I64:
        return default
    return value


def _told(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_TOLD else f"{text[:_LONGEST_TOLD]}...")
