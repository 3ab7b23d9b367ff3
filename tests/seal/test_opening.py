"""Which seals are believed, what is refused without one, and what happens when a file and its seal part ways."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from hexz.errors import HexzError, SealDamaged, SealKeyNeeded, SealMismatch, SealMissing, SnapshotUnreadable
from hexz.format.seal import FANOUT, HASH_SIZE, LEAF_SIZE, SUFFIX, SealHeader, SealTree, seal_key
from hexz.snapshot import Opener, Snapshot, new_context, open_snapshot
from hexz.storage.sealed import SealPolicy
from hexz.tools.pack import pack
from hexz.tools.seal import seal
from tests import samples
from tests.conftest import CORPUS
from tests.crafted import Craft
from tests.peers import ROOT, Server, write_secret
from tests.seal.making import seal_path, sealed_copies, write_seal
from tests.waiting import until

SECRET = b"the secret behind keyed seals"
KEY = seal_key(SECRET)
DEADLINE_S = 30.0


def opened(path: Path, key: bytes | None = None, required: bool = False) -> Snapshot:
    return open_snapshot(str(path), new_context(8 << 20, workers=0, seals=SealPolicy(key, required)))


@pytest.fixture
def snap(tmp_path: Path) -> Path:
    """A snapshot of 300,000 bytes, not sealed."""
    (tmp_path / "raw").write_bytes(samples.image(300_000, seed=4))
    pack(str(tmp_path / "raw"), str(tmp_path / "snap.hxz"))
    return tmp_path / "snap.hxz"


def none(path: Path) -> None:
    pass


def plain(path: Path) -> None:
    write_seal(path)


def keyed(path: Path) -> None:
    write_seal(path, KEY)


@pytest.mark.parametrize(
    ("make", "key", "required", "outcome"),
    [
        (none, None, False, "none"),
        (none, KEY, False, "none"),
        (none, None, True, SealMissing),
        (none, KEY, True, SealMissing),
        (plain, None, False, "plain"),
        (plain, KEY, False, "plain"),
        (plain, None, True, "plain"),
        (plain, KEY, True, SealKeyNeeded),
        (keyed, None, False, SealKeyNeeded),
        (keyed, KEY, False, "keyed"),
        (keyed, None, True, SealKeyNeeded),
        (keyed, KEY, True, "keyed"),
        (keyed, seal_key(b"the secret of somebody else"), False, SealDamaged),
        (keyed, seal_key(b"the secret of somebody else"), True, SealDamaged),
    ],
)  # fmt: skip
def test_which_seals_are_believed(
    snap: Path, make: Callable[[Path], None], key: bytes | None, required: bool, outcome: str | type[HexzError]
) -> None:
    make(snap)
    if isinstance(outcome, str):
        with opened(snap, key, required) as snapshot:
            assert snapshot.info()["sealed"] == outcome
            assert snapshot.disk is not None
            assert b"".join(snapshot.disk.read(0, 300_000)) == samples.image(300_000, seed=4)
        return
    with pytest.raises(outcome) as caught:
        opened(snap, key, required)
    assert "snap.hxz" in str(caught.value)
    assert "\n" not in str(caught.value)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def other_file_of_that_size(path: Path) -> None:
    """The header says another block size, and all else is the same."""
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)


def sum_cut(path: Path) -> None:
    cut(seal_path(path))


def sum_empty(path: Path) -> None:
    seal_path(path).write_bytes(b"")


def sum_foreign(path: Path) -> None:
    seal_path(path).write_text("d41d8cd98f00b204e9800998ecf8427e  snap.hxz\n" * 3)


def sum_folder(path: Path) -> None:
    seal_path(path).unlink()
    seal_path(path).mkdir()


def sum_pipe(path: Path) -> None:
    seal_path(path).unlink()
    os.mkfifo(seal_path(path))


def sum_nowhere(path: Path) -> None:
    seal_path(path).unlink()
    seal_path(path).symlink_to("/none/such")


def sum_itself(path: Path) -> None:
    seal_path(path).unlink()
    seal_path(path).symlink_to(seal_path(path).name)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (grown, SealDamaged, "run hexz seal on it again"),
        (cut, SealDamaged, "run hexz seal on it again"),
        (other_file_of_that_size, SealMismatch, "run hexz seal on it"),
        (sum_cut, SealDamaged, "run hexz seal on it again"),
        (sum_empty, SealDamaged, "run hexz seal on it again"),
        (sum_foreign, SealDamaged, "it is no seal; if"),
        (sum_folder, SealDamaged, "not a regular file"),
        (sum_pipe, SealDamaged, "not a regular file"),
        (sum_nowhere, SealDamaged, "no such file"),
        (sum_itself, SealDamaged, "no such file"),
    ],
)
@pytest.mark.parametrize("required", [False, True])
def test_a_seal_that_does_not_fit_is_never_passed_over(
    snap: Path, change: Callable[[Path], None], error: type[HexzError], says: str, required: bool
) -> None:
    write_seal(snap)
    opened(snap).close()
    change(snap)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=says) as caught:
        opened(snap, required=required)
    assert caught.value.exit_status == 65
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_seal_that_may_not_be_read_is_no_missing_one(snap: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = write_seal(Path(shutil.copy(snap, name)))
        seal_path(path).chmod(0)
        user = os.geteuid()
        if not user:
            os.seteuid(65534)
        try:
            with pytest.raises(SnapshotUnreadable, match=r"snap.hxz.sum: permission denied"):
                opened(path)
        finally:
            os.seteuid(user)


def test_the_seal_is_looked_for_beside_the_file_itself(snap: Path, tmp_path: Path) -> None:
    """Links to a sealed file lead to its seal, and sealing a link seals the file."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current.hxz"
    link.symlink_to(snap)
    assert seal(str(link)).path == f"{snap}{SUFFIX}"
    with opened(link, required=True) as snapshot:
        assert snapshot.info()["sealed"] == "plain"
    os.truncate(seal_path(snap), 64)
    with pytest.raises(SealDamaged):
        opened(link)


def test_parents_are_held_to_the_same(tmp_path: Path) -> None:
    family = sealed_copies(tmp_path, [CORPUS / "0.5.5-zstd-par-child.hxz", CORPUS / "0.5.5-zstd-par-base.hxz"], KEY)
    opened(family[0], KEY, required=True).close()
    seal_path(family[1]).unlink()
    opened(family[0], KEY).close()
    with pytest.raises(SealMissing, match=r"par-base.hxz: has no seal"):
        opened(family[0], KEY, required=True)
    write_seal(family[1])
    with pytest.raises(SealKeyNeeded, match=r"par-base.hxz.sum: is a plain seal"):
        opened(family[0], KEY, required=True)
    write_seal(family[1], KEY)
    grown(family[1])
    with pytest.raises(SealDamaged, match=r"par-base.hxz"):
        opened(family[0], KEY)


def test_a_parent_that_is_damaged_is_told_to_who_reads_the_child(tmp_path: Path) -> None:
    family = sealed_copies(tmp_path, [CORPUS / "0.5.5-zstd-par-child.hxz", CORPUS / "0.5.5-zstd-par-base.hxz"])
    child, base = (write_seal(path, leaf_size=4096) for path in family)
    with opened(child) as snapshot, opened(base) as below:
        assert snapshot.disk is not None
        assert below.disk is not None
        entry = below.disk.pages.read(0).stored_offset(0)
        right = b"".join(snapshot.disk.read(0, snapshot.disk.size))
    data = bytearray(base.read_bytes())
    data[entry] ^= 1
    base.write_bytes(data)
    wrong = refused = 0
    with opened(child) as snapshot:
        assert snapshot.disk is not None
        for offset in range(0, snapshot.disk.size, 4096):
            length = min(4096, snapshot.disk.size - offset)
            try:
                wrong += b"".join(snapshot.disk.read(offset, length)) != right[offset : offset + length]
            except SealMismatch as error:
                assert str(base) in str(error)
                refused += 1
    assert not wrong
    assert refused


def test_a_file_that_was_open_without_a_seal_is_opened_anew_with_it(snap: Path) -> None:
    opener = Opener(new_context(8 << 20, workers=0))
    with opener.open(str(snap)) as bare:
        write_seal(snap)
        with opener.open(str(snap)) as sealed:
            assert (bare.info()["sealed"], sealed.info()["sealed"]) == ("none", "plain")
            assert bare.etag == sealed.etag, "a seal changes nothing of what is served"
            with opener.open(str(snap)) as again:
                assert again is sealed


def test_a_newer_file_with_the_old_seal_is_refused_and_the_old_one_stays(snap: Path, tmp_path: Path) -> None:
    old, new = samples.image(300_000, seed=4), samples.image(300_000, seed=5)
    (tmp_path / "newer").write_bytes(new)
    pack(str(tmp_path / "newer"), str(tmp_path / "newer.hxz"))
    write_seal(snap)
    with Server("--http-port", 0, "--require-seal", snap) as server:

        def served() -> bytes:
            return requests.get(f"{server.http}/disk", timeout=DEADLINE_S).content

        assert served() == old
        os.rename(tmp_path / "newer.hxz", snap)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded: " in server.stderr())
        assert "1 failed" in server.stderr()
        assert "snap.hxz.sum: seals a file of" in server.stderr()
        assert served() == old
        seal(str(snap))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "1 replaced" in server.stderr())
        assert served() == new
        seal_path(snap).unlink()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "has no seal" in server.stderr())
        assert served() == new


def test_the_key_is_read_again(snap: Path, tmp_path: Path) -> None:
    """SIGHUP, before the snapshots: seals of the new key are taken, those of the old one no more.

    What is open stays as it is while its seal does not fit, or the file of the key cannot be used.
    """
    secret = write_secret(tmp_path / "key", SECRET)
    old, new = samples.image(300_000, seed=4), samples.image(300_000, seed=5)
    other = b"another secret behind keyed seals"

    def replace(data: bytes, key: bytes) -> None:
        (tmp_path / "raw").write_bytes(data)
        pack(str(tmp_path / "raw"), str(tmp_path / "newer.hxz"))
        write_seal(tmp_path / "newer.hxz", key)
        os.rename(seal_path(tmp_path / "newer.hxz"), seal_path(snap))
        os.rename(tmp_path / "newer.hxz", snap)

    replace(old, KEY)
    with Server("--http-port", 0, "--require-seal", "--seal-key-file", secret, snap) as server:

        def served() -> bytes:
            return requests.get(f"{server.http}/disk", timeout=DEADLINE_S).content

        def reload() -> str:
            done, length = server.stderr().count("reloaded: "), len(server.stderr())
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.stderr().count("reloaded: ") > done)
            return server.stderr()[length:]

        replace(new, seal_key(other))
        assert "was made with another key" in reload()
        assert served() == old
        write_secret(secret, b"short")
        assert "seal key not reloaded: " in reload()
        assert served() == old
        write_secret(secret, other)
        assert "1 replaced" in reload()
        assert served() == new
        replace(old, KEY)
        assert "was made with another key" in reload()
        assert served() == new


@pytest.mark.parametrize(
    ("arguments", "make", "status", "says"),
    [
        (["--require-seal"], none, 66, "snap.hxz: has no seal (snap.hxz.sum)"),
        ([], keyed, 77, "snap.hxz.sum: is a keyed seal: give its key with --seal-key-file"),
        (["--require-seal", "--seal-key-file", "key"], plain, 77, "is a plain seal, which anybody can make"),
        (["--require-seal", "--seal-key-file", "other"], keyed, 65, "was made with another key"),
        (["--seal-key-file", "short"], keyed, 78, "short: the key of seals has 16 to 4096 bytes"),
        (["--seal-key-file", "none"], keyed, 78, "none: cannot read the key of seals"),
        (["--require-seal", "--seal-key-file", "key"], keyed, 0, "sealed (keyed)"),
        (["--require-seal"], plain, 0, "sealed (plain)"),
    ],
)  # fmt: skip
def test_the_daemon_says_which_in_one_line(
    snap: Path, arguments: list[str], make: Callable[[Path], None], status: int, says: str
) -> None:
    folder = snap.parent
    write_secret(folder / "key", SECRET + b"\n")
    write_secret(folder / "other", b"0123456789abcdef0123456789")
    write_secret(folder / "short", b"0123456789abcde\n")
    make(snap)
    done = subprocess.run(
        [sys.executable, str(ROOT / "hexz_serve.py"), "--check", *arguments, "snap.hxz"],
        capture_output=True, text=True, check=False, cwd=folder, timeout=60,
    )  # fmt: skip
    assert (done.returncode, says in done.stdout + done.stderr) == (status, True), done
    assert len(done.stderr.splitlines()) == (1 if status else 0)


def test_the_key_may_come_as_a_credential(snap: Path, tmp_path: Path) -> None:
    write_seal(snap, KEY)
    (tmp_path / "credentials").mkdir()
    write_secret(tmp_path / "credentials" / "seal-key", SECRET)
    done = subprocess.run(
        [sys.executable, str(ROOT / "hexz_serve.py"), "--check", "--require-seal", str(snap)],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "sealed (keyed)" in done.stdout


def test_opening_a_terabyte_reads_a_few_kilobytes_of_its_seal(tmp_path: Path) -> None:
    """A file of 1 TiB, nearly all hole: a block at the beginning, the index at the end."""
    craft = Craft()
    craft.data(b"a block" * 500)
    record = craft.page()
    craft.index_offset = (1 << 40) - 200
    content = craft.finish()
    path = tmp_path / "huge.hxz"
    with path.open("wb") as file:
        file.write(content[: record.offset + record.length])
        file.seek(craft.index_offset)
        file.write(content[record.offset + record.length :])
        size = file.tell()
    write_sparse_seal(path, size, [0, size - 1])
    context = new_context(8 << 20, workers=0, seals=SealPolicy(None, True))
    before = read_of_this_process()
    with open_snapshot(str(path), context) as snapshot:
        assert snapshot.disk is not None
        assert b"".join(snapshot.disk.read(0, 3500)) == b"a block" * 500
        assert read_of_this_process() - before < 300_000
        with pytest.raises(SealMismatch):
            snapshot.read_file(1 << 39, 1)


def read_of_this_process() -> int:
    """Bytes that its system calls have read."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def write_sparse_seal(path: Path, size: int, positions: list[int]) -> None:
    """A seal that is right for the leaves at these positions alone, and otherwise a hole."""
    tree = SealTree(size, LEAF_SIZE, None)
    with path.open("rb") as file, seal_path(path).open("w+b") as sums:
        sums.truncate(tree.size)

        def put(level: int, number: int, digest: bytes) -> None:
            sums.seek(tree.places[level] + number * HASH_SIZE)
            sums.write(digest)

        for position in positions:
            leaf = position // LEAF_SIZE
            file.seek(leaf * LEAF_SIZE)
            put(0, leaf, tree.leaf(leaf, file.read(LEAF_SIZE)))
        for level in range(tree.top):
            for position in positions:
                number = position // LEAF_SIZE // FANOUT ** (level + 1)
                place, length = tree.node_place(level, number)
                sums.seek(place)
                put(level + 1, number, tree.node(level, number, sums.read(length)))
        sums.seek(tree.node_place(tree.top, 0)[0])
        top = sums.read(tree.node_place(tree.top, 0)[1])
        sums.seek(0)
        sums.write(SealHeader(LEAF_SIZE, size, False, tree.root(top)).pack())


def test_a_copy_needs_its_seal_copied_too(snap: Path, tmp_path: Path) -> None:
    write_seal(snap)
    (tmp_path / "there").mkdir()
    for path in (snap, seal_path(snap)):
        shutil.copy(path, tmp_path / "there" / path.name)
    opened(tmp_path / "there" / "snap.hxz", required=True).close()
