"""``hexz info``: what is in a snapshot."""

from __future__ import annotations

import json
import time
from typing import Any

from hexz.format.codec import CRC32_BY
from hexz.format.digest import NO_HASH
from hexz.printable import printable
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.storage.sealed import NO_POLICY, SealPolicy
from hexz.units import format_size

__all__ = ["describe", "info"]

SMALL_CACHE = 8 << 20
FASTER = "; several times as fast: pip install isal"


def info(
    path: str,
    as_json: bool,
    password: bytes | None,
    parent_dirs: tuple[str, ...],
    seals: SealPolicy = NO_POLICY,
) -> str:
    """The facts of the snapshot at `path`, as JSON or as a table for people."""
    with open_snapshot(path, new_context(SMALL_CACHE, password, parent_dirs, workers=0, seals=seals)) as snapshot:
        seal = snapshot.storage.seal
        root = seal.root if seal is not None else None
        checked = snapshot.file.checks_hashes
        facts = {
            **snapshot.info(),
            "seal_root": root,
            "hashes_checked": checked,
            "crc32_by": CRC32_BY,
            "blocks": describe(snapshot),
        }
        return json.dumps(facts, indent=2) if as_json else _table(facts)


def describe(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """Blocks of each kind in each stream, data with a recorded hash, and the bytes stored.  Reads the whole index."""
    counts: dict[str, dict[str, int]] = {}
    for name, stream in snapshot.streams.items():
        kinds = {"data": 0, "zero": 0, "parent": 0, "hashed": 0, "stored_bytes": 0}
        for page in stream.pages.each():
            listed = page.count - page.unlisted
            data = page.count - page.stored.count(0)
            parents = 0 if page.only_data() else sum(page.in_parent(number) for number in range(page.count))
            kinds["data"] += data
            kinds["parent"] += parents
            kinds["zero"] += listed - data - parents
            kinds["hashed"] += sum(
                1 for stored, found in zip(page.stored, page.hashes()) if stored and found != NO_HASH
            )
            kinds["stored_bytes"] += sum(page.stored)
        counts[name] = kinds
    return counts


def _table(facts: dict[str, Any]) -> str:
    rows = [
        ("file", f"{facts['path']}, {format_size(facts['file_size'])}"),
        ("modified", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["modified"]))),
        ("layout", f"{facts['layout']}, {facts['compression']}, {_blocks(facts)}"),
    ]
    if facts["dictionary"]:
        rows.append(("dictionary", format_size(facts["dictionary"])))
    marks = [name for name in ("encrypted", "signed") if facts[name]]
    if marks:
        rows.append(("marks", ", ".join(marks)))
    if facts["seal_root"]:
        rows.append(("sealed", f"{facts['sealed']}, root {facts['seal_root']}"))
    rows.append(("checks", f"CRC-32 of each block, by {facts['crc32_by']}{FASTER if CRC32_BY == 'zlib' else ''}"))
    hashed = sum(kinds["hashed"] for kinds in facts["blocks"].values())
    if hashed:
        checked = "checked when they are read" if facts["hashes_checked"] else "not checked here: pip install blake3"
        rows.append(("hashes", f"BLAKE3 of {hashed} blocks, {checked}"))
    for name, stream in facts["streams"].items():
        kinds = facts["blocks"][name]
        kept = ", ".join(f"{kinds[kind]} {kind}" for kind in ("data", "zero", "parent") if kinds[kind])
        rows.append((name, f"{format_size(stream['size'])} ({stream['size']} bytes); blocks: {kept or 'none'}"))
    for parent in facts["parents"]:
        rows.append(("parent", f"{parent['stored']} at {parent['path']}"))
    if facts["files"] is not None:
        rows.append(("files", str(facts["files"])))
    elif facts["metadata_bytes"]:
        rows.append(("metadata", format_size(facts["metadata_bytes"])))
    rows += [("odd", oddity) for oddity in facts["oddities"]]
    return "\n".join(f"{label:<11}{printable(text)}" for label, text in rows)


def _blocks(facts: dict[str, Any]) -> str:
    size = format_size(facts["block_size"])
    return f"blocks of varying size around {size}" if facts["variable_blocks"] else f"blocks of {size}"
