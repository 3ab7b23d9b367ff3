"""Seals made in memory, with leaves of any size, and sealed copies of sample files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hexz.format.seal import LEAF_SIZE, SealBuilder, SealTree


def seal_bytes(data: bytes, key: bytes | None = None, leaf_size: int = LEAF_SIZE) -> bytes:
    """The seal of a file that holds `data`."""
    tree = SealTree(len(data), leaf_size, key)
    builder, seal = SealBuilder(tree), bytearray(tree.size)
    pieces = []
    for number, at in enumerate(range(0, len(data), leaf_size)):
        pieces += builder.add(tree.leaf(number, data[at : at + leaf_size]))
    for offset, piece in [*pieces, *builder.finish()[1]]:
        seal[offset : offset + len(piece)] = piece
    return bytes(seal)


def seal_path(path: Path) -> Path:
    """Where the seal of a file is."""
    return Path(f"{path}.sum")


def write_seal(path: Path, key: bytes | None = None, leaf_size: int = LEAF_SIZE) -> Path:
    """Seal a file."""
    seal_path(path).write_bytes(seal_bytes(path.read_bytes(), key, leaf_size))
    return path


def sealed_copies(folder: Path, sources: Iterable[Path], key: bytes | None = None) -> list[Path]:
    """Copies of files in `folder`, each with its seal."""
    return [write_seal(Path(shutil.copy(source, folder / source.name)), key) for source in sources]
