"""What all snapshots of a process share: caches, threads, and where parents and passwords come from."""

from __future__ import annotations

import os
from typing import NamedTuple

from hexz.cache import BlockCache, ByteBudget, Workers
from hexz.metrics import Metrics
from hexz.snapshot.lanes import Lane, Lanes
from hexz.snapshot.manifests import Manifests
from hexz.snapshot.pages import PageCache
from hexz.storage.opening import RemoteAccess
from hexz.storage.remote import LOCAL_ONLY, RemoteSettings, is_remote
from hexz.storage.remote.places import below
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
    lanes: Lanes
    remote: RemoteAccess
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
        """Whether the file at this real path, or address, lies in a folder that was named as one for parents."""
        if is_remote(path):
            return any(below(address, path) for address in self.remote.settings.parent_urls)
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
    remote: RemoteSettings = LOCAL_ONLY,
) -> OpenContext:
    """Fresh caches: `cache_size` bytes of blocks, and a quarter of that for pages of the index (8 to 64 MiB).

    The lists of pages and of hashes may take as much as the blocks together (at least `SMALLEST_LASTING`).

    `workers` is the number of threads that decompress ahead; default one fewer than cores.  `seals` says which
    seals are wanted beside snapshots and their parents, `remote` how those on servers are reached.
    """
    index = min(max(cache_size // 4, SMALLEST_INDEX_CACHE), LARGEST_INDEX_CACHE)
    threads = Workers(workers)
    blocks = BlockCache(cache_size, threads.help)
    metrics = Metrics()
    metrics.cache, metrics.holdings, metrics.workers = blocks.counts, blocks.holdings, threads.count
    pages = PageCache(index, max(cache_size, SMALLEST_LASTING))
    most = min(max(cache_size // 4, SMALLEST_DECODING), LARGEST_DECODING)
    decoding = ByteBudget(most)
    lanes = Lanes(Lane(threads, decoding, threads), most, far=workers != 0)
    access = RemoteAccess(remote, cache_size // 4)
    metrics.servers, metrics.disk_cache = access.server_figures, access.disk_cache_figures
    return OpenContext(
        blocks, pages, threads, metrics, decoding, lanes, access, Manifests(), SealCache(), Seals(seals), password,
        parent_dirs,
    )  # fmt: skip
