"""The released hexz packages as peers: we read what they write, they read what we write, byte for byte."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hexz.format.crypto import signature_valid
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.pack import pack
from tests import samples
from tests.peers import ROOT, Server, missing

WHEELS = ROOT / ".cache" / "wheels"
WRITERS = ["0.1.4", "0.4.5", "0.5.1", "0.5.5", "0.6.0", "0.7.0", "0.8.2"]
READERS = ["0.5.2", "0.5.5", "0.6.0", "0.7.0", "0.8.2"]
PASSWORD = "correct horse"
LAYOUTS = {"0.1.4": "A20", "0.4.5": "A20", "0.5.1": "A52", "0.8.2": "C52"}
PAGE = 4096
DISK = samples.image(400_000 + 77, seed=11)
MEMORY = samples.image(90_000, seed=12)

Call = tuple[str, dict[str, Any]]
Expected = dict[str, dict[str, bytes]]


def wheel(version: str) -> Path:
    """The folder of one released version, fetched once for each checkout."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    folder = WHEELS / version
    with (WHEELS / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "hexz").is_dir():
            command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run(
                [*command, "--target", str(folder), f"hexz=={version}"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                missing(f"hexz {version} from the package index")
    return folder


def call(version: str, calls: list[Call], cwd: Path) -> list[Any]:
    """Run calls under that version, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "releases" / "wheel_calls.py")],
        input=json.dumps(calls),
        env={**os.environ, "PYTHONPATH": str(wheel(version))},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout.rpartition("answers:")[2])
    return answers


def overlaid(base: bytes, folder: Path, seed: int) -> bytes:
    """`base` with three pages changed; the overlay that says so lies in `folder` as overlay.raw and overlay.meta."""
    changed = [1, 7, len(base) // PAGE - 1]
    image = bytearray(base)
    for page in changed:
        image[page * PAGE : (page + 1) * PAGE] = samples.image(PAGE, seed=seed + page)
    (folder / f"overlay{seed}.raw").write_bytes(image)
    (folder / f"overlay{seed}.meta").write_bytes(struct.pack(f"<{len(changed)}Q", *changed))
    return bytes(image)


def packed_and_built(version: str, folder: Path) -> tuple[list[Call], Expected]:
    """What versions before 0.8 can write."""
    numbers = tuple(map(int, version.split(".")))
    (folder / "disk").write_bytes(DISK)
    (folder / "memory").write_bytes(MEMORY)
    both = {"disk": DISK, "memory": MEMORY}
    calls: list[Call] = []
    expected: Expected = {}

    def packs(name: str, streams: dict[str, bytes], **options: Any) -> None:
        images = {stream: str(folder / stream) for stream in streams}
        calls.append(("pack", {"output": str(folder / name), **images, "block_size": 4096, **options}))
        expected[name] = streams

    def builds(name: str, streams: dict[str, bytes], steps: list[list[Any]], **options: Any) -> None:
        options = {"block_size": 4096, "compression": "zstd", **options}
        calls.append(("build", {"out": name, "options": options, "steps": steps}))
        expected[name] = streams

    for codec in ("lz4", "zstd"):
        packs(f"{codec}.hxz", both, compression=codec)
    packs("disk-only.hxz", {"disk": DISK})
    packs("memory-only.hxz", {"memory": MEMORY})
    chunks = {"min_chunk": 1024, "avg_chunk": 4096, "max_chunk": 16384}
    packs("chunked.hxz", both, **chunks, **({} if numbers >= (0, 6) else {"cdc": True}))
    packs("secret.hxz", both, encrypt=True, password=PASSWORD)

    segments: list[list[Any]] = [["add_disk_file", "disk"], ["add_memory_file", "memory"], ["add_disk_file", "memory"]]
    builds(
        "segments.hxz",
        {"disk": DISK + MEMORY, "memory": MEMORY},
        [*segments, ["set_metadata", '{"note": "by hand"}']],
    )
    calls.append(("sign", {"folder": str(folder), "file": "segments.hxz"}))

    whole_pages = DISK[: len(DISK) // PAGE * PAGE]
    (folder / "pages").write_bytes(whole_pages)
    builds("place-base.hxz", {"disk": whole_pages}, [["add_disk_file", "pages"]])
    child = overlaid(whole_pages, folder, 100)
    builds("place-child.hxz", {"disk": child}, [["merge_overlay", "place-base.hxz", "overlay100.raw", True]])
    grandchild = overlaid(child, folder, 200)
    builds("place-grandchild.hxz", {"disk": grandchild}, [["merge_overlay", "place-child.hxz", "overlay200.raw", True]])

    if numbers >= (0, 5):
        # Content that moved: found by its hash, not by its place.
        moved = samples.image(3 * PAGE, seed=31) + DISK
        (folder / "moved").write_bytes(moved)
        builds("content-base.hxz", {"disk": DISK}, [["add_disk_file", "disk"]])
        builds("content-child.hxz", {"disk": moved}, [["add_disk_file", "moved"]], parent="content-base.hxz")
        again = moved[PAGE:] + moved[:PAGE]
        (folder / "again").write_bytes(again)
        builds("content-grandchild.hxz", {"disk": again}, [["add_disk_file", "again"]], parent="content-child.hxz")
    if numbers >= (0, 5, 2):
        (folder / "joined").write_bytes(MEMORY[: 20 * PAGE] + DISK)
        builds("memory-base.hxz", {"disk": MEMORY}, [["add_disk_file", "memory"]])
        builds(
            "two-parents.hxz",
            {"disk": MEMORY[: 20 * PAGE] + DISK},
            [["add_disk_file", "joined"]],
            parent=["content-base.hxz", "memory-base.hxz"],
        )
    return calls, expected


def archived(folder: Path) -> tuple[list[Call], Expected]:
    """What 0.8 can write."""
    tree, later = folder / "tree", folder / "later"
    files = {"a.txt": DISK[:70_000], "sub/b.bin": DISK[70_000:], "memory": MEMORY, "empty": b""}
    for root, changed in ((tree, files), (later, {**files, "a.txt": DISK[5_000:90_000]})):
        for name, data in changed.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    (folder / "disk").write_bytes(DISK)
    (folder / "moved").write_bytes(MEMORY + DISK)
    calls: list[Call] = [
        ("archive", {"source": "disk", "out": "lz4.hxz"}),
        ("archive", {"source": "disk", "out": "zstd.hxz", "compression": "zstd"}),
        ("archive", {"source": "moved", "out": "child.hxz", "base": "zstd.hxz"}),
        ("archive", {"source": "tree", "out": "tree.hxz"}),
        ("archive", {"source": "later", "out": "later.hxz", "base": "tree.hxz"}),
    ]
    return calls, {
        "lz4.hxz": {"disk": DISK},
        "zstd.hxz": {"disk": DISK},
        "child.hxz": {"disk": MEMORY + DISK},
        "tree.hxz": {f"files/{name}": data for name, data in files.items()},
        "later.hxz": {f"files/{name}": data for name, data in {**files, "a.txt": DISK[5_000:90_000]}.items()},
    }


@pytest.mark.parametrize("version", WRITERS)
def test_we_read_what_it_writes(version: str, tmp_path: Path) -> None:
    calls, expected = archived(tmp_path) if version >= "0.8" else packed_and_built(version, tmp_path)
    call(version, calls, tmp_path)
    context = new_context(8 << 20, PASSWORD.encode())
    for name, streams in expected.items():
        with open_snapshot(str(tmp_path / name), context) as snapshot:
            assert snapshot.layout == LAYOUTS.get(version, "B52")
            found = {
                stream.name: b"".join(stream.read(0, stream.size))
                for stream in snapshot.streams.values()
                if stream.size
            }
            if snapshot.files is not None:
                found = {
                    f"files/{file.path}": b"".join(snapshot.streams[file.stream].read(file.offset, file.size))
                    if file.size
                    else b""
                    for file in snapshot.files
                }
            assert found.keys() == streams.keys(), name
            for stream_name, data in found.items():
                assert data == streams[stream_name], (name, stream_name)
            assert snapshot.thin == any(word in name for word in ("child", "parents", "later")), name
    if version < "0.8":
        with open_snapshot(str(tmp_path / "segments.hxz"), context) as snapshot:
            assert snapshot.metadata == b'{"note": "by hand"}'
            place = snapshot.header.signature
            assert place is not None
            start = snapshot.header.index_offset
            key = (tmp_path / "public.key").read_bytes()
            assert signature_valid(key, snapshot.read_file(*place), snapshot.read_file(start, place.offset - start))
    context.workers.stop()


SPANS = [[0, 1], [4095, 2], [65_530, 70_000], [len(DISK) - 3, 3], [123_457, 200_001]]


def hashes(image: bytes) -> list[str]:
    return [hashlib.sha256(image[o : o + n]).hexdigest() for o, n in [[0, len(image)], *SPANS]]


@pytest.mark.parametrize("version", READERS)
def test_it_reads_what_we_write(version: str, tmp_path: Path) -> None:
    raw, memory = tmp_path / "disk.raw", tmp_path / "memory.raw"
    raw.write_bytes(DISK)
    memory.write_bytes(MEMORY)
    packings: dict[str, dict[str, Any]] = {
        "lz4": {"memory": str(memory)},
        "lz4-9": {"level": 9, "block_size": 5000},
        "zstd": {"compression": "zstd", "memory": str(memory)},
        "dictionary": {"compression": "zstd", "dictionary": True, "block_size": 4096},
        "small-blocks": {"block_size": 512},
    }
    for name, options in packings.items():
        pack(str(raw), str(tmp_path / f"{name}.hxz"), **options)
    if version >= "0.8":
        for name in packings:
            (found,) = call(version, [("read_archive", {"path": f"{name}.hxz"})], tmp_path)
            assert found == {"disk": hashlib.sha256(DISK).hexdigest()}, name
        return
    child = overlaid(DISK, tmp_path, 300) + b"grown by a tail"
    (tmp_path / "child.raw").write_bytes(child)
    # Its reader looks for a parent from its working directory on.
    pack(str(tmp_path / "child.raw"), str(tmp_path / "child.hxz"), parent=str(tmp_path / "zstd.hxz"))
    images = dict.fromkeys(packings, DISK) | {"child": child}
    answers = call(version, [("read", {"path": f"{name}.hxz", "spans": SPANS}) for name in images], tmp_path)
    for (name, image), answer in zip(images.items(), answers):
        assert answer == hashes(image), name


@pytest.mark.parametrize("version", [version for version in READERS if version < "0.8"])
def test_its_client_opens_our_urls(version: str, tmp_path: Path) -> None:
    """0.8 reads local files only."""
    raw, packed = tmp_path / "disk.raw", tmp_path / "far.hxz"
    raw.write_bytes(DISK)
    pack(str(raw), str(packed), compression="zstd")
    with Server("--http-port", 0, packed) as server:
        url = f"{server.http}/far.hxz"
        (answer,) = call(version, [("read", {"path": url, "spans": SPANS, "remote": True})], tmp_path)
    assert answer == hashes(DISK)
