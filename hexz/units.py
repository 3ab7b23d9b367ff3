"""Sizes and numbers as people and programs write them, and as people read them."""

from __future__ import annotations

import re

from hexz.errors import UnitError

__all__ = ["format_size", "parse_number", "parse_size"]

_SIZE = re.compile(r"(\d{1,19})(?:([KMGT])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
_FACTORS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAX_SIZE = (1 << 63) - 1


def parse_size(text: str) -> int:
    """The bytes that ``256M``, ``64KiB`` or ``4096`` mean; K, M, G and T are powers of 1024.

    Raises: UnitError for anything else, and beyond 2^63-1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"'{text}' is not a size: write bytes, or a number with K, M, G or T (256M)")
    size = int(match[1]) * _FACTORS.get((match[2] or "").upper(), 1)
    if size > MAX_SIZE:
        raise UnitError(f"'{text}' is too large: at most {MAX_SIZE} bytes")
    return size


def parse_number(text: str, digits: int) -> int | None:
    """The number that up to so many decimal `digits` (ASCII, no sign) mean; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


def format_size(size: int) -> str:
    """A size in bytes for people: ``512 B``, ``64.0 KiB``, ``1.5 TiB``."""
    if size < 1024:
        return f"{size} B"
    value = size / 1024
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"
