"""Bytes of files that tell their file and their offset, and what a folder takes on the disk."""

from __future__ import annotations

import os
from array import array
from pathlib import Path


def content(file: int, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file that has others at every offset, and others than every other file."""
    base = file << 48
    words = array("Q", range(base + start // 8, base + -(-end // 8)))
    return words.tobytes()[start % 8 : start % 8 + end - start]


def taken(folder: Path) -> int:
    """Bytes that the folder and what is in it take on the disk, as du(1) has it."""
    total = 0
    folders = [folder]
    while folders:
        try:
            path = folders.pop()
            total += os.stat(path).st_blocks * 512
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        total += os.stat(entry.path, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:  # it goes while it is looked at
            continue
    return total
