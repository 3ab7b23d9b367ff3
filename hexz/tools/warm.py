"""Fetch what a list names, or a whole snapshot, into a disk cache, before a daemon uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from hexz.catalog.warming import fillings
from hexz.errors import UsageError
from hexz.snapshot import new_context, open_snapshot
from hexz.storage.remote import RemoteSettings, is_remote
from hexz.storage.sealed import SealPolicy
from hexz.tools.prefetch import read_lists
from hexz.tools.progress import Progress

__all__ = ["Warmed", "warm"]


class Warmed(NamedTuple):
    """Bytes that were wanted, and of them those that could not be had."""

    wanted: int
    failed: int


def warm(
    address: str, lists: Sequence[str], whole: bool, folder: str, size: int, rate: int, password: bytes | None,
    parent_dirs: tuple[str, ...], seals: SealPolicy,
) -> Warmed:  # fmt: skip
    """Fetch into the disk cache in `folder`, of `size` bytes: what `lists` name, with `whole` everything.

    At most `rate` bytes a second, 0 for any.  Parents come along.
    Raises: UsageError, ConfigError (a daemon has the folder), and what opening a snapshot raises.
    """
    if not is_remote(address):
        raise UsageError(f"{address}: only snapshots on servers are fetched: http://, https:// or s3://")
    settings = RemoteSettings(disk_cache=os.path.abspath(folder), disk_cache_size=size)
    named = read_lists(lists)
    context = new_context(password=password, parent_dirs=parent_dirs, seals=seals, remote=settings)
    try:
        with open_snapshot(address, context) as snapshot:
            work = fillings(snapshot, named, whole, rate)
            if lists and not any(one.total for one in work):
                raise UsageError(f"{snapshot.path}: none of the lists is of this snapshot, as it is now")
            total = sum(one.total for one in work)
            with Progress(snapshot.path, total) as progress:
                for one in work:
                    before = 0

                    def advance(done: int) -> None:
                        nonlocal before
                        progress.advance(done - before)
                        before = done

                    one.run(advance)
            return Warmed(total, sum(one.failed for one in work))
    finally:
        context.remote.close()
