"""Text from file names and file contents, made safe for a terminal and for one line of a log."""

from __future__ import annotations

__all__ = ["CONTROLS", "NO_UTF8", "printable"]

CONTROLS = {**{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}, 10: "\\n"}
"""For `str.translate`: what ends the line or moves the cursor (ECMA-48 C0 but the tab, DEL, C1), escaped."""
NO_UTF8 = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)}
"""Bytes of a file name that are no UTF-8, as Python has them (PEP 383), escaped: no text stream takes them."""


def printable(text: str) -> str:
    """`text` as one line that a terminal only shows."""
    return text.translate(CONTROLS)
