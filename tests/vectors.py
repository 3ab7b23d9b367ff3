"""The sample files of every release: a selection in ``corpus``, and the whole set where it lies beside the checkout."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STREAMS = {"disk": "main", "memory": "aux"}


def folder() -> Path:
    """The whole set if it is there ($HEXZ_VECTORS or ../shared/vectors), else the selection."""
    for place in (os.environ.get("HEXZ_VECTORS"), ROOT.parent / "shared" / "vectors"):
        if place and (Path(place) / "vectors.json").is_file():
            return Path(place)
    return ROOT / "tests" / "corpus"


@cache
def load() -> dict[str, dict[str, Any]]:
    """Facts of each file, by its name."""
    listed = json.loads((folder() / "vectors.json").read_text())["vectors"]
    return {vector["file"]: vector for vector in listed}


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
