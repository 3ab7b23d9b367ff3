"""The daemon's memory stays near the size of its cache, however many connections read at once."""

from __future__ import annotations

import os
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hexz.tools.pack import pack
from tests.peers import Server

IMAGE_BYTES = 256 << 20
CACHE_BYTES = 64 << 20
READERS = 12
PART = 4 << 20
MARGIN = 96 << 20
"""The interpreter, threads, what is being sent and decompressed, and holes in the heap."""


def test_many_cold_readers(tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "big.hxz"
    with raw.open("wb") as file:
        for _ in range(IMAGE_BYTES // PART):
            file.write(os.urandom(PART // 2) + bytes(range(256)) * (PART // 512))
    pack(str(raw), str(packed))
    with Server("--http-port", 0, "--cache-size", CACHE_BYTES, packed) as server:

        def read(start: int) -> int:
            span = {"Range": f"bytes={start}-{start + PART - 1}"}
            with urllib.request.urlopen(urllib.request.Request(f"{server.http}/disk", headers=span)) as answer:
                return len(answer.read())

        with ThreadPoolExecutor(READERS) as pool:
            for _ in range(2):
                assert sum(pool.map(read, range(0, IMAGE_BYTES, PART))) == IMAGE_BYTES
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        most = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert most is not None
        assert int(most[1]) << 10 < CACHE_BYTES + MARGIN
