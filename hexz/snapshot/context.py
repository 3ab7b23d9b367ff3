"""What all snapshots of a process share: caches, threads, and where parents and passwords come from."""

from __future__ import annotations

import os
from typing import NamedTuple

from hexz.cache import BlockCache, ByteBudget, Workers
from hexz.metrics import Metrics
from hexz.snapshot.manifests import Manifests
from hexz.snapshot.pages import PageCache
from hexz.storage.sealed import NO_POLICY, SealCache, SealPolicy, Seals

__all__ = ["DEFAULT_CACHE", "OpenContext", "lies_in", "new_context"]

DEFAULT_CACHE = 256 << 20
"""Bytes of decompressed blocks kept when nothing else is asked for."""
SMALLEST_INDEX_CACHE = 8 << 20
LARGEST_INDEX_CACHE = 64 << 20
SMALLEST_DECODING = 8 << 20
LARGEST_DECODING = 256 << 20
"""What may be decompressed at once is a quarter of the cache within these bounds, bytes; one block always may."""
SMALLEST_LASTING = 32 << 20
"""What the lists of pages and of hashes of all open snapshots may take however small the cache is, bytes."""


class OpenContext(NamedTuple):
    """The shared parts; one context for a process is usual."""

    blocks: BlockCache
    pages: PageCache
    workers: Workers
    metrics: Metrics
    decoding: ByteBudget
    manifests: Manifests
    sealed_pieces: SealCache
    seals: Seals
    password: bytes | None = None
    parent_dirs: tuple[str, ...] = ()
    follow_parents: bool = True
    """Snapshots that name parents are opened at all."""
    require_encrypted: bool = False
    """Snapshots, and parents, that are not encrypted are not opened."""
    take_undeclared: bool = False
    """A stream that declares no bytes has those that its blocks hold."""

    def in_parent_dirs(self, path: str) -> bool:
        """Whether the file at this real path lies in a folder that was named as one for parents."""
        return any(lies_in(path, os.path.realpath(folder)) for folder in self.parent_dirs)


def lies_in(path: str, folder: str) -> bool:
    """Whether `path` is below `folder`; both are real paths."""
    return path != folder and os.path.commonpath((folder, path)) == folder


def new_context(
    cache_size: int = DEFAULT_CACHE,
    password: bytes | None = None,
    parent_dirs: tuple[str, ...] = (),
    workers: int | None = None,
    seals: SealPolicy = NO_POLICY,
) -> OpenContext:
    """Fresh caches: `cache_size` bytes of blocks, and a quarter of that for pages of the index (8 to 64 MiB).

    The lists of pages and of hashes may take as much as the blocks together (at least `SMALLEST_LASTING`).

    `workers` is the number of threads that decompress ahead; default one fewer than cores.  `seals` says which
    seals are wanted beside snapshots and their parents.
    """
    index = min(max(cache_size // 4, SMALLEST_INDEX_CACHE), LARGEST_INDEX_CACHE)
    threads = Workers(workers)
    blocks = BlockCache(cache_size, threads.help)
    metrics = Metrics()
    metrics.cache, metrics.holdings, metrics.workers = blocks.counts, blocks.holdings, threads.count
    pages = PageCache(index, max(cache_size, SMALLEST_LASTING))
    decoding = ByteBudget(min(max(cache_size // 4, SMALLEST_DECODING), LARGEST_DECODING))
    return OpenContext(
        blocks, pages, threads, metrics, decoding, Manifests(), SealCache(), Seals(seals), password, parent_dirs
    )
