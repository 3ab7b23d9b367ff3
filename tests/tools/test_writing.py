"""What the toolbox writes: never over something else unasked, and nobody else's to read where it is memory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hexz.errors import UsageError
from hexz.snapshot import new_context, open_snapshot
from hexz.tools import output
from hexz.tools.extract import extract
from hexz.tools.pack import pack
from tests import samples, vectors
from tests.peers import ROOT, write_secret


def hexz(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(ROOT / "hexz" / "__main__.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_bytes(samples.image(300 << 10))
    return path


def test_pack_replaces_nothing_unasked(tmp_path: Path, raw: Path) -> None:
    base, child = tmp_path / "base.hxz", tmp_path / "child.hxz"
    assert hexz("pack", raw, base).returncode == 0
    assert hexz("pack", raw, child, "--parent", base).returncode == 0
    before = base.read_bytes()
    (tmp_path / "other").write_bytes(b"x" * 10_000)
    done = hexz("pack", tmp_path / "other", base)  # child's parent
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"hexz: {base}: exists already: choose another name, or replace it with --force\n"
    assert base.read_bytes() == before
    done = hexz("pack", tmp_path / "other", child, "--force")
    assert done.returncode == 0
    with open_snapshot(str(child), new_context(1 << 20)) as snapshot:
        assert snapshot.disk is not None and snapshot.disk.size == 10_000
    # What is read from is not replaced, whatever is said.
    done = hexz("pack", raw, base, "--parent", base, "--force")
    assert done.returncode == 2 and "is also read from" in done.stderr
    assert base.read_bytes() == before


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "hidden"])
def test_a_file_that_appears_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, nameless: bool
) -> None:
    if not nameless:
        monkeypatch.setattr(output, "_open_nameless", lambda folder, mode: None)
    link = os.link

    def refuse(source: str, target: str, **more: int) -> None:
        if target == str(tmp_path / "out"):
            raise PermissionError(1, "Operation not permitted")
        link(source, target, **more)

    if not links:
        monkeypatch.setattr(output.os, "link", refuse)
    out = tmp_path / "out"
    with output.whole_file(str(out), replace=False) as file:
        file.write(b"first")
    assert out.read_bytes() == b"first"
    out.unlink()
    with pytest.raises(UsageError, match="exists already"), output.whole_file(str(out), replace=False) as file:
        file.write(b"new")
        out.write_bytes(b"came first")
    assert out.read_bytes() == b"came first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_password_without_a_parent_is_refused_for_nothing_would_be_encrypted(tmp_path: Path, raw: Path) -> None:
    write_secret(tmp_path / "password", "secret")
    done = hexz("pack", "--password-file", tmp_path / "password", raw, tmp_path / "out.hxz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("hexz: --password-file opens an encrypted --parent: what pack writes is never encrypted\n")
    assert not (tmp_path / "out.hxz").exists()


def test_memory_is_its_owners_alone(tmp_path: Path, raw: Path) -> None:
    umask = os.umask(0o022)
    try:
        both, plain = tmp_path / "both.hxz", tmp_path / "plain.hxz"
        pack(str(raw), str(both), memory=str(raw))
        pack(str(raw), str(plain))
        assert (mode(both), mode(plain)) == (0o600, 0o644)
        both.chmod(0o644)
        extract(str(both), str(tmp_path / "disk"), "disk")
        extract(str(both), str(tmp_path / "memory"), "memory")
        assert (mode(tmp_path / "disk"), mode(tmp_path / "memory")) == (0o644, 0o600)
    finally:
        os.umask(umask)


def test_the_plain_text_of_something_encrypted_is_its_owners_alone(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    name, vector = next((n, v) for n, v in vectors.load().items() if v["password"] and not v["parents"])
    out = tmp_path / "plain"
    extract(str(vectors.path(name)), str(out), "disk", vector["password"].encode())
    assert mode(out) == 0o600


def test_one_damaged_place_is_one_place(tmp_path: Path, raw: Path) -> None:
    path = tmp_path / "snap.hxz"
    pack(str(raw), str(path))
    with path.open("r+b") as file:
        file.seek(4096 + 10)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    done = hexz("verify", path)
    assert done.returncode == 1 and ": DAMAGED: 1 place in " in done.stdout


def test_names_do_not_write_to_the_terminal(tmp_path: Path, raw: Path) -> None:
    folder = tmp_path / "evil\x1b[2J\x9b1m"
    folder.mkdir()
    base, child = folder / "base.hxz", folder / "child.hxz"
    for done in (
        hexz("pack", raw, base),
        hexz("pack", raw, child, "--parent", base),
        hexz("info", child),
        hexz("verify", child),
        hexz("info", folder / "none.hxz"),
        hexz("extract", child, folder / "disk"),
        hexz("pack", raw, base, "--level", "99"),
    ):
        told = done.stdout + done.stderr
        assert "\x1b" not in told and "\x9b" not in told, told
    assert "evil\\x1b[2J\\x9b1m" in hexz("info", child).stdout


def test_a_misspelt_option_of_a_command_is_guessed(tmp_path: Path) -> None:
    done = hexz("pack", "raw", "out.hxz", "--compresion", "zstd")
    assert done.returncode == 2 and "did you mean --compression?" in done.stderr
    assert "(see hexz --help)" in done.stderr and "python" not in done.stderr
