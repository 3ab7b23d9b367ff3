"""`pack` writes what was given, whatever its shape; nothing else than a whole snapshot ever has the name."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexz.errors import HexzError, SnapshotNotFound, SystemFailure, UsageError
from hexz.format import writer as writer_module
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.tools import output
from hexz.tools import pack as pack_module
from hexz.tools.pack import pack
from tests import samples
from tests.peers import ROOT

CODECS = st.sampled_from([("lz4", None), ("lz4", 0), ("lz4", 9), ("zstd", None), ("zstd", 1), ("zstd", 12)])
BLOCK_SIZES = st.sampled_from([512, 513, 1000, 4096, 5000, 65536, 1 << 20])


def content(snapshot: Snapshot, name: str) -> bytes:
    """All bytes of a stream; a stream of no bytes is no stream."""
    stream = snapshot.streams.get(name)
    return b"".join(stream.read(0, stream.size)) if stream else b""


def read(path: Path, name: str = "disk") -> bytes:
    with open_snapshot(str(path), new_context(4 << 20)) as snapshot:
        return content(snapshot, name)


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Up to a few hundred KiB of zeros, noise, text and repeats that begin and end anywhere."""
    noise = random.Random(draw(st.integers(0, 1000)))
    parts: list[bytes] = []
    for kind in draw(st.lists(st.sampled_from("ztnr"), max_size=8)):
        size = draw(st.sampled_from([1, 511, 512, 4096, 5000, 65536, 100_000]))
        parts.append(
            {
                "z": bytes(size),
                "t": (b"some text that repeats, %d. " % size * (size // 20 + 1))[:size],
                "n": noise.randbytes(size),
                "r": noise.choice(parts) if parts else b"",
            }[kind]
        )
    return b"".join(parts)


def changed(image: bytes, draw: st.DrawFn) -> bytes:
    """The image with some places overwritten, cut or grown."""
    edited = bytearray(image)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(edited)))
        patch = draw(st.sampled_from([b"x", bytes(700), b"new words " * 900]))
        edited[at : at + len(patch)] = patch
    return bytes(edited[: draw(st.integers(0, len(edited)))]) if draw(st.booleans()) else bytes(edited)


@given(data=st.data())
@settings(max_examples=150)
def test_what_was_packed_is_read_back_through_any_chain_of_thin_children(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    disk, memory = data.draw(images()), data.draw(images())
    parent: Path | None = None
    packed: dict[Path, tuple[bytes, bytes]] = {}
    for generation in range(data.draw(st.integers(1, 4))):
        raw, aux, out = folder / "disk", folder / "memory", folder / f"{generation}.hxz"
        raw.write_bytes(disk)
        aux.write_bytes(memory)
        codec, level = data.draw(CODECS)
        done = pack(
            str(raw), str(out), str(aux), codec, level, data.draw(BLOCK_SIZES),
            parent=str(parent) if parent else None, workers=data.draw(st.integers(1, 3)),
        )  # fmt: skip
        assert (done.image_bytes, done.file_bytes) == (len(disk) + len(memory), out.stat().st_size)
        packed[out] = disk, memory
        parent = out
        disk, memory = changed(disk, data.draw), changed(memory, data.draw)
    for path, (disk, memory) in packed.items():
        with open_snapshot(str(path), new_context(1 << 20)) as snapshot:
            assert content(snapshot, "disk") == disk
            assert content(snapshot, "memory") == memory
            if disk:
                start = data.draw(st.integers(0, len(disk) - 1))
                length = data.draw(st.integers(1, len(disk) - start))
                assert b"".join(snapshot.streams["disk"].read(start, length)) == disk[start : start + length]
            assert snapshot.files is None


def test_a_dictionary_is_trained_used_and_protected(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out.hxz"
    words = samples.image(1 << 20, seed=3)
    raw.write_bytes(words)
    plain = pack(str(raw), str(out), compression="zstd", block_size=4096)
    trained = pack(str(raw), str(out), compression="zstd", block_size=4096, dictionary=True)
    assert trained.file_bytes < plain.file_bytes + pack_module.MAX_DICTIONARY
    with open_snapshot(str(out), new_context()) as snapshot:
        dictionary = snapshot.header.dictionary
        assert dictionary is not None
        assert content(snapshot, "disk") == words
    # The index cannot notice a damaged dictionary; the frames' own checksums do.
    damaged = bytearray(out.read_bytes())
    damaged[dictionary.end - 5000 : dictionary.end] = random.Random(1).randbytes(5000)
    out.write_bytes(damaged)
    wrong = 0
    with open_snapshot(str(out), new_context()) as snapshot:
        stream = snapshot.streams["disk"]
        for offset in range(0, stream.size, 4096):
            try:
                block = b"".join(stream.read(offset, min(4096, stream.size - offset)))
            except HexzError:
                wrong += 1
            else:
                assert block == words[offset : offset + 4096]
    assert wrong


def with_the_same_crc(block: bytes) -> bytes:
    """Another block of the same CRC-32: a multiple of the polynomial is added."""
    polynomial = int(("1" + format(0x04C11DB7, "032b"))[::-1], 2)
    other = (int.from_bytes(block, "little") ^ polynomial << 800).to_bytes(len(block), "little")
    assert other != block
    assert zlib.crc32(other) == zlib.crc32(block)
    return other


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_blocks_are_stored_once_and_equal_checksums_are_not_trusted(tmp_path: Path, workers: int) -> None:
    noise = [random.Random(seed).randbytes(4096) for seed in range(400)]
    noise += [with_the_same_crc(block) for block in noise[:200]]
    image = b"".join(noise + noise[::-1] + [noise[0][:100]])
    (tmp_path / "raw").write_bytes(image)
    done = pack(str(tmp_path / "raw"), str(tmp_path / "a.hxz"), block_size=4096, workers=workers)
    # Only the last block of a CRC is remembered: of the two that have the same one, one is stored again.
    assert (done.data, done.repeated) == (600 + 200 + 1, 400)
    assert read(tmp_path / "a.hxz") == image


def test_memory_for_repeats_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_REMEMBERED", 8)
    noise = [random.Random(seed).randbytes(512) for seed in range(100)]
    image = b"".join(noise * 2)
    (tmp_path / "raw").write_bytes(image)
    done = pack(str(tmp_path / "raw"), str(tmp_path / "a.hxz"), block_size=512, workers=1)
    assert done.repeated == 0
    assert read(tmp_path / "a.hxz") == image


@pytest.mark.parametrize("size", [1 << 40, (1 << 40) + 777])
def test_holes_are_skipped_not_read(tmp_path: Path, size: int) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out.hxz"
    with raw.open("wb") as file:
        file.truncate(size)
        file.seek(size // 3)
        file.write(b"data in the middle of nowhere")
    done = pack(str(raw), str(out), block_size=pack_module.MAX_BLOCK)
    assert done.data == 1
    with open_snapshot(str(out), new_context()) as snapshot:
        stream = snapshot.streams["disk"]
        assert stream.size == size
        assert b"".join(stream.read(size // 3 - 1, 31)) == b"\0data in the middle of nowhere\0"


@pytest.mark.parametrize("holes", [[(0, 70_000)], [(4096, 4096)], [(8192, 90_000)], [(100, 4000), (50_000, 9000)]])
def test_holes_anywhere_read_as_zeros(tmp_path: Path, holes: list[tuple[int, int]]) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out.hxz"
    image = bytearray(random.Random(5).randbytes(100_000))
    for start, length in holes:
        image[start : start + length] = bytes(min(length, len(image) - start))
    with raw.open("wb") as file:
        file.truncate(len(image))
        at = 0
        for start, length in [*holes, (len(image), 0)]:
            file.seek(at)
            file.write(image[at:start])
            at = start + length
    pack(str(raw), str(out), block_size=4096)
    assert read(out) == image


def test_a_thin_child_keeps_only_what_differs(tmp_path: Path) -> None:
    base = samples.image(1 << 20)
    child = bytearray(base)
    child[300_000] ^= 1
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "child").write_bytes(child)
    pack(str(tmp_path / "base"), str(tmp_path / "base.hxz"), compression="zstd")
    done = pack(str(tmp_path / "child"), str(tmp_path / "child.hxz"), parent=str(tmp_path / "base.hxz"))
    assert (done.data, done.parent_path) == (1, "base.hxz")
    assert read(tmp_path / "child.hxz") == child


def test_a_parent_elsewhere_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "raw").write_bytes(b"bytes" * 1000)
    parent = tmp_path / "far" / "base.hxz"
    pack(str(tmp_path / "raw"), str(parent))
    done = subprocess.run(
        [sys.executable, "-m", "hexz", "pack", tmp_path / "raw", tmp_path / "near" / "c.hxz", "--parent", parent],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"--parent-dir {tmp_path / 'far'}" in done.stdout
    with open_snapshot(str(tmp_path / "near" / "c.hxz"), new_context(parent_dirs=(str(tmp_path / "far"),))) as snapshot:
        assert content(snapshot, "disk") == b"bytes" * 1000


REFUSED = [
    ({"compression": "gzip"}, UsageError, "unknown"),
    ({"level": 13}, UsageError, "level 13"),
    ({"level": 0, "compression": "zstd"}, UsageError, "level 0"),
    ({"block_size": 511}, UsageError, "block size"),
    ({"block_size": (64 << 20) + 1}, UsageError, "block size"),
    ({"dictionary": True}, UsageError, "zstd"),
    ({"dictionary": True, "compression": "zstd"}, UsageError, "without --dictionary"),
    ({"disk": "missing"}, SnapshotNotFound, "no such file"),
    ({"disk": "folder"}, UsageError, "folder"),
    ({"disk": "pipe"}, UsageError, "pipe"),
    ({"disk": "/dev/zero"}, UsageError, "device"),
    ({"memory": "missing"}, SnapshotNotFound, "no such file"),
    ({"out": "raw"}, UsageError, "also read"),
    ({"out": "alias"}, UsageError, "also read"),
    ({"out": "base.hxz", "parent": "base.hxz"}, UsageError, "also read"),
    ({"out": "base.hxz", "parent": "child.hxz"}, UsageError, "also read"),
    ({"out": "folder"}, UsageError, "folder"),
    ({"out": "/dev/null"}, UsageError, "not a regular file"),
    ({"out": "pipe"}, UsageError, "not a regular file"),
    ({"out": "missing/out.hxz"}, SystemFailure, "cannot write"),
    ({"out": "folder/" + "x" * 300}, SystemFailure, "cannot write"),
    ({"parent": "raw"}, HexzError, "not a hexz snapshot"),
    ({"parent": "missing"}, SnapshotNotFound, "no such file"),
]


@pytest.mark.parametrize("change, kind, words", REFUSED, ids=[str(change)[:50] for change, _, _ in REFUSED])
def test_what_cannot_be_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], kind: type[HexzError], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw").write_bytes(b"data" * 3000)
    os.link("raw", "alias")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    pack("raw", "base.hxz")
    pack("raw", "child.hxz", parent="base.hxz")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    arguments: dict[str, object] = {"disk": "raw", "out": "new.hxz", **change}
    with pytest.raises(kind, match=words):
        pack(**arguments)  # type: ignore[arg-type]
    after = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert after == before
    assert not list(Path("folder").iterdir())


def test_a_parents_path_too_long_for_the_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(b"1")
    pack(str(tmp_path / "raw"), str(tmp_path / "base.hxz"))
    monkeypatch.setattr(pack_module, "stored_path", lambda parent, out: "x" * 4090)
    with pytest.raises(UsageError, match="parents' paths"):
        pack(str(tmp_path / "raw"), str(tmp_path / "child.hxz"), parent=str(tmp_path / "base.hxz"))
    assert not (tmp_path / "child.hxz").exists()


@pytest.mark.parametrize("nameless", [True, False])
def test_killed_in_the_middle_leaves_no_file_of_that_name(tmp_path: Path, nameless: bool) -> None:
    (tmp_path / "raw").write_bytes(samples.image(3 << 20))
    out = tmp_path / "out"
    out.mkdir()
    (out / "snap.hxz").write_bytes(b"what was there before")
    script = (
        "import sys, time; from hexz.tools import pack, output\n"
        f"if not {nameless}: output._open_nameless = lambda folder, mode: None\n"
        "real = pack.SnapshotWriter.finish\n"
        "def finish(self, metadata=b''):\n"
        "    print('here', flush=True); time.sleep(60)\n"
        "pack.SnapshotWriter.finish = finish\n"
        "pack.pack(sys.argv[1], sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "raw", out / "snap.hxz"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert (out / "snap.hxz").read_bytes() == b"what was there before"
    if nameless:
        assert [path.name for path in out.iterdir()] == ["snap.hxz"]


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_or_out_of_space_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool, trouble: BaseException | type[BaseException]
) -> None:
    (tmp_path / "raw").write_bytes(samples.image(1 << 20))
    if not nameless:
        monkeypatch.setattr(output, "_open_nameless", lambda folder, mode: None)

    def fail(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(pack_module.SnapshotWriter, "data", fail)
    with pytest.raises(KeyboardInterrupt if trouble is KeyboardInterrupt else SystemFailure):
        pack(str(tmp_path / "raw"), str(tmp_path / "out.hxz"))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("nameless", [True, False])
def test_the_mode_is_what_the_umask_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool) -> None:
    (tmp_path / "raw").write_bytes(b"1")
    if not nameless:
        monkeypatch.setattr(output, "_open_nameless", lambda folder, mode: None)
    before = os.umask(0o027)
    try:
        pack(str(tmp_path / "raw"), str(tmp_path / "out.hxz"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.hxz").stat().st_mode) == 0o640


def test_an_image_that_shrinks_is_an_error_not_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"x" * 3_000_000)
    real = pack_module.SnapshotWriter.begin

    def begin(self: pack_module.SnapshotWriter, stream: str) -> None:
        os.truncate(raw, 1_000_000)
        real(self, stream)

    monkeypatch.setattr(pack_module.SnapshotWriter, "begin", begin)
    with pytest.raises(SystemFailure, match="shrank"):
        pack(str(raw), str(tmp_path / "out.hxz"))
    assert not (tmp_path / "out.hxz").exists()


def test_ctrl_c_on_the_command_line_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    with (tmp_path / "raw").open("wb") as file:
        for seed in range(40):
            file.write(random.Random(seed).randbytes(1 << 20))
    process = subprocess.Popen(
        [sys.executable, "-c",
         "import signal, sys, hexz.tools.pack as p; from hexz.tools.main import main\n"
         "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # where the tests run in a background job
         "real = p.SnapshotWriter.begin\n"
         "def begin(self, stream):\n    print('here', flush=True); real(self, stream)\n"
         "p.SnapshotWriter.begin = begin; sys.exit(main())",
         "pack", tmp_path / "raw", tmp_path / "out.hxz", "--compression", "zstd", "--level", "19"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
