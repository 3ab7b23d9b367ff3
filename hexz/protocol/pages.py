"""One page of a sorted listing: prefix, delimiter, where to go on.

Source: Amazon S3 API Reference, "ListObjectsV2"; "Organizing objects using prefixes".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["MAX_ENTRIES", "ListingPage", "list_page"]

MAX_ENTRIES = 1000
"""Most entries of one page of any listing, and how many there are when the client names no number."""
_LAST_CHARACTER = 0x10FFFF


class ListingPage(NamedTuple):
    """Keys and common prefixes, both sorted; `last` is the last of either, "" when there is none."""

    keys: list[str]
    prefixes: list[str]
    truncated: bool
    last: str

    @property
    def total(self) -> int:
        """How many entries it has."""
        return len(self.keys) + len(self.prefixes)


def list_page(keys: Sequence[str], prefix: str, delimiter: str, after: str, limit: int) -> ListingPage:
    """Up to `limit` entries behind `after` of the sorted `keys` that begin with `prefix`.

    Keys with `delimiter` behind the prefix are rolled up into one common prefix, which counts as one
    entry and is found without a look at each of them.
    Strings compare by code point, which is the order of their UTF-8 bytes.
    """
    page = ListingPage([], [], False, "")
    if not limit:
        return page
    last = ""
    position = bisect_left(keys, prefix)
    if after >= prefix:
        position = max(position, bisect_right(keys, after))
    while position < len(keys) and keys[position].startswith(prefix):
        key = keys[position]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        group = key[: cut + len(delimiter)] if cut >= 0 else ""
        if not group or group > after:
            if page.total == limit:
                return page._replace(truncated=True, last=last)
            last = group or key
            (page.prefixes if group else page.keys).append(last)
        position = bisect_left(keys, _behind(group), position) if group else position + 1
    return page._replace(last=last)


def _behind(prefix: str) -> str:
    """The first string in order that is behind all strings that begin with `prefix`."""
    kept = prefix.rstrip(chr(_LAST_CHARACTER))
    if not kept:
        return prefix + chr(_LAST_CHARACTER) * 1024  # behind any key: they have 1024 bytes at most
    return kept[:-1] + chr(ord(kept[-1]) + 1)
