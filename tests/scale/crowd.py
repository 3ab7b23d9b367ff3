"""Clients: each on a connection of its own reads ranges now and then, and compares every byte with the original."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import random
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp

from hexz.snapshot import new_context, open_snapshot

SMALLEST, LARGEST = 4 << 10, 64 << 10
"""Bytes that one read asks for."""
PACE_S = 2.0
"""About how long a client thinks between two reads."""
PATIENCE_S = 60.0
NEW = 0.5
"""So many of the reads are in the last region that came."""
REGION = 2 << 20
"""Bytes of the regions of an image; they come one after the other, but in no order that could be guessed."""


class Image:
    """A snapshot that is read, as it was before it was packed; and where its blocks are stored."""

    def __init__(self, raw: Path, packed: Path) -> None:
        self.name = packed.stem
        with raw.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.regions = list(range(0, len(self.data), REGION))
        random.Random(self.name).shuffle(self.regions)
        self._starts: list[int] = []
        self._stored: list[tuple[int, int]] = []
        snapshot = open_snapshot(str(packed), new_context())
        with contextlib.closing(snapshot):
            for page in snapshot.streams["disk"].pages.each():
                for number in range(page.count):
                    self._starts.append(page.block_start(number))
                    self._stored.append((page.stored_offset(number), page.stored[number]))

    def blocks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Stored places (offset, length) of what bytes `start` to `stop` need; zeros have none."""
        first, last = bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1)
        return [place for place in self._stored[first:last] if place[1]]


class Trouble(NamedTuple):
    """A read that did not end well: at what moment (seconds of `time.monotonic`), what happened, how long it took."""

    at: float
    what: str
    took_s: float


class Crowd:
    """The clients, in a thread of their own.

    They read from one part of the images after the other: what they were not asked for yet is cold at any moment.
    """

    def __init__(self, clients: int, url: str, images: Sequence[Image], growing_s: float) -> None:
        """From nothing to everything in `growing_s` seconds; at `url` they find all the images."""
        self.wrong: list[str] = []
        self._clients = clients
        self._url = url
        self._images = images
        self._growing_s = growing_s
        self._began = time.monotonic()
        self.took: list[float] = []
        """How long each read took, seconds; `take` begins anew."""
        self.trouble: list[Trouble] = []
        self.touched: Counter[str] = Counter()
        """Bytes of stored blocks that who asked a daemon needed, each once, by the daemon's address."""
        self._seen: set[tuple[str, str, int]] = set()
        self._random = random.Random(5)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="crowd")

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def take(self) -> tuple[list[float], list[Trouble]]:
        """What came of the reads that ended since this was asked the last time."""
        took, self.took = self.took, []
        trouble, self.trouble = self.trouble, []
        return took, trouble

    def watch(self, seconds: float) -> None:
        """Let them read.  Raises: what ended the clients."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._thread.join(0.1)
            if not self._thread.is_alive():
                raise RuntimeError("the clients ended") from self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:
            self._failure = error

    async def _all(self) -> None:
        clients = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        while not self._over.is_set() and not any(client.done() for client in clients):
            await asyncio.sleep(0.05)
        for client in clients:
            client.cancel()
        for end in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(end, Exception):
                raise end

    async def _client(self, number: int) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=PATIENCE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.sleep(PACE_S * number / self._clients)
            while True:
                await self._read(session)
                await asyncio.sleep(2 * PACE_S * self._random.random())

    def _choose(self) -> tuple[Image, int, int]:
        number = self._random.randrange(len(self._images))
        image = self._images[number]
        length = self._random.randrange(SMALLEST, LARGEST)
        grown = (time.monotonic() - self._began) / self._growing_s
        # Not of all images at the same time.
        count = min(int(1 + len(image.regions) * grown + number / len(self._images)), len(image.regions))
        least = count - 1 if self._random.random() < NEW and count < len(image.regions) else 0
        start = image.regions[self._random.randrange(least, count)] + self._random.randrange(REGION)
        start = min(start, len(image.data) - length)
        return image, start, start + length

    async def _read(self, session: aiohttp.ClientSession) -> None:
        image, start, stop = self._choose()
        asked = time.monotonic()
        url = f"{self._url}/snapshots/{image.name}/disk"
        try:
            async with session.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}) as answer:
                body = await answer.read()
                status, server = answer.status, answer.headers.get("X-Served-By", "")
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as error:
            self._note(asked, type(error).__name__)
            return
        if status != 206:
            self._note(asked, f"{status} {body[:80].decode('latin-1').strip()}")
            return
        if body != image.data[start:stop]:
            self.wrong.append(f"{image.name} {start}-{stop} from {server}")
        self.took.append(time.monotonic() - asked)
        server = server.rpartition(", ")[2]
        for place, length in image.blocks(start, stop):
            if (server, image.name, place) not in self._seen:
                self._seen.add((server, image.name, place))
                self.touched[server] += length

    def _note(self, asked: float, what: str) -> None:
        now = time.monotonic()
        self.trouble.append(Trouble(now, what, now - asked))
