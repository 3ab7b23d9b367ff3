"""The sample files of every release: a selection in ``corpus``; the whole sets where they lie beside the checkout."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STREAMS = {"disk": "main", "memory": "aux"}


def folders() -> list[Path]:
    """The whole sets, each with a ``vectors.json``; where there is none, the selection.

    They are in the folders of $HEXZ_VECTORS (several are separated by colons), else beside the checkout; a set may
    have a part of its own in a folder ``pipes``.
    """
    named = os.environ.get("HEXZ_VECTORS")
    if named:
        sets = [Path(folder) for folder in named.split(":")]
    else:
        beside = [ROOT.parent / "shared" / name for name in ("vectors", "vectors-cli")]
        sets = [folder for folder in beside if (folder / "vectors.json").is_file()] or [ROOT / "tests" / "corpus"]
    return sets + [folder / "pipes" for folder in sets if (folder / "pipes" / "vectors.json").is_file()]


@cache
def load() -> dict[str, dict[str, Any]]:
    """Facts of each file, by its name."""
    return {
        vector["file"]: {**vector, "folder": folder}
        for folder in folders()
        for vector in json.loads((folder / "vectors.json").read_text())["vectors"]
    }


def path(name: str) -> Path:
    """Where a sample file is."""
    return Path(load()[name]["folder"]) / name


def archived(vector: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The files that it lists, by path: of equal ones the last; None when it lists none."""
    listed = vector.get("files", vector.get("source_files"))
    if listed is None:
        return None
    return {file.get("path", file.get("name")): file for file in listed}


def password(vector: dict[str, Any]) -> str | None:
    """The password that opens the file and its parents."""
    chain = [vector, *(load()[name] for name in vector["parents"])]
    return next((one["password"] for one in chain if one["password"]), None)


def expected(vector: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Size, hash and ranges by stream name, for streams that are not empty."""
    found = {name: vector["streams"].get(key) for name, key in STREAMS.items()}
    return {name: facts for name, facts in found.items() if facts and facts["size"]}


def spans(facts: dict[str, Any]) -> list[tuple[int, int, str]]:
    """(offset, length clipped to the stream, hash) of the ranges that are not empty."""
    return [(one["offset"], one["returned"], one["sha256"]) for one in facts["ranges"] if one["returned"]]
