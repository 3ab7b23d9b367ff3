"""Runs under one released wheel of hexz, by itself: a list of calls on standard input, a list of answers on output."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any


def pack(**arguments: Any) -> None:
    """Disk and memory images into a snapshot (0.1 to 0.7)."""
    from hexz import hexz_loader

    hexz_loader.pack(**arguments)


def build(out: str, options: dict[str, Any], steps: list[list[Any]]) -> None:
    """A snapshot put together step by step (0.1 to 0.7)."""
    from hexz import hexz_loader

    builder = hexz_loader.Builder(out, **options)
    for method, *arguments in steps:
        getattr(builder, method)(*(one.encode() if method == "set_metadata" else one for one in arguments))
    builder.finalize()


def sign(folder: str, file: str) -> None:
    """Sign a snapshot with a new key (0.1 to 0.7)."""
    from hexz import hexz_loader

    hexz_loader.keygen(folder)
    hexz_loader.sign_image(file, f"{folder}/private.key")


def archive(source: str, out: str, **options: Any) -> None:
    """A file or a folder into an archive (0.8)."""
    import hexz

    hexz.pack(source, out, **options)


def read(path: str, spans: list[list[int]], remote: bool = False, **options: Any) -> list[str]:
    """Hashes of spans of the disk (0.1 to 0.7); the path may be a URL."""
    from hexz import hexz_loader

    reader = hexz_loader.Reader(path, allow_restricted=True, **options) if remote else hexz_loader.Reader(path)
    size = reader.size()
    return [
        hashlib.sha256(reader.read(size=length, offset=offset)).hexdigest() for offset, length in [[0, size], *spans]
    ]


def read_archive(path: str) -> dict[str, str]:
    """Hashes of the named files (0.8)."""
    import hexz

    opened = hexz.Archive(path)
    return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}


if __name__ == "__main__":
    calls = {"pack": pack, "build": build, "sign": sign, "archive": archive, "read": read, "read_archive": read_archive}
    answers = [calls[name](**arguments) for name, arguments in json.load(sys.stdin)]
    print("answers:" + json.dumps(answers))
