"""The examples of README and the manual pages: blocks of shell, Python, settings, and of promised output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.peers import ROOT

README = ROOT / "README.md"
MANUALS = sorted((ROOT / "systemd" / "man").iterdir())
DOCUMENTS = [README, *MANUALS]
ANYTHING = "..."
"""In a line of promised output: whatever stands there."""
_ESCAPES = {
    r"\-": "-",
    r"\(aq": "'",
    r"\(ga": "`",
    r"\(ha": "^",
    r"\(ti": "~",
    r"\(dq": '"',
    r"\&": "",
    r"\(bu": "*",
    r"\e": "\\",
}


class Block(NamedTuple):
    """One block as a reader copies it; `kind` is sh, python, nginx, text (what the block before prints), ..."""

    kind: str
    text: str


def blocks(document: Path) -> list[Block]:
    """All blocks of a document, in order; README's fences, and between .EX and .EE of a page after a comment."""
    text = document.read_text()
    if document.suffix == ".md":
        return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    found = re.findall(r'^\.\\" (\w+)\n\.PP\n\.EX\n(.*?)^\.EE$', text, re.MULTILINE | re.DOTALL)
    assert len(found) == text.count("\n.EX\n"), f"{document}: each .EX needs a comment that says its kind"
    return [Block(kind, unescaped(body)) for kind, body in found]


def unescaped(text: str) -> str:
    """What a page shows for this source."""
    return re.sub(r"\\(\([a-z]{2}|.)", lambda found: _ESCAPES[found[0]], text)


def missing_lines(promised: str, printed: str) -> list[str]:
    """The lines of `promised` that `printed` lacks, in this order; a line may be a part of a printed one."""
    lines = iter(printed.splitlines())
    missing = []
    for line in promised.splitlines():
        pattern = ".*".join(map(re.escape, line.strip().split(ANYTHING)))
        if not any(re.search(pattern, candidate) for candidate in lines):
            missing.append(line)
    return missing
