"""The free bytes after the index, and the manifest that 0.8 folder archives keep there.

format.md sections 9 and 11.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hexz.errors import JsonError
from hexz.jsontext import load_json

__all__ = ["IMAGE_KIND", "MAX_METADATA", "ArchivedFile", "ManifestError", "parse_manifest", "parse_metadata"]

MAX_METADATA = 64 << 20
"""Largest metadata parsed, bytes."""
IMAGE_KIND = "image"
"""`kind` in the metadata that `hexz pack` writes: its list of files only lets other readers find the disk."""
MAX_POSITION = (1 << 63) - 1


class ManifestError(Exception):
    """The manifest lists something impossible; the text says what."""


class ArchivedFile(NamedTuple):
    """One file of a folder archive.

    `path` is relative with ``/``, without ``.``, ``..`` or empty parts.  `stream` is
    ``disk``, or ``memory`` for the one file the writers keep there; `offset` and `size` are
    bytes in it.  `mode` is the whole st_mode; `mtime` is in seconds.
    """

    path: str
    stream: str
    offset: int
    size: int
    mode: int
    mtime: int


def parse_metadata(data: bytes) -> dict[str, Any] | None:
    """The metadata as a JSON object, or None when it is anything else (any bytes are allowed)."""
    try:
        value = load_json(data)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def parse_manifest(metadata: dict[str, Any], disk_size: int, memory_size: int) -> list[ArchivedFile] | None:
    """The archive's files, or None when the metadata has no manifest.

    A file named ``memory`` at offset 0, listed last, lies in the memory stream when there is one.
    Raises: ManifestError on a hostile path, a duplicate, or a range past its stream.
    """
    listed = metadata.get("files")
    if listed is None or metadata.get("kind") == IMAGE_KIND:
        return None
    if not isinstance(listed, list):
        raise ManifestError("the manifest is not a list")
    files: list[ArchivedFile] = []
    seen: set[str] = set()
    for item in listed:
        path = _path(item)
        if path in seen:
            raise ManifestError(f"the manifest lists {path!r} twice")
        seen.add(path)
        in_memory = path == "memory" and memory_size > 0 and item.get("offset") == 0
        limit = memory_size if in_memory else disk_size
        offset, size = _number(item, "offset", path), _number(item, "size", path)
        if offset + size > limit:
            raise ManifestError(f"the manifest puts {path!r} at {offset}+{size}, past the stream's end at {limit}")
        stream = "memory" if in_memory else "disk"
        mode, mtime = _number(item, "mode", path, 0o100644), _number(item, "mtime", path, 0)
        files.append(ArchivedFile(path, stream, offset, size, mode, mtime))
    return files


def _path(item: Any) -> str:
    path = item.get("path") if isinstance(item, dict) else None
    if not isinstance(path, str) or not path:
        raise ManifestError("the manifest has an entry without a path")
    parts = path.split("/")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"the manifest's path {path!r} is not Unicode") from None
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise ManifestError(f"the manifest's path {path!r} is not a plain relative path")
    return path


def _number(item: dict[str, Any], key: str, path: str, default: int | None = None) -> int:
    value = item.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_POSITION:
        raise ManifestError(f"the manifest's {key} of {path!r} is {value!r}, not a number of bytes or seconds")
    return value
