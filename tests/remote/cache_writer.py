"""A process that keeps pieces of two files until it is killed."""

from __future__ import annotations

import random
import sys
import threading

from hexz.storage.diskcache.cache import DiskCache
from tests.remote.content import content

FILE_SIZE = 3 << 20
THREADS = 3


def write(cache: DiskCache, seed: int) -> None:
    source = random.Random(seed)
    number = source.randrange(2)
    file = cache.open(f"file {number}")
    while True:
        start = source.randrange(FILE_SIZE)
        end = min(start + source.choice((1, 700, 5000, 70_000, 300_000)), FILE_SIZE)
        if source.random() < 0.3:
            data = file.read(start, end)
            assert data is None or data == content(number, start, end)
        file.keep(start, content(number, start, end))


if __name__ == "__main__":
    shared = DiskCache(sys.argv[1], int(sys.argv[2]))
    for thread in range(THREADS):
        threading.Thread(target=write, args=(shared, int(sys.argv[3]) * THREADS + thread)).start()
    print("ready", flush=True)
