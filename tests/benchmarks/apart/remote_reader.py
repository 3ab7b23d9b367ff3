"""Reads a remote image once, in a process of its own, and says how long that took: one contender, one turn.

    python remote_reader.py KIND < job > result

KIND is ours, wheel (the released package, whose name is the same as ours), nbd, or fsspec; the interpreter, and
PYTHONPATH, have to be those that have it.  The job and the result are JSON: see `Job` and `main`.
"""

from __future__ import annotations

import importlib
import json
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Read = Callable[[int, int], bytes]
"""(offset, length) -> the bytes; one for each thread."""
Opened = Callable[[], Read]
"""Gives a `Read` to a thread, which may have a connection of its own."""
CACHE_BYTES = 512 << 20
BLOCK_BYTES = 64 << 10


class Job:
    """`address` of the image, `raw` with the bytes that it should have, `reads` (offset, length), `readers`."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.address: str = said["address"]
        self.raw: str = said["raw"]
        self.reads: list[tuple[int, int]] = [tuple(read) for read in said["reads"]]
        self.readers: int = said["readers"]
        self.lists: list[str] = said.get("lists", [])
        self.fill: bool = said.get("fill", False)
        self.disk_cache: str | None = said.get("disk_cache")
        self.record: str | None = said.get("record")


@contextmanager
def ours(job: Job) -> Iterator[Opened]:
    """This checkout's reader, with what the daemon does beside it."""
    from hexz.catalog.warming import Warming
    from hexz.format.prefetch import PrefetchList, format_prefetch
    from hexz.snapshot import new_context, open_snapshot
    from hexz.storage.remote import RemoteSettings
    from hexz.tools.prefetch import read_lists

    settings = RemoteSettings(disk_cache=job.disk_cache, disk_cache_size=1 << 30)
    context = new_context(CACHE_BYTES, remote=settings)
    warming = Warming(read_lists(job.lists), job.fill, 0)
    with open_snapshot(job.address, context) as snapshot:
        warming.begin(snapshot)
        stream = snapshot.disk
        assert stream is not None

        def read(offset: int, length: int) -> bytes:
            views = stream.read(offset, length)
            return bytes(views[0]) if len(views) == 1 else b"".join(views)

        yield lambda: read
        warming.end()
        first = snapshot.file.first_reads
        if job.record is not None and first is not None:
            with open(job.record, "w", encoding="ascii") as file:
                one = PrefetchList(snapshot.file_size, snapshot.file.fingerprint, first.spans())
                file.write(format_prefetch([one]))
    context.remote.close()


@contextmanager
def wheel(job: Job) -> Iterator[Opened]:
    """A released hexz."""
    from hexz import hexz_loader

    reader = hexz_loader.Reader(job.address, allow_restricted=True)
    yield lambda: lambda offset, length: bytes(reader.read(size=length, offset=offset))
    reader.close()


@contextmanager
def over_nbd(job: Job) -> Iterator[Opened]:
    """An NBD server that reads from afar; each reader has a connection of its own."""
    import nbd

    def connect() -> Read:
        handle = nbd.NBD()
        handle.connect_uri(job.address)
        return lambda offset, length: bytes(handle.pread(length, offset))

    first = [connect()]
    yield lambda: first.pop() if first else connect()


@contextmanager
def with_fsspec(job: Job) -> Iterator[Opened]:
    """fsspec's cache of blocks, which is for one thread."""
    import fsspec

    files = fsspec.filesystem("http")
    with files.open(job.address, "rb", block_size=BLOCK_BYTES, cache_type="blockcache",
                    cache_options={"maxblocks": CACHE_BYTES // BLOCK_BYTES}) as file:  # fmt: skip

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return bytes(file.read(length))

        yield lambda: read


KINDS: dict[str, Callable[[Job], AbstractContextManager[Opened]]] = {
    "ours": ours, "wheel": wheel, "nbd": over_nbd, "fsspec": with_fsspec,
}  # fmt: skip


MODULES = {
    "ours": ("hexz.catalog.warming", "hexz.snapshot", "hexz.storage.remote.stores", "hexz.tools.prefetch"),
    "wheel": ("hexz.hexz_loader",),
    "nbd": ("nbd",),
    "fsspec": ("fsspec.implementations.http",),
}
"""What is imported before the clock runs."""


def main(kind: str) -> None:
    """Open, read everything with so many readers that take the next read each, and compare every byte."""
    job = Job(json.load(sys.stdin))
    for module in MODULES[kind]:
        importlib.import_module(module)
    with open(job.raw, "rb") as file:
        expected = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    turns = iter(job.reads)
    lock = threading.Lock()  # guards `turns`
    wrong: list[str] = []

    def run(opened: Opened) -> None:
        try:
            read = opened()
            while True:
                with lock:
                    turn = next(turns, None)
                if turn is None:
                    return
                offset, length = turn
                if read(offset, length) != expected[offset : offset + length]:
                    wrong.append(f"{length} bytes at {offset} are others")
        except Exception as error:
            wrong.append(repr(error))

    began = time.perf_counter()
    with KINDS[kind](job) as opened:
        open_s = time.perf_counter() - began
        if job.readers == 1:
            run(opened)
        else:
            threads = [threading.Thread(target=run, args=(opened,)) for _ in range(job.readers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        took = time.perf_counter() - began
    print(json.dumps({"took_s": took, "open_s": open_s, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
