"""What the disk cache has is not fetched again, whatever is read beside it."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from hexz.storage.interface import Around
from hexz.storage.remote import RemoteSettings
from hexz.storage.remote.file import HEAD, RemoteFile
from hexz.storage.remote.stores import Stores
from hexz.storage.remote.table import Part, parted
from tests.remote.stores import nginx
from tests.waiting import until

SIZE = 6 << 20


def idle(file: RemoteFile) -> bool:
    """Whether nothing is on its way or will be, to here or to the disk."""
    fetchers = file.lane.fetchers
    return fetchers._free == fetchers._threads and not any(fetchers._tasks)


@pytest.mark.parametrize("memory", [16 << 20, 128 << 20])
def test_bytes_on_the_disk_are_not_fetched_with_their_neighbours(tmp_path: Path, memory: int) -> None:
    served = tmp_path / "served"
    served.mkdir()
    data = random.Random(1).randbytes(SIZE)
    (served / "file").write_bytes(data)
    settings = RemoteSettings(disk_cache=str(tmp_path / "cache"), disk_cache_size=64 << 20)
    source = random.Random(memory)
    with nginx(served) as store:
        stores = Stores(settings, memory)
        file = stores.open(store.url("file"))
        for _ in range(300):
            start = source.randrange(SIZE)
            end = min(start + source.randrange(1, 100_000), SIZE)
            wanted = [(start, end), (min(end + source.randrange(300_000), SIZE - 1), SIZE)]
            if source.random() < 0.2:
                file.will_need([(first, min(first + 50_000, last)) for first, last in wanted])
            before, behind = range(start, 0, -20_000)[1:10], range(end, SIZE, 20_000)[1:10]
            around = partial(Around, before, behind, True, True) if source.random() < 0.7 else None
            assert file.view(start, end - start, around) == data[start:end]
            if source.random() < 0.2:  # otherwise what is in memory hides what the disk has
                with file._table.lock:
                    file._table.clear()
            until(lambda: idle(file))
        held = file.figures().held
        # The beginning tells at each opening what version this is.
        assert SIZE / 2 < held <= file.lane.measured.received <= held + HEAD
        file.close()
        stores.close()


PARTED = [
    ((0, 10), [], [Part(0, 10, None)]),
    ((0, 10), [(0, 10)], [Part(0, 10, (0, 10))]),
    ((2, 8), [(0, 10)], [Part(2, 8, (0, 10))]),
    ((2, 8), [(0, 3), (7, 9)], [Part(2, 3, (0, 3)), Part(3, 7, None), Part(7, 8, (7, 9))]),
    ((2, 8), [(0, 2), (4, 5), (8, 9)], [Part(2, 4, None), Part(4, 5, (4, 5)), Part(5, 8, None)]),
]


@pytest.mark.parametrize(("span", "lacking", "parts"), PARTED)
def test_a_span_is_cut_where_the_disk_begins_and_ends(
    span: tuple[int, int], lacking: list[tuple[int, int]], parts: list[Part]
) -> None:
    assert parted(*span, lacking) == parts
