"""Text from file names and file contents, made safe for a terminal and for one line of a log."""

from __future__ import annotations

__all__ = ["CONTROLS", "printable"]

CONTROLS = {**{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}, 10: "\\n"}
"""For `str.translate`: what ends the line or moves the cursor (ECMA-48 C0 but the tab, DEL, C1), escaped."""


def printable(text: str) -> str:
    """`text` as one line that a terminal only shows."""
    return text.translate(CONTROLS)
