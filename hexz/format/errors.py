"""What can be wrong with the bytes of a file; texts say what, without the file's name, which is not known here."""

from __future__ import annotations

__all__ = [
    "BlockDamage", "CryptographyNeeded", "DamagedIndex", "DamagedSeal", "HeaderError", "TagMismatch", "TooManyFiles",
]  # fmt: skip


class HeaderError(Exception):
    """The bytes are no header; the text says what is wrong, without the file's name."""


class DamagedList(Exception):
    """A list of what to fetch that cannot be read."""


class DamagedIndex(Exception):
    """The master index or a page contradicts itself; the text says how, without the file's name."""


class BlockDamage(Exception):
    """A stored block that does not decode to exactly its logical length; the text says why."""


class TagMismatch(BlockDamage):
    """The block's authentication tag does not fit: wrong key, or damage."""


class CryptographyNeeded(Exception):
    """The ``cryptography`` package is not installed."""


class DamagedSeal(Exception):
    """A seal that contradicts itself, or is none; the text says how, without the file's name."""


class TooManyFiles(Exception):
    """A list has more than `MAX_FILES` entries."""
