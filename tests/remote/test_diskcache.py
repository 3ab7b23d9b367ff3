"""The disk cache: what was kept is read back or is not there, whatever becomes of disk, process and folder."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hexz.errors import ConfigError
from hexz.storage.diskcache import pieces, segments, shelf
from hexz.storage.diskcache.cache import MIN_SIZE, CachedFile, DiskCache
from hexz.storage.diskcache.segments import (
    HEAD_SIZE,
    RECORD_SIZE,
    Layout,
    build_head,
    build_record,
    digest_of,
    parse_head,
)
from tests.peers import ROOT, run
from tests.remote.cache_writer import FILE_SIZE
from tests.remote.content import content, taken
from tests.waiting import until

MIB = 1 << 20
mounts = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of its own")
of_others = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), 64 * MIB)) as made:
        yield made


def keep(file: CachedFile, number: int, start: int, end: int) -> None:
    file.keep(start, content(number, start, end))


def check(file: CachedFile, number: int, end: int = FILE_SIZE, step: int = 10_000) -> int:
    """Read everything of a file in turn; bytes that were there, all of them right."""
    found = 0
    for start in range(0, end, step):
        stop = min(start + step, end)
        gaps = file.missing(start, stop)
        at = start
        for begin, after in [*gaps, (stop, stop)]:
            data = file.read(at, begin)
            if data is not None:
                assert data == content(number, at, begin)
                found += len(data)
            at = after
    return found


def segment_files(folder: Path) -> list[Path]:
    """Every segment, the oldest first."""
    return sorted(folder.glob("*/*"), key=lambda path: path.name)


KEPT: list[tuple[str, list[tuple[int, int]], tuple[int, int], list[tuple[int, int]]]] = [
    ("nothing", [], (0, 10), [(0, 10)]),
    ("an empty span", [], (5, 5), []),
    ("an empty piece", [(5, 5)], (0, 10), [(0, 10)]),
    ("all of it", [(0, 10)], (0, 10), []),
    ("a part of a piece", [(0, 100_000)], (4095, 4098), []),
    ("the last byte", [(0, 100_001)], (100_000, 100_001), []),
    ("a gap before", [(5, 10)], (0, 10), [(0, 5)]),
    ("a gap behind", [(0, 5)], (0, 10), [(5, 10)]),
    ("a gap between", [(0, 5), (7, 10)], (0, 10), [(5, 7)]),
    ("gaps all over", [(2, 3), (5, 7)], (0, 10), [(0, 2), (3, 5), (7, 10)]),
    ("neighbours", [(0, 5), (5, 10)], (2, 8), []),
    ("neighbours, the last one first", [(5, 10), (0, 5)], (2, 8), []),
    ("the same twice", [(0, 10), (0, 10)], (0, 10), []),
    ("overlapping", [(0, 6), (4, 10)], (0, 10), []),
    ("around what is there", [(4, 6), (0, 10)], (0, 10), []),
    ("within what is there", [(0, 10), (4, 6)], (0, 10), []),
    ("over the edge of a cell", [(MIB - 3, MIB + 3)], (MIB - 2, MIB + 2), []),
    ("some cells", [(100, 3 * MIB + 5)], (100, 3 * MIB + 5), []),
    ("far away", [((1 << 50) + 1, (1 << 50) + 9)], ((1 << 50), (1 << 50) + 9), [((1 << 50), (1 << 50) + 1)]),
    (
        "a long span with little in it",
        [(1 << 40, (1 << 40) + 1)],
        (0, 1 << 41),
        [(0, 1 << 40), ((1 << 40) + 1, 1 << 41)],
    ),
]


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a restart"])
@pytest.mark.parametrize(("spans", "asked", "missing"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT])
def test_what_was_kept_is_read_and_the_rest_is_missing(
    tmp_path: Path, spans: list[tuple[int, int]], asked: tuple[int, int], missing: list[tuple[int, int]], again: bool
) -> None:
    cache = DiskCache(str(tmp_path / "cache"), 64 * MIB)
    file = cache.open("file")
    for span in spans:
        keep(file, 1, *span)
    if again:
        cache.close()
        cache = DiskCache(str(tmp_path / "cache"), 64 * MIB)
        file = cache.open("file")
    assert file.missing(*asked) == missing
    data = file.read(*asked)
    assert data == (None if missing else content(1, *asked))
    held = file.held()
    assert held == len({byte for start, end in spans for byte in range(start, end)})
    figures = cache.figures()
    assert (figures.hits, figures.misses) == ((0, 1) if missing else (1, 0))
    assert figures.written_bytes == (0 if again else held) and figures.files == bool(held)
    cache.close()


def test_handles_of_one_identity_share_and_others_meet_nothing(cache: DiskCache) -> None:
    one, two, other = cache.open("url etag1"), cache.open("url etag1"), cache.open("url etag2")
    keep(one, 1, 0, 5000)
    assert two.read(10, 5000) == content(1, 10, 5000)
    assert other.read(0, 10) is None and other.missing(0, 10) == [(0, 10)] and other.held() == 0
    one.close()
    one.close()
    assert one.read(0, 10) is None and one.missing(0, 10) == [(0, 10)]
    keep(one, 1, 5000, 6000)
    assert two.held() == 5000
    two.close()
    third = cache.open("url etag1")
    assert third.read(0, 5000) == content(1, 0, 5000)
    keep(third, 1, 5000, 6000)
    assert cache.figures().files == 1 and len(third.missing(0, 7000)) == 1
    cache.close()
    cache.close()
    assert third.read(0, 10) is None and third.missing(0, 10) == [(0, 10)]
    keep(third, 1, 6000, 7000)


@pytest.mark.parametrize("identity", ["", "\0/../", "x" * 10_000, "é\udcff\n", 'https://host/a?b=c "etag" 17'])
def test_an_identity_is_any_text(tmp_path: Path, identity: str) -> None:
    for _ in range(2):
        with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
            file = cache.open(identity)
            if not file.held():
                keep(file, 1, 0, 100)
            assert file.read(0, 100) == content(1, 0, 100)


def test_others_may_not_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
            keep(cache.open("file"), 1, 0, 100)
    finally:
        os.umask(old)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]}
    assert len(found) == 4
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o600}


def a_file(path: Path) -> None:
    path.write_text("mine")


def written_by_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o770)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "gone" / "away")


def folder_of_others(path: Path) -> None:
    path.mkdir()
    os.chown(path, 12345, -1)


def link_of_others(path: Path) -> None:
    (path.parent / "real").mkdir(mode=0o700)
    path.symlink_to(path.parent / "real")
    os.chown(path, 12345, -1, follow_symlinks=False)


def lock_is_a_link(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "lock").symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (a_file, "File exists"),
        (written_by_others, r"others may write to it \(chmod go-w\)"),
        (dangling, "File exists"),
        pytest.param(folder_of_others, "belongs to user 12345", marks=of_others),
        pytest.param(link_of_others, "symbolic link of user 12345", marks=of_others),
        (lock_is_a_link, "symbolic links"),
    ],
)
def test_a_folder_that_is_not_safe_is_refused(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "cache"
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=f"cannot be the disk cache: .*{said}"):
        DiskCache(str(path), MIN_SIZE)
    assert len(os.listdir("/proc/self/fd")) == before and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("path", ["/proc/nowhere/cache", "/dev/null/cache", "a\0b"])
def test_a_folder_that_cannot_be_made_is_an_error(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the disk cache"):
        DiskCache(path, MIN_SIZE)


def test_a_cache_has_to_have_some_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least, not 1048575"):
        DiskCache(str(tmp_path / "cache"), MIN_SIZE - 1)
    assert not (tmp_path / "cache").exists()


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
        keep(cache.open("file"), 1, 0, 100)
    assert segment_files(tmp_path / "real")


def test_what_is_not_the_caches_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    strange = [folder / "photos" / "me.jpg", folder / ("a" * 40) / "notes", folder / ("b" * 39) / ("0" * 16)]
    for path in strange:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(2 * MIB))
    (folder / ("c" * 40)).symlink_to(tmp_path)
    folder.chmod(0o700)
    with contextlib.closing(DiskCache(str(folder), MIN_SIZE)) as cache:
        file = cache.open("file")
        for start in range(0, 4 * MIB, 50_000):
            keep(file, 1, start, start + 50_000)
        assert file.held() and cache.figures().evicted_bytes
    assert all(path.read_bytes() == bytes(2 * MIB) for path in strange)


def writer(folder: Path, size: int, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.remote.cache_writer", str(folder), str(size), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_two_daemons_do_not_share_a_folder(tmp_path: Path) -> None:
    process = writer(tmp_path / "cache", MIN_SIZE, 1)
    try:
        with pytest.raises(ConfigError, match=f"process {process.pid} uses this disk cache"):
            DiskCache(str(tmp_path / "cache"), MIN_SIZE)
        (tmp_path / "cache" / "lock").write_text("nonsense")
        with pytest.raises(ConfigError, match="another process uses this disk cache"):
            DiskCache(str(tmp_path / "cache"), MIN_SIZE)
    finally:
        process.kill()
        process.communicate()
    first = DiskCache(str(tmp_path / "cache"), MIN_SIZE)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} uses"):
        DiskCache(str(tmp_path / "cache"), MIN_SIZE)
    first.close()
    DiskCache(str(tmp_path / "cache"), MIN_SIZE).close()


def test_a_cache_is_killed_at_any_moment(tmp_path: Path) -> None:
    folder, size = tmp_path / "cache", 4 * MIB
    source = random.Random(5)
    found = 0
    for round_ in range(20):
        process = writer(folder, size, round_)
        time.sleep(source.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL and not output
        assert taken(folder) <= size
        with contextlib.closing(DiskCache(str(folder), size)) as cache:
            for number in range(2):
                file = cache.open(f"file {number}")
                held = file.held()
                # Nothing that is in a map was lost: the process went, the system did not.
                assert check(file, number) == held
                found += held
            figures = cache.figures()
            assert (figures.damaged, figures.failures) == (0, 0) and figures.held <= size
    assert found > 20 * MIB


def fill(folder: Path, seed: int) -> None:
    """Make a cache with pieces of two files."""
    source = random.Random(seed)
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        for number in range(2):
            file = cache.open(f"file {number}")
            for _ in range(60):
                start = source.randrange(FILE_SIZE - 50_000)
                keep(file, number, start, start + source.randrange(1, 50_000))


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_damage_never_becomes_wrong_bytes(tmp_path: Path, seed: int, running: bool) -> None:
    folder = tmp_path / "cache"
    fill(folder, seed)
    source = random.Random(seed)

    def damage() -> None:
        for path in segment_files(folder):
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(24 << 10)  # where pieces begin
                file.write(source.randbytes(5000))
                for _ in range(source.choice((1, 10, 100))):
                    at = source.randrange(source.choice((HEAD_SIZE, 8192, MIB)))
                    file.seek(min(at, size - 1))
                    file.write(source.choice((b"\0", b"\xff", source.randbytes(1), source.randbytes(5000))))
                if source.random() < 0.3:
                    file.truncate(source.randrange(size))

    if not running:
        damage()
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        files = [cache.open(f"file {number}") for number in range(2)]
        if running:
            assert all(check(file, number) == file.held() for number, file in enumerate(files))
            damage()
        for number, file in enumerate(files):
            check(file, number, step=200_000)
            held = file.held()
            assert check(file, number) == held, "what is damaged was found, and is missing from then on"
            if held < FILE_SIZE:
                for start, end in file.missing(0, FILE_SIZE):
                    keep(file, number, start, end)
            # A segment that was found to be of no use took those with it that were just written to it.
            for start, end in file.missing(0, FILE_SIZE):
                keep(file, number, start, end)
            whole = file.read(0, FILE_SIZE)
            assert whole is None or whole == content(number, 0, FILE_SIZE)
        assert cache.figures().damaged


def test_a_damaged_grain_costs_itself_alone_and_is_kept_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for restart in range(2):
        with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
            file = cache.open("file")
            if not restart:
                keep(file, 1, 100, 50_100)
                (path,) = segment_files(folder)
                data = bytearray(path.read_bytes())
                at = data.index(content(1, 100 + 3 * 4096, 100 + 4 * 4096))
                data[at + 17] ^= 4
                path.write_bytes(data)
                assert file.read(100, 5000) == content(1, 100, 5000)
                assert file.read(100, 50_100) is None
                assert file.missing(0, 60_000) == [(0, 100), (100 + 3 * 4096, 100 + 4 * 4096), (50_100, 60_000)]
                assert file.read(100 + 4 * 4096, 50_100) == content(1, 100 + 4 * 4096, 50_100)
                assert cache.figures().damaged == 1 and file.held() == 50_000 - 4096
                keep(file, 1, 0, 50_100)
            assert file.read(0, 50_100) == content(1, 0, 50_100)
            assert cache.figures().damaged == (0 if restart else 1)


def test_bytes_of_another_file_segment_or_place_are_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        one, two = cache.open("one"), cache.open("two")
        keep(one, 1, 0, 8192)
        keep(two, 2, 0, 8192)
        first, second = segment_files(folder)
        data = first.read_bytes()
        begin = data.index(content(1, 0, 4096)) - 4
        # A grain in another's place in its own segment.
        swapped = bytearray(data)
        swapped[begin : begin + 4100], swapped[begin + 4100 : begin + 8200] = (
            data[begin + 4100 : begin + 8200],
            data[begin : begin + 4100],
        )
        first.write_bytes(swapped)
        assert one.read(0, 8192) is None and one.missing(0, 8192) == [(0, 8192)]
        # The pieces of another file's segment.
        other = bytearray(second.read_bytes())
        other[HEAD_SIZE:] = data[HEAD_SIZE:]
        second.write_bytes(other)
        assert two.read(0, 8192) is None
    # Whole files, under another name or of another identity.
    first.write_bytes(data)
    shutil.copy(first, second)
    shutil.copy(first, first.with_name("1" * 16))
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        assert cache.open("one").read(0, 8192) == content(1, 0, 8192)
        assert cache.open("two").held() == 0
        assert cache.figures().damaged == 2
    assert segment_files(folder) == [first]


@pytest.mark.parametrize(
    ("slots", "capacity"),
    [(0, 100), (1 << 31, 100), (64, 0), (64, (1 << 32) - 1), ((1 << 32) - 1, (1 << 32) - 1), (64, 1 << 20)],
)
def test_a_head_sizes_nothing_that_is_not_possible(slots: int, capacity: int) -> None:
    head = build_head("file", 5, Layout(slots, capacity))
    parsed = parse_head(head, digest_of("file"), 5)
    possible = (slots, capacity) == (64, 1 << 20)
    assert (parsed is not None) == possible
    assert parse_head(head, digest_of("other"), 5) is None and parse_head(head, digest_of("file"), 6) is None
    for at in range(0, HEAD_SIZE, 7):
        assert parse_head(head[:at] + bytes([head[at] ^ 1]) + head[at + 1 :], digest_of("file"), 5) is None
    assert parse_head(head[:-1], digest_of("file"), 5) is None


def test_a_record_leads_nowhere_outside(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        keep(cache.open("file"), 1, 0, 5000)
    (path,) = segment_files(folder)
    head = parse_head(path.read_bytes()[:HEAD_SIZE], digest_of("file"), int(path.name, 16))
    assert head is not None
    layout, seed = head
    good = build_record(8192, 4096, layout.begin, seed)
    bad = [
        (8192, 0, layout.begin),
        (8192, (1 << 32) - 1, layout.begin),
        (8192, MIB, layout.begin),  # beyond its cell
        ((1 << 64) - 1, 1, layout.begin),
        (8192, 4096, 0),
        (8192, 4096, layout.length - 4096),
        (8192, 4096, (1 << 32) - 1),
    ]
    flipped = bytes([good[0] ^ 1]) + good[1:]
    records = [flipped, *(build_record(*fields, seed) for fields in bad)]
    with path.open("r+b") as file:
        file.seek(HEAD_SIZE + RECORD_SIZE)
        file.write(b"".join(records) + good[: RECORD_SIZE // 2])
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        assert cache.open("file").missing(0, MIB) == [(5000, MIB)]
    with path.open("r+b") as file:
        file.seek(HEAD_SIZE + RECORD_SIZE)
        file.write(good)
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        file = cache.open("file")
        assert file.missing(0, MIB) == [(5000, 8192), (8192 + 4096, MIB)], "it is believed that something is there"
        assert file.read(8192, 8200) is None and cache.figures().damaged == 1


@pytest.mark.parametrize("size", [MIN_SIZE, 3 * MIB, 5 * MIB])
def test_the_bound_holds_at_every_moment(tmp_path: Path, size: int) -> None:
    """Whenever the process is stopped, in the middle of a write too, no more is on the disk."""
    folder = tmp_path / "cache"
    process = writer(folder, size, 7)
    source = random.Random(8)
    most = 0
    try:
        for _ in range(60):
            time.sleep(source.random() * 0.02)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            most = max(most, taken(folder))
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        output, _ = process.communicate()
    assert not output and size // 2 < most <= size
    # A smaller bound holds from the beginning.
    with contextlib.closing(DiskCache(str(folder), MIN_SIZE)) as cache:
        assert taken(folder) <= cache.figures().held <= MIN_SIZE


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path)
    try:
        yield path
    finally:
        run("umount", "-l", path)


@mounts
@pytest.mark.parametrize("size", [MIN_SIZE, 3 * MIB, 10 * MIB])
def test_many_threads_read_and_write_within_the_bound(tmp_path: Path, size: int) -> None:
    """As the file system itself counts it, with what is removed and not closed."""
    with small_disk(tmp_path / "disk", "64m") as folder, contextlib.closing(DiskCache(str(folder), size)) as cache:
        stop = threading.Event()
        wrong: list[object] = []
        most = 0

        def work(seed: int) -> None:
            source = random.Random(seed)
            try:
                while not stop.is_set():
                    number = source.randrange(12)
                    with contextlib.closing(cache.open(f"file {number}")) as file:
                        for _ in range(10):
                            start = source.randrange(4 * MIB)
                            end = start + source.choice((1, 300, 4096, 33_000, 500_000))
                            keep(file, number, start, end)
                            data = file.read(start, end)
                            assert data is None or data == content(number, start, end)
            except BaseException as error:
                wrong.append(error)

        def enough() -> bool:
            nonlocal most
            status = os.statvfs(folder)
            most = max(most, (status.f_blocks - status.f_bfree) * status.f_frsize)
            return bool(wrong) or most > size or cache.figures().evicted_bytes > 4 * size

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        try:
            until(enough)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert not wrong
        assert size // 2 < most <= size
        figures = cache.figures()
        assert taken(folder) <= figures.held <= size
        assert figures.hits and (figures.damaged, figures.failures) == (0, 0)


def test_many_small_files_are_counted_as_what_they_take(tmp_path: Path) -> None:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
        for number in range(300):
            with contextlib.closing(cache.open(f"file {number}")) as file:
                keep(file, number, 0, 10)
                assert file.read(0, 10) == content(number, 0, 10), "the newest is always there"
            assert taken(tmp_path / "cache") <= cache.figures().held <= MIN_SIZE
        assert cache.figures().files < 100
        assert len(os.listdir(tmp_path / "cache")) == cache.figures().files + 1


def test_the_least_recently_used_goes_first_across_files_and_restarts(tmp_path: Path) -> None:
    folder, size = tmp_path / "cache", 4 * MIB
    with contextlib.closing(DiskCache(str(folder), size)) as cache:
        for number in range(6):
            with contextlib.closing(cache.open(f"file {number}")) as file:
                keep(file, number, 0, 500_000)
    now = time.time()
    for path in segment_files(folder):
        os.utime(path, (now - 1000, now - 1000))
    # Reading is a use, also of the one before this one.
    with contextlib.closing(DiskCache(str(folder), size)) as cache:
        assert cache.open("file 0").read(0, 500_000) == content(0, 0, 500_000)
    with contextlib.closing(DiskCache(str(folder), size)) as cache:
        third = cache.open("file 3")
        assert third.read(0, 500_000)
        filling = cache.open("filling")
        for start in range(0, 20 * 100_000, 100_000):
            keep(filling, 9, start, start + 100_000)
        assert cache.open("file 0").read(0, 500_000) == content(0, 0, 500_000)
        assert third.read(0, 500_000) == content(3, 0, 500_000)
        assert sum(cache.open(f"file {number}").held() for number in (1, 2, 4, 5)) < 4 * 400_000


def test_writing_is_a_use_as_well(tmp_path: Path) -> None:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), 4 * MIB)) as cache:
        first, others = cache.open("first"), cache.open("others")
        for number in range(60):  # which find room in one segment
            keep(first, 1, number * 100, number * 100 + 100)
            keep(others, 2, number * 150_000, number * 150_000 + 150_000)
        assert cache.figures().evicted_bytes > 3 * MIB
        assert first.read(0, 6000) == content(1, 0, 6000)


def test_what_is_evicted_while_maps_are_read_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    with contextlib.closing(DiskCache(str(folder), 4 * MIB)) as cache:
        file = cache.open("file")
        keep(file, 1, 0, MIB)
        assert len(segment_files(folder)) > 5
    with contextlib.closing(DiskCache(str(folder), 4 * MIB)) as cache:
        real = segments.scan_slots
        left = [5]

        def scan(*arguments: Any) -> Any:
            left[0] -= 1
            cache._shelf.evict_until(lambda: left[0] != 0 or len(segment_files(folder)) < 5)
            return real(*arguments)

        monkeypatch.setattr("hexz.storage.diskcache.cache.scan_slots", scan)
        file = cache.open("file")
        assert cache.figures().evicted_bytes
        held = file.held()
        assert 0 < held < MIB and check(file, 1) == held
        assert cache.figures().misses == 0


def test_a_file_larger_than_the_cache_passes_through(tmp_path: Path) -> None:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
        file = cache.open("file")
        file.keep(0, content(1, 0, 5 * MIB))
        assert 0 < file.held() < MIN_SIZE and taken(tmp_path / "cache") <= MIN_SIZE
        assert file.read(5 * MIB - 100_000, 5 * MIB) == content(1, 5 * MIB - 100_000, 5 * MIB)


@mounts
def test_a_full_disk_stops_neither_reading_nor_what_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk, contextlib.closing(DiskCache(str(disk), 64 * MIB)) as cache:
        monkeypatch.setattr(shelf, "FULL_S", 1000.0)
        old, new = cache.open("old"), cache.open("new")
        keep(old, 1, 0, MIB)
        keep(new, 2, 0, 100_000)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                continue
        assert new.read(0, 100_000) == content(2, 0, 100_000)
        for start in range(100_000, MIB, 50_000):
            keep(new, 2, start, start + 50_000)
        figures = cache.figures()
        assert figures.failures == 1 and new.held() == 100_000, "once is enough for a while"
        assert new.read(0, 100_000) == content(2, 0, 100_000)
        assert old.held() in (0, MIB)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "No space left on device" in caplog.text
        # There is room again, and later the time has come to try.
        (disk / "filler").unlink()
        cache._shelf._full_until = 0.0
        keep(new, 2, 100_000, 200_000)
        assert new.read(0, 200_000) == content(2, 0, 200_000)


@mounts
def test_a_disk_smaller_than_the_bound_goes_on_taking_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "FULL_S", 0.0)
    with small_disk(tmp_path / "disk", "10m") as disk, contextlib.closing(DiskCache(str(disk), 640 * MIB)) as cache:
        file = cache.open("file")
        for start in range(0, 30 * MIB, 100_000):
            keep(file, 1, start, start + 100_000)
        assert file.held() > MIB and check(file, 1, 30 * MIB, 100_000) > MIB
        assert file.read(25 * MIB, 29 * MIB) or file.missing(25 * MIB, 29 * MIB) != [(25 * MIB, 29 * MIB)]
        figures = cache.figures()
        assert figures.failures and not figures.damaged


def test_errors_of_the_disk_are_counted_and_nobody_else_meets_them(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = cache.open("file")
    keep(file, 1, 0, 10_000)

    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        for _ in range(5):
            keep(file, 1, 10_000, 20_000)
            keep(cache.open("new"), 2, 0, 100)
        assert file.missing(0, 20_000) == [(10_000, 20_000)]
    assert cache.figures().failures == 10 and len(caplog.records) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        assert file.read(0, 10) is None
    assert file.missing(0, 10_000) == [(0, 10_000)], "what cannot be read is fetched again"
    keep(file, 1, 0, 20_000)
    assert file.read(0, 20_000) == content(1, 0, 20_000) and cache.figures().failures == 11


@pytest.mark.parametrize("what", ["all", "inside", "identities", "segments", "lock"])
def test_it_is_deleted_while_it_runs(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "cache"
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        files = [cache.open(f"file {number}") for number in range(3)]
        for number, file in enumerate(files):
            keep(file, number, 0, MIB)
        before = cache.figures().held
        if what == "all":
            shutil.rmtree(folder)
        else:
            targets = {"inside": "*", "identities": "?" * 40, "segments": "*/*", "lock": "lock"}
            for path in list(folder.glob(targets[what])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for number, file in enumerate(files):
            check(file, number)
        for _ in range(3):  # a segment that is gone is noticed when it is written to
            for number, file in enumerate(files):
                keep(file, number, MIB, 2 * MIB)
                keep(file, number, 2 * MIB, 3 * MIB)
        for number, file in enumerate(files):
            assert file.read(MIB, 3 * MIB) == content(number, MIB, 3 * MIB)
        keep(cache.open("another"), 7, 0, 100)
        assert (folder / "lock").exists()
        with pytest.raises(ConfigError, match="uses this disk cache"):
            DiskCache(str(folder), 64 * MIB)
        assert taken(folder) <= cache.figures().held <= 4 * before + MIB
        assert cache.figures().failures == 0
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        for number in range(3):
            assert cache.open(f"file {number}").read(MIB, 3 * MIB) == content(number, MIB, 3 * MIB)


def test_another_daemon_takes_the_folder_after_it_was_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        file = cache.open("file")
        keep(file, 1, 0, 1000)
        shutil.rmtree(folder)
        with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as other:
            theirs = other.open("file")
            keep(theirs, 1, 0, 1000)
            for start in range(1000, 10_000, 1000):
                keep(file, 1, start, start + 1000)
            assert len(segment_files(folder)) == 1, "the first one writes nothing into it"
            assert theirs.read(0, 1000) == content(1, 0, 1000)
            assert cache.figures().failures
        keep(file, 1, 0, 1000)
        assert file.read(0, 1000) == content(1, 0, 1000)
        assert len(segment_files(folder)) == 2


def test_descriptors_are_few_however_many_files_and_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MAX_DESCRIPTORS", 4)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), 64 * MIB)) as cache:
        files = [cache.open(f"file {number}") for number in range(30)]
        wrong: list[object] = []

        def work(seed: int) -> None:
            source = random.Random(seed)
            try:
                for _ in range(200):
                    number = source.randrange(30)
                    start = source.randrange(10) * 1000
                    data = files[number].read(start, start + 1000)
                    assert data is None or data == content(number, start, start + 1000)
                    keep(files[number], number, start, start + 1000)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, len(os.listdir("/proc/self/fd")))
        assert not wrong and most <= before + 1 + 4 + 2  # the lock, those, and what looks here
        for number, file in enumerate(files):
            keep(file, number, 0, 10_000)
            assert file.read(0, 10_000) == content(number, 0, 10_000)
        assert len(os.listdir("/proc/self/fd")) == before + 1 + 4
        # All of them in use: done without, and nothing is forgotten.
        used = [segment for segment in cache._shelf.segments.values() if cache._shelf.use(segment) >= 0]
        assert len(used) == 4
        idle = next(file for file in files if file._stored.name not in {segment.owner for segment in used})
        assert idle.read(0, 10) is None and idle.missing(0, 10) == []
        for segment in used:
            cache._shelf.release(segment)
        assert idle.read(0, 10) is not None
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_waits_for_nobody_and_the_lock_goes_with_the_last_reader(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = DiskCache(str(folder), MIN_SIZE)
    file = cache.open("file")
    keep(file, 1, 0, 1000)
    (segment,) = cache._shelf.segments.values()
    assert cache._shelf.use(segment) >= 0
    cache.close()
    with pytest.raises(ConfigError, match="uses this disk cache"):
        DiskCache(str(folder), MIN_SIZE)
    cache._shelf.release(segment)
    with contextlib.closing(DiskCache(str(folder), MIN_SIZE)) as cache:
        assert cache.open("file").read(0, 1000) == content(1, 0, 1000)


def test_what_is_read_now_is_not_evicted(tmp_path: Path) -> None:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
        file, other = cache.open("file"), cache.open("other")
        keep(file, 1, 0, 60_000)
        (segment,) = cache._shelf.segments.values()
        assert cache._shelf.use(segment) >= 0
        other.keep(0, content(2, 0, 3 * MIB))
        assert cache.figures().evicted_bytes and file.read(0, 60_000) == content(1, 0, 60_000)
        cache._shelf.release(segment)
        other.keep(3 * MIB, content(2, 3 * MIB, 6 * MIB))
        other.keep(6 * MIB, content(2, 6 * MIB, 9 * MIB))
        assert file.missing(0, 60_000) == [(0, 60_000)]


def test_the_memory_of_the_index_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MAX_INDEX", 100_000)
    monkeypatch.setattr("hexz.storage.diskcache.cache.MAX_INDEX", 100_000)
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), 64 * MIB)) as cache:
        file, other = cache.open("file"), cache.open("other")
        keep(other, 2, 0, 10)
        for number in range(6000):
            keep(file, 1, number * 300, number * 300 + 299)
            assert cache._shelf.index_cost <= 100_000 + pieces.PIECE_COST + pieces.CELL_COST
        assert file.held() > 299 * 2000 and cache.figures().evicted_bytes
        cost = sum(s.index.cost for s in cache._shelf.stored.values() if s.index)
        assert cost == cache._shelf.index_cost
        other.close()
        file.close()
        assert cache._shelf.index_cost == 0
    monkeypatch.setattr(shelf, "MAX_INDEX", 50_000)
    monkeypatch.setattr("hexz.storage.diskcache.cache.MAX_INDEX", 50_000)
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), 64 * MIB)) as cache:
        file = cache.open("file")
        assert file.held() and cache._shelf.index_cost <= 50_000
        assert check(file, 1, 6000 * 300, 299) > 0


def test_there_are_only_so_many_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr(shelf, "MAX_SEGMENTS", 10)
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        for number in range(30):
            keep(cache.open(f"file {number}"), number, 0, 100)
            assert len(segment_files(folder)) <= 10
        assert cache.open("file 29").held() == 100
    monkeypatch.setattr(shelf, "MAX_SEGMENTS", 4)
    DiskCache(str(folder), 64 * MIB).close()
    assert len(segment_files(folder)) == 4


@pytest.mark.parametrize("size", [MIN_SIZE, 1 << 30, 1 << 36, 1 << 40, 1 << 50])
def test_segments_suit_the_size(tmp_path: Path, size: int) -> None:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), size)) as cache:
        layout = cache._shelf._layout
        assert layout.slots <= segments.MAX_SLOTS and layout.capacity <= segments.MAX_CAPACITY
        assert layout.capacity <= max(size // 14, MIB * 5)
        keep(cache.open("file"), 1, 0, 100_000)
        assert taken(tmp_path / "cache") < 200_000
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), 64 * MIB)) as cache:
        file = cache.open("file")
        assert file.read(0, 100_000) == content(1, 0, 100_000)
        keep(file, 1, 100_000, 2 * MIB)
        assert file.read(0, 2 * MIB) == content(1, 0, 2 * MIB)


def test_a_segment_that_cannot_be_removed_stays_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(DiskCache(str(tmp_path / "cache"), MIN_SIZE)) as cache:
        file = cache.open("file")

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            for start in range(0, 4 * MIB, 60_000):
                keep(file, 1, start, start + 60_000)
                assert taken(tmp_path / "cache") <= cache.figures().held <= MIN_SIZE
        assert cache.figures().failures
        keep(file, 1, 5 * MIB, 5 * MIB + 60_000)
        assert file.read(5 * MIB, 5 * MIB + 60_000) is not None


def test_a_segment_whose_map_was_not_read_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        keep(cache.open("file"), 1, 0, 1000)
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "MAX_DESCRIPTORS", 0)
            file = cache.open("file")
        assert file.held() == 0
        (segment,) = cache._shelf.segments.values()
        assert cache._shelf.use(segment) >= 0
        cache._shelf.release(segment)
        keep(file, 1, 5000, 6000)
        assert file.read(5000, 6000) == content(1, 5000, 6000) and len(segment_files(folder)) == 2
    with contextlib.closing(DiskCache(str(folder), 64 * MIB)) as cache:
        file = cache.open("file")
        assert file.missing(0, 6000) == [(1000, 5000)]
        assert file.read(0, 1000) == content(1, 0, 1000)


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_fails_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whichever call fails of whichever thread: right bytes or none, no error, and nothing is lost track of."""
    folder = tmp_path / "cache"
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(shelf, "FULL_S", 0.001)
    cache = DiskCache(str(folder), 2 * MIB)
    faults = random.Random(seed)
    wrong: list[object] = []

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if threading.current_thread().name.startswith("faulty") and faults.random() < 0.03:
                number = faults.choice((errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE))
                raise OSError(number, os.strerror(number))
            return real(*arguments, **more)

        return call

    def work(number: int) -> None:
        source = random.Random(number)
        try:
            for _ in range(60):
                with contextlib.closing(cache.open(f"file {source.randrange(4)}")) as file:
                    which = int(file._stored.identity[-1])
                    for _ in range(6):
                        start = source.randrange(MIB)
                        end = start + source.choice((1, 4096, 33_000, 200_000))
                        keep(file, which, start, end)
                        data = file.read(start, end)
                        assert data is None or data == content(which, start, end)
        except BaseException as error:
            wrong.append(error)

    with monkeypatch.context() as patch:
        for name in ("open", "pread", "pwrite", "unlink", "rmdir", "mkdir", "fstat", "stat", "ftruncate", "utime"):
            patch.setattr(os, name, failing(getattr(os, name)))
        threads = [threading.Thread(target=work, args=(number,), name=f"faulty {number}") for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    assert not wrong
    figures = cache.figures()
    assert figures.failures > 10 and figures.written_bytes and figures.damaged == 0
    assert taken(folder) <= figures.held <= 2 * MIB
    assert not any(segment.users for segment in cache._shelf.segments.values())
    file = cache.open("after")
    file.keep(0, content(9, 0, 3 * MIB))
    assert file.read(3 * MIB - 50_000, 3 * MIB) == content(9, 3 * MIB - 50_000, 3 * MIB)
    assert taken(folder) <= cache.figures().held <= 2 * MIB
    cache.close()
    assert len(os.listdir("/proc/self/fd")) == before


class Caching(RuleBasedStateMachine):
    """Two files in a small cache, against what was ever kept of them: right bytes, or none."""

    SIZE = MIN_SIZE
    LIMIT = 3 * MIB

    @initialize()
    def begin(self) -> None:
        self.folder = Path(self.make_folder())
        self.cache = DiskCache(str(self.folder), self.SIZE)
        self.files = [self.cache.open(f"file {number}") for number in range(2)]
        self.kept: list[set[int]] = [set(), set()]  # numbers of 512-byte sectors that were kept in whole
        self.hurt = False

    @staticmethod
    def make_folder() -> str:
        return tempfile.mkdtemp()

    spans = st.tuples(st.integers(0, LIMIT // 512 - 1), st.integers(1, 300))

    @rule(number=st.integers(0, 1), span=spans)
    def keep(self, number: int, span: tuple[int, int]) -> None:
        first, count = span
        keep(self.files[number], number, first * 512, (first + count) * 512)
        self.kept[number].update(range(first, first + count))

    @rule(number=st.integers(0, 1), span=spans, cut=st.integers(0, 511))
    def read(self, number: int, span: tuple[int, int], cut: int) -> None:
        start, end = span[0] * 512 + cut, (span[0] + span[1]) * 512
        file = self.files[number]
        gaps = file.missing(start, end)
        data = file.read(start, end)
        assert data is None or (data == content(number, start, end) and not gaps)
        if not gaps and data is None:
            assert self.hurt and (file.missing(start, end) or file.read(start, end) is None)
        at = start
        for begin, stop in gaps:
            assert at <= begin < stop <= end
            at = stop + 1
        there = set(range(start, end)) - {byte for gap in gaps for byte in range(*gap)}
        assert {byte // 512 for byte in there} <= self.kept[number]

    @rule(number=st.integers(0, 1))
    def read_all(self, number: int) -> None:
        held = self.files[number].held()
        found = check(self.files[number], number, self.LIMIT + 300 * 512)
        assert found == held or self.hurt

    @rule(number=st.integers(0, 1))
    def reopen(self, number: int) -> None:
        held = self.files[number].held()
        self.files[number].close()
        self.files[number] = self.cache.open(f"file {number}")
        assert self.files[number].held() == held or self.hurt

    @rule()
    def restart(self) -> None:
        held = [file.held() for file in self.files]
        self.cache.close()
        self.cache = DiskCache(str(self.folder), self.SIZE)
        self.files = [self.cache.open(f"file {number}") for number in range(2)]
        assert self.hurt or [file.held() for file in self.files] == held

    @rule(seed=st.integers(0, 1 << 32), how=st.sampled_from(["flip", "truncate", "delete", "zero"]))
    def damage(self, seed: int, how: str) -> None:
        source = random.Random(seed)
        found = segment_files(self.folder)
        if not found:
            return
        self.hurt = True
        path = source.choice(found)
        size = path.stat().st_size
        if how == "delete":
            path.unlink()
        elif how == "truncate":
            os.truncate(path, source.randrange(size))
        else:
            with path.open("r+b") as file:
                file.seek(source.randrange(source.choice((HEAD_SIZE, 4096, size))))
                file.write(source.randbytes(1) if how == "flip" else bytes(4096))

    @rule()
    def remove_everything(self) -> None:
        self.hurt = True
        shutil.rmtree(self.folder, ignore_errors=True)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "cache"):
            figures = self.cache.figures()
            assert taken(self.folder) <= self.SIZE if self.folder.exists() else True
            assert figures.held <= self.SIZE and figures.failures == 0

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
            shutil.rmtree(self.folder, ignore_errors=True)


TestCaching = Caching.TestCase
TestCaching.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
