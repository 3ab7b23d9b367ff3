"""Kills, full disks and I/O errors in the middle of writing: no flushed byte is lost, and no block is half written."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.images.backend import Session
from hexz.images.upload import copy_body
from tests.images.crash_writer import every_call, random_kills


class Noting(Session):
    """A session that notes where it was written."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.writes: list[tuple[int, bytes]] = []

    def read(self, offset, length):  # type: ignore[no-untyped-def]
        raise AssertionError

    def extents(self, offset, length, dirty):  # type: ignore[no-untyped-def]
        raise AssertionError

    def write(self, offset: int, data: memoryview) -> None:
        self.writes.append((offset, bytes(data)))


@given(
    st.sampled_from([512, 4096, 65536, 1 << 20]),
    st.integers(0, 3 << 20),
    st.one_of(st.integers(1, 5000), st.sampled_from([60_000, 65536, 65537, 300_000, (2 << 20) + 7])),
)
def test_all_that_comes_for_a_block_is_written_at_once(block: int, offset: int, length: int) -> None:
    session = Noting(block)
    body = bytes(range(256)) * (length // 256 + 1)
    copy_body(session, offset, io.BytesIO(body[:length]), length)
    assert b"".join(data for _, data in session.writes) == body[:length]
    touched: set[int] = set()
    for start, data in session.writes:
        blocks = set(range(start // block, (start + len(data) - 1) // block + 1))
        assert not touched & blocks
        touched |= blocks


def test_100_kills_at_random_moments_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    print(random_kills(tmp_path, 100, os.getpid()))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["kill", "torn"])
def test_a_kill_at_any_system_call_leaves_each_block_old_or_new(tmp_path: Path, kind: str, seed: int) -> None:
    print(every_call(tmp_path, kind, seed, 12))


@pytest.mark.parametrize(("kind", "lasting"), [("ENOSPC", 1), ("ENOSPC", 9), ("EIO", 1), ("EIO", 9)])
def test_an_error_at_any_system_call_is_told_and_the_overlay_recovers_with_the_disk(
    tmp_path: Path, kind: str, lasting: int
) -> None:
    print(every_call(tmp_path, kind, 3, 12, lasting))
