"""The free bytes after the index, and the lists of files that some writers keep there.

format.md sections 9, 11 and 19.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hexz.errors import JsonError
from hexz.jsontext import load_json

__all__ = ["IMAGE_KIND", "MAX_METADATA", "ArchivedFile", "Listing", "member_path", "parse_listing", "parse_metadata"]

MAX_METADATA = 64 << 20
"""Largest metadata parsed, bytes."""
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


def parse_metadata(data: bytes) -> dict[str, Any] | None:
    """The metadata as a JSON object, or None when it is anything else (any bytes are allowed)."""
    try:
        value = load_json(data)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def parse_listing(metadata: dict[str, Any], disk_size: int, memory_size: int) -> Listing:
    """What `metadata` says of streams of these sizes, in bytes.

    A folder archive's file named ``memory`` at offset 0 lies in the memory stream when there is one.
    """
    source = metadata.get("source")
    if "files" in metadata:
        if metadata.get("kind") == IMAGE_KIND:
            return Listing(None, [], None)
        reader = _Reader("path", disk_size, memory_size)
        listed = metadata["files"]
        files = reader.read(listed)
        if files == [] and (listed or disk_size or memory_size):
            # Who commits a disk may give it any message, also one that looks like a manifest.
            files = None
            reader.note("the list of files names none that is here: it is taken for a remark")
        return Listing(files, reader.told(), None)
    if isinstance(source, dict) and source.get("format") == "tar":
        reader = _Reader("name", disk_size, 0)
        return Listing(reader.read(source.get("source_files")), reader.told(), _number(source.get("total_bytes")))
    return Listing(None, [], None)


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

    def note(self, oddity: str) -> None:
        if len(self._oddities) < MAX_ODDITIES:
            self._oddities.append(oddity)
        else:
            self._untold += 1

    def told(self) -> list[str]:
        return self._oddities + ([f"and {self._untold} oddities more"] if self._untold else [])

    def read(self, listed: Any) -> list[ArchivedFile] | None:
        """The files that can be read, of equal paths the last; None when it is no list at all."""
        if not isinstance(listed, list):
            self.note("the list of files is no list: it is taken for a remark")
            return None
        found: dict[str, ArchivedFile] = {}
        for item in listed:
            file = self._file(item)
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
