"""`info`, `verify`, `cat` and `extract` as a user runs them: output, exit status, one line when it goes wrong."""

from __future__ import annotations

import json
import os
import pty
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hexz.errors import CorruptSnapshot, HexzError
from hexz.format.codec import Encoder, crc32
from hexz.format.header import Compression
from hexz.format.writer import SnapshotWriter
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.extract import extract
from hexz.tools.pack import pack
from hexz.tools.verify import verify
from tests import samples
from tests.conftest import CORPUS
from tests.peers import ROOT, write_secret

VECTORS = {vector["file"]: vector for vector in json.loads((CORPUS / "vectors.json").read_text())["vectors"]}
ARCHIVES = [name for name, vector in VECTORS.items() if vector.get("files") is not None]


def hexz(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hexz", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False, timeout=60)


def archive(path: Path, files: list[dict[str, object]], data: bytes, memory: bytes = b"") -> None:
    """A folder archive with this manifest, whatever it says."""
    with path.open("w+b") as file:
        writer, encoder = SnapshotWriter(file, Compression.LZ4, 4096), Encoder(Compression.LZ4)
        for name, content in (("disk", data), ("memory", memory)):
            writer.begin(name)
            for at in range(0, len(content), 4096):
                block = content[at : at + 4096]
                stored = encoder.encode(block)
                writer.data(stored, crc32(stored), len(block))
        writer.finish(json.dumps({"files": files}).encode())


def entry(path: str, offset: int = 0, size: int = 5, **more: object) -> dict[str, object]:
    return {"path": path, "offset": offset, "size": size, "mode": 0o100644, "mtime": 1_600_000_000, **more}


@pytest.mark.parametrize("name", ["0.1.1-lz4-thin-grandchild.hxz", "0.5.5-zstd-par-moved.hxz", "0.8.0-zstd-dir.hxz"])
def test_info_tells_what_the_vectors_list_says(name: str) -> None:
    vector = VECTORS[name]
    done = hexz("info", "--json", CORPUS / name)
    facts = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert facts["layout"] == vector["layout"]
    assert facts["compression"] == vector["compression"]
    assert facts["streams"]["disk"]["size"] == vector["streams"]["main"]["size"]
    assert len(facts["parents"]) == len(vector["parents"])
    blocks = facts["blocks"]["disk"]
    assert blocks["data"] + blocks["zero"] + blocks["parent"] > 0
    table = hexz("info", CORPUS / name).stdout.decode()
    assert vector["layout"] in table
    assert f"{vector['streams']['main']['size']} bytes" in table


def test_cat_writes_the_range_and_nothing_else(snapshot_file: Path, disk_image: Path, memory_image: Path) -> None:
    disk, memory = disk_image.read_bytes(), memory_image.read_bytes()
    for arguments, expected in [
        ((), disk),
        (("--stream", "memory"), memory),
        (("--offset", "1M", "--length", "3"), disk[1 << 20 : (1 << 20) + 3]),
        (("--offset", str(len(disk) - 2), "--length", "1G"), disk[-2:]),
        (("--offset", str(len(disk))), b""),
        (("--length", "0"), b""),
    ]:
        done = hexz("cat", snapshot_file, *arguments)
        assert (done.returncode, done.stderr) == (0, b""), arguments
        assert done.stdout == expected, arguments


def test_a_reader_that_has_enough_ends_cat_quietly(snapshot_file: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m hexz cat {snapshot_file} | head -c 10 | wc -c",
        shell=True, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("10", "")


def test_a_full_disk_is_one_line(snapshot_file: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hexz", "cat", snapshot_file], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (71, "hexz: cannot write the output: No space left on device\n")


FAILURES = [
    (("cat", "missing.hxz"), 66, "no such file"),
    (("info", "empty.hxz"), 65, "not a hexz snapshot: the file is empty"),
    (("info", "zeros.hxz"), 65, "not finished"),
    (("info", "foreign.hxz"), 65, "not a hexz snapshot"),
    (("info", "folder"), 66, "not a regular file"),
    (("cat", "snap.hxz", "--stream", "memory"), 66, "has no memory stream"),
    (("cat", "snap.hxz", "--offset", "1T"), 2, "past the end"),
    (("cat", "snap.hxz", "--offset", "-1"), 2, "--offset"),
    (("cat", "snap.hxz", "--offset", "many"), 2, "not a size"),
    (("cat", "damaged.hxz"), 65, "CRC-32 mismatch"),
    (("verify", "missing.hxz"), 66, "no such file"),
    (("verify", "encrypted.hxz"), 77, "--password-file"),
    (("verify", "encrypted.hxz", "--password-file", "wrong"), 77, "wrong password"),
    (("verify", "encrypted.hxz", "--password-file", "missing"), 78, "cannot read the password"),
    (("info", "orphan.hxz"), 66, "--parent-dir"),
    (("extract", "snap.hxz", "snap.hxz"), 2, "also read from"),
    (("extract", "snap.hxz", "folder"), 2, "is a folder"),
    (("extract", "snap.hxz", "/dev/null"), 2, "not a regular file"),
    (("extract", "snap.hxz", "none/out"), 71, "cannot write"),
    (("extract", "archive.hxz", "folder"), 2, "exists already"),
    (("extract", "damaged.hxz", "new"), 65, "CRC-32 mismatch"),
    (("pack", "raw", "new", "--workers", "0"), 2, "--workers"),
    (("pack", "raw", "new", "--level", "x"), 2, "--level"),
    (("pack", "raw"), 2, "OUT"),
    ((), 2, "COMMAND"),
    (("mend", "snap.hxz"), 2, "COMMAND"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind of trouble."""
    path = tmp_path_factory.mktemp("trouble")
    (path / "raw").write_bytes(samples.image(300_000))
    pack(str(path / "raw"), str(path / "snap.hxz"))
    good = (path / "snap.hxz").read_bytes()
    (path / "empty.hxz").write_bytes(b"")
    (path / "zeros.hxz").write_bytes(bytes(9000))
    (path / "foreign.hxz").write_bytes(b"QFI\xfb" + bytes(9000))
    (path / "folder").mkdir()
    (path / "damaged.hxz").write_bytes(good[:5000] + bytes([good[5000] ^ 4]) + good[5001:])
    (path / "encrypted.hxz").write_bytes((CORPUS / "0.4.5-lz4-encrypted-cdc.hxz").read_bytes())
    write_secret(path / "wrong", "guess\n")
    (path / "orphan.hxz").write_bytes((CORPUS / "0.5.5-zstd-par-child.hxz").read_bytes())
    archive(path / "archive.hxz", [entry("a")], b"hello")
    return path


@pytest.mark.parametrize("arguments, status, words", FAILURES, ids=[" ".join(case[0]) for case in FAILURES])
def test_trouble_is_one_line_and_the_right_status(
    folder: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = hexz(*arguments, cwd=folder)
    errors = done.stderr.decode()
    assert done.returncode == status, errors
    assert words in errors
    assert errors.startswith("hexz: ")
    assert errors.count("\n") == 1
    assert arguments[:1] == ("cat",) or not done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_name_that_is_no_text_is_no_trouble(folder: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.hxz"
    with open(odd, "wb") as file:
        file.write((folder / "snap.hxz").read_bytes())
    done = hexz("verify", os.fsdecode(odd))
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\udcff\udcfe.hxz: ok" in done.stdout


def test_verify_finds_every_damaged_block_and_goes_on(tmp_path: Path) -> None:
    image = b"".join(random.Random(seed).randbytes(4096) for seed in range(300))
    (tmp_path / "raw").write_bytes(image)
    pack(str(tmp_path / "raw"), str(tmp_path / "good.hxz"), str(tmp_path / "raw"), block_size=4096)
    data = bytearray((tmp_path / "good.hxz").read_bytes())
    with open_snapshot(str(tmp_path / "good.hxz"), new_context()) as snapshot:
        page = snapshot.streams["disk"].pages.read(0)
        hurt = [0, 1, 7, 150, 299]
        for number in hurt:
            data[page.stored_offset(number) + 3] ^= 0x80
    (tmp_path / "bad.hxz").write_bytes(data)
    done = hexz("verify", tmp_path / "good.hxz", tmp_path / "bad.hxz", tmp_path / "good.hxz")
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    for stream in ("disk", "memory"):  # the memory's blocks are the disk's: stored once, damaged in both
        for number, line in zip(hurt, [line for line in lines if f": {stream} block" in line]):
            assert f"{stream} block at {number * 4096} " in line
    assert len(lines) == 2 * len(hurt)
    report = done.stdout.decode().splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in report] == ["ok", "DAMAGED", "ok"]


def test_verify_sees_a_damaged_index_page_and_checks_the_others(tmp_path: Path) -> None:
    image = b"".join(seed.to_bytes(4, "big") * 128 for seed in range(9000))
    (tmp_path / "raw").write_bytes(image)
    pack(str(tmp_path / "raw"), str(tmp_path / "good.hxz"), block_size=512)
    data = bytearray((tmp_path / "good.hxz").read_bytes())
    with open_snapshot(str(tmp_path / "good.hxz"), new_context()) as snapshot:
        records = snapshot.streams["disk"].pages.records
    assert len(records) == 3
    data[records[1].offset] ^= 1
    data[records[2].offset + 8 + 16] ^= 1
    (tmp_path / "bad.hxz").write_bytes(data)
    done = hexz("verify", tmp_path / "bad.hxz")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert len(lines) == 2
    assert "index page 1" in lines[0]
    assert f"disk block at {8192 * 512} " in lines[1]


def test_verify_follows_parents(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(samples.image(300_000))
    pack(str(tmp_path / "raw"), str(tmp_path / "base.hxz"))
    pack(str(tmp_path / "raw"), str(tmp_path / "child.hxz"), parent=str(tmp_path / "base.hxz"))
    data = bytearray((tmp_path / "base.hxz").read_bytes())
    data[4200] ^= 1
    (tmp_path / "base.hxz").write_bytes(data)
    found: list[str] = []
    assert verify(str(tmp_path / "child.hxz"), found.append).damaged == 1
    assert "base.hxz" in found[0]


def test_nothing_is_drawn_unless_on_a_terminal(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        for seed in range(24):
            file.write(random.Random(seed).randbytes(1 << 20))
    command = ["pack", str(raw), str(tmp_path / "out.hxz"), "--compression", "zstd", "--level", "12"]
    piped = hexz(*command)
    assert (piped.returncode, piped.stderr) == (0, b"")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hexz", *command, "--force"], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # a terminal whose other end is closed
            break
        if not part:
            break
        drawn += part
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"\r" not in out
    assert b"packing disk [" in drawn
    assert b"MiB/s" in drawn
    assert b" left" in drawn
    assert drawn.endswith(b"\r\x1b[K")


def test_a_stream_is_extracted_sparse(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(1 << 20) + b"x" * 4096 + bytes(3 << 20))
    pack(str(tmp_path / "raw"), str(tmp_path / "snap.hxz"))
    (tmp_path / "out").write_bytes(b"older")
    done = hexz("extract", tmp_path / "snap.hxz", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "raw").read_bytes()
    assert (tmp_path / "out").stat().st_blocks * 512 <= 256 << 10


def test_zeros_that_were_stored_as_data_become_holes_too(tmp_path: Path) -> None:
    archive(tmp_path / "a.hxz", [], bytes(1 << 20) + b"end")
    extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"), "disk")
    assert (tmp_path / "out").read_bytes() == bytes(1 << 20) + b"end"
    assert (tmp_path / "out").stat().st_blocks * 512 <= 64 << 10


@pytest.mark.parametrize("name", ARCHIVES)
def test_folder_archives_come_out_as_folders(tmp_path: Path, name: str) -> None:
    vector = VECTORS[name]
    password = vector["password"].encode() if vector["password"] else None
    extracted = extract(str(CORPUS / name), str(tmp_path / "out"), password=password)
    assert extracted == (sum(file["size"] for file in vector["files"]), [])
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {file["path"] for file in vector["files"]}
    for file in vector["files"]:
        status = (tmp_path / "out" / file["path"]).stat()
        assert (status.st_size, int(status.st_mtime)) == (file["size"], file["mtime"])
        assert stat.S_IMODE(status.st_mode) == file["mode"] & 0o777


def test_the_file_called_memory_comes_from_the_memory_stream(tmp_path: Path) -> None:
    archive(tmp_path / "a.hxz", [entry("disk"), entry("memory", 0, 3)], b"hello", b"MEM")
    extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"))
    assert (tmp_path / "out" / "disk").read_bytes() == b"hello"
    assert (tmp_path / "out" / "memory").read_bytes() == b"MEM"


ODD: list[tuple[object, dict[str, bytes]]] = [
    ([entry("../up")], {"up": b"hello"}),
    ([entry("/etc/absolute")], {"etc/absolute": b"hello"}),
    ([entry("a/../../up")], {"up": b"hello"}),
    ([entry("../../../../../../../../../etc/passwd")], {"etc/passwd": b"hello"}),
    ([entry("./a")], {"a": b"hello"}),
    ([entry("a//b")], {"a/b": b"hello"}),
    ([entry("a", 0, 2), entry(".."), entry(""), entry("/"), entry("b/..")], {"a": b"he"}),
    ([entry("a\\..\\b")], {"a\\..\\b": b"hello"}),
    ([entry("a", 0, 2), entry("b", 2, 1), entry("a", 3, 2)], {"a": b"lo", "b": b"l"}),
    ([entry("a", 0, 2), entry("./a", 3, 2)], {"a": b"lo"}),
    ([entry("a", 0, 2), entry("b", 3, 3), entry("c", -1, 3), entry("d", 0, 1 << 70)], {"a": b"he"}),
    ([entry("a", 0, 2), entry("b", 0, True), entry("c", size="5"), {"offset": 0}, "d"], {"a": b"he"}),
    ([entry("a", mode=-1)], {"a": b"hello"}),
    ([entry("a", mtime="now")], {"a": b"hello"}),
    ([entry("\ud800")], {"?": b"hello"}),
    ([entry("line\nbreak\x1b[2J\u202e")], {"line\nbreak\x1b[2J\u202e": b"hello"}),
    ([entry("a", 0, 2), entry("a/b", 2, 2)], {"a": b"he"}),
    ([entry("a/b", 0, 2), entry("a", 2, 2)], {"a/b": b"he"}),
    ([entry("a\0b", 0, 2), entry("b", 2, 2)], {"b": b"ll"}),
    ([entry("x" * 300, 0, 2), entry("b", 2, 2)], {"b": b"ll"}),
]


@pytest.mark.parametrize("files, expected", ODD, ids=[str(case[0])[:60] for case in ODD])
def test_odd_lists_give_what_can_be_read_and_nothing_outside(
    tmp_path: Path, files: object, expected: dict[str, bytes]
) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "a.hxz"
    archive(source, files, b"hello")
    extract(str(source), str(tmp_path / "in" / "out"))
    made = [path for path in tmp_path.rglob("*") if path.is_file() and path != source]
    assert {str(path.relative_to(tmp_path / "in" / "out")): path.read_bytes() for path in made} == expected
    found: list[str] = []
    assert verify(str(source), found.append)[:2] == (0, 5) and not found


@pytest.mark.parametrize(
    "files", ["files", 3, {}, None, [], ["a.txt", "b.txt"], [entry("..")], [entry("a", 3, 3)]], ids=str
)
def test_a_remark_that_only_looks_like_a_list_leaves_the_disk_as_it_is(tmp_path: Path, files: object) -> None:
    archive(tmp_path / "a.hxz", files, b"hello")
    extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"hello"


def test_files_that_overlap_cannot_fill_the_disk(tmp_path: Path) -> None:
    archive(tmp_path / "a.hxz", [entry("a"), entry("b")], b"hello")
    with pytest.raises(CorruptSnapshot, match="overlap"):
        extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.hxz"]


def test_what_is_odd_is_told_and_is_no_damage(tmp_path: Path) -> None:
    files = [entry("../a", 0, 1), entry("b", 1, 1), entry("b", 2, 1), entry("b/c", 3, 1), entry("d", 9, 9)]
    archive(tmp_path / "a.hxz", files, b"hello")
    source = tmp_path / "a.hxz"
    for command in ("verify", "info"):
        done = hexz(command, source)
        told = done.stdout.decode()
        assert done.returncode == 0 and done.stderr == b""
        assert "the name '../a' is taken for 'a'" in told
        assert "the path 'b' comes more than once: the last one counts" in told
        assert "the place of 'd' is not within the disk stream of 5 bytes: it is left out" in told
    done = hexz("extract", source, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"hexz: {source}: left out: 'b/c' at 3 of the disk stream: it is listed as a file and as a folder\n"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"a": b"h", "b": b"l"}


def test_a_list_of_many_oddities_is_told_in_part(tmp_path: Path) -> None:
    archive(tmp_path / "a.hxz", [entry("a", 0, 1), *[entry("..")] * 5000], b"hello")
    oddities = verify(str(tmp_path / "a.hxz"), print).oddities
    assert len(oddities) == 101 and oddities[-1] == "and 4900 oddities more"


def test_modes_lose_what_is_dangerous_and_times_what_is_impossible(tmp_path: Path) -> None:
    archive(tmp_path / "a.hxz", [entry("run", mode=0o106777), entry("late", 0, 0, mtime=(1 << 63) - 1)], b"hello")
    extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"))
    assert stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode) == 0o777
    assert (tmp_path / "out" / "late").stat().st_size == 0


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "out").symlink_to("target")
    archive(tmp_path / "a.hxz", [entry("a")], b"hello")
    with pytest.raises(HexzError, match="exists already"):
        extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"))
    assert not list((tmp_path / "target").iterdir())


def test_a_damaged_archive_leaves_no_folder(tmp_path: Path) -> None:
    archive(tmp_path / "a.hxz", [entry("a", 0, 5000)], b"hello" * 1000)
    data = bytearray((tmp_path / "a.hxz").read_bytes())
    data[4100] ^= 1
    (tmp_path / "a.hxz").write_bytes(data)
    with pytest.raises(HexzError):
        extract(str(tmp_path / "a.hxz"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.hxz"]


SIGNED = [name for name, vector in VECTORS.items() if "public_key" in vector]


@pytest.mark.parametrize("name", SIGNED)
def test_signatures_are_checked_against_the_key(tmp_path: Path, name: str) -> None:
    (tmp_path / "key").write_bytes(bytes.fromhex(VECTORS[name]["public_key"]))
    (tmp_path / "other").write_bytes(b"k" * 32)
    (tmp_path / "short").write_bytes(b"k" * 31)
    data = bytearray((CORPUS / name).read_bytes())
    data[VECTORS[name]["metadata"][0]] ^= 1
    (tmp_path / "changed.hxz").write_bytes(data)
    archive(tmp_path / "unsigned.hxz", [], b"hello")
    for key, path, status, words in [
        ("key", CORPUS / name, 0, b""),
        ("other", CORPUS / name, 1, b"does not fit the key"),
        ("key", tmp_path / "changed.hxz", 1, b"does not fit the key"),
        ("key", tmp_path / "unsigned.hxz", 1, b"is not signed"),
        ("short", CORPUS / name, 78, b"32 raw bytes"),
        ("missing", CORPUS / name, 78, b"cannot read the key"),
    ]:
        done = hexz("verify", "--public-key", tmp_path / key, path)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
