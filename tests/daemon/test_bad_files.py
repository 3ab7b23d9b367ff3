"""One file in a served directory that cannot be served: all others are, and everybody is told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests import vectors
from tests.peers import ROOT, Server, run
from tests.waiting import until


def vector(**wanted: bool) -> bytes:
    """Content of a stored snapshot that has, or has not, a password and parents."""
    names = (name for name, one in vectors.load().items() if all(bool(one[k]) == v for k, v in wanted.items()))
    return vectors.path(next(names)).read_bytes()


def encrypted(folder: Path) -> Path:
    (folder / "secret.hxz").write_bytes(vector(password=True, parents=False))
    return folder / "secret.hxz"


def orphan(folder: Path) -> Path:
    (folder / "orphan.hxz").write_bytes(vector(password=False, parents=True))
    return folder / "orphan.hxz"


def damaged(folder: Path) -> Path:
    (folder / "bad.hxz").write_bytes(b"HEXZ" + bytes(5000))
    return folder / "bad.hxz"


def control_character(folder: Path) -> Path:
    return Path(shutil.copy(folder / "good.hxz", folder / "\x1b]0;x\x07.hxz"))


def no_utf8(folder: Path) -> Path:
    return Path(shutil.copy(folder / "good.hxz", folder / os.fsdecode(b"caf\xe9.hxz")))


def device(folder: Path) -> Path:
    (folder / "dev.hxz").symlink_to("/dev/zero")
    return folder / "dev.hxz"


def subfolder(folder: Path) -> Path:
    (folder / "inner.hxz").mkdir()
    return folder / "inner.hxz"


def dangling(folder: Path) -> Path:
    (folder / "gone.hxz").symlink_to("nowhere")
    return folder / "gone.hxz"


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "damaged": (damaged, "bad.hxz: "),
    "encrypted, without its password": (encrypted, "secret.hxz: "),
    "a child without its parent": (orphan, "orphan.hxz: "),
    "a control character in its name": (control_character, "cannot be a snapshot's name"),
    "a name that is not UTF-8": (no_utf8, "cannot be a snapshot's name"),
    "a link to a device": (device, "dev.hxz: "),
    "a directory": (subfolder, "inner.hxz: "),
    "a link to nothing": (dangling, "gone.hxz: "),
}


@pytest.fixture
def folder(tmp_path: Path, snapshot_file: Path) -> Path:
    made = tmp_path / "served"
    made.mkdir()
    shutil.copy(snapshot_file, made / "good.hxz")
    return made


def ready(server: Server) -> dict[str, object]:
    reply = requests.get(f"{server.http}/readyz", timeout=30)
    assert reply.status_code == 200
    return dict(reply.json())


def skipped_by_metrics(server: Server) -> int:
    text = requests.get(f"{server.http}/metrics", timeout=30).text
    found = re.search(r"^hexz_snapshots_skipped (\d+)$", text, re.M)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_in_a_directory_keeps_nothing_else_away(folder: Path, snapshot_file: Path, case: str) -> None:
    make, says = CASES[case]
    bad = make(folder)
    with Server("--http-port", 0, folder) as server:
        assert ready(server) == {"status": "ready", "snapshots": 1, "skipped": 1}
        assert skipped_by_metrics(server) == 1
        lines = [line for line in server.stderr().splitlines() if "skipped: " in line]
        assert len(lines) == 1 and says in lines[0] and "warning" in lines[0].lower()
        shutil.copy(snapshot_file, folder / "new.hxz")
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "reloaded: 2 snapshots (1 new" in server.stderr())
        for name in ("good", "new"):
            assert requests.get(f"{server.http}/snapshots/{name}/disk", timeout=30).status_code == 200
        assert ready(server)["skipped"] == 1
        if bad.is_dir():
            bad.rmdir()
        else:
            bad.unlink()
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: ready(server) == {"status": "ready", "snapshots": 2})
        assert skipped_by_metrics(server) == 0


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_that_comes_later_keeps_no_reload_from_the_others(
    folder: Path, snapshot_file: Path, case: str
) -> None:
    make, says = CASES[case]
    with Server("--http-port", 0, folder) as server:
        make(folder)
        shutil.copy(snapshot_file, folder / "new.hxz")
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: "reloaded: 2 snapshots (1 new" in server.stderr())
        assert requests.get(f"{server.http}/snapshots/new/disk", timeout=30).status_code == 200
        assert ready(server)["skipped"] == skipped_by_metrics(server) == 1
        assert [says in line for line in server.stderr().splitlines() if "not reloaded: " in line] == [True]


def test_a_directory_with_nothing_but_bad_files_is_served_empty_and_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "good.hxz").unlink()
    damaged(folder), encrypted(folder)
    control = tmp_path / "control"
    with Server("--http-port", 0, "--control", control, folder) as server:
        assert "no snapshot is served: none of the 2 files can be" in server.stderr()
        assert ready(server) == {"status": "ready", "snapshots": 0, "skipped": 2}
        assert requests.get(f"{server.http}/disk", timeout=30).status_code == 404
        told = run(sys.executable, ROOT / "hexz_serve.py", "--status", "--control", control).stdout
        assert "serving nothing (2 files skipped) at " in told
        assert f"skipped: {folder}/bad.hxz: " in told and f"skipped: {folder}/secret.hxz: " in told


def test_check_tells_what_would_be_skipped(folder: Path) -> None:
    for make, _ in CASES.values():
        make(folder)
    told = run(sys.executable, ROOT / "hexz_serve.py", "--check", folder).stdout
    assert told.count("skipped: ") == len(CASES)
    assert all(says in told for _, says in CASES.values())
    assert "good (default): " in told and "\x1b" not in told


def test_a_refused_parent_keeps_away_its_child_alone(folder: Path) -> None:
    orphan(folder)
    told = run(sys.executable, ROOT / "hexz_serve.py", "--check", "--no-parents", folder).stdout
    assert "good (default): " in told and f"skipped: {folder}/orphan.hxz: " in told


def test_a_bad_file_that_is_named_itself_is_an_error_at_the_start(folder: Path) -> None:
    bad = damaged(folder)
    for arguments in ((bad,), (folder, bad), (bad, folder)):
        done = run(sys.executable, ROOT / "hexz_serve.py", "--check", *arguments, check=False)
        assert done.returncode == 65 and done.stderr.startswith(f"hexz-serve: {bad}: ")


def test_a_file_named_itself_has_its_name_before_one_of_a_directory(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "good.hxz", other / "good.hxz")
    for arguments in ((folder, other / "good.hxz"), (other / "good.hxz", folder)):
        told = run(sys.executable, ROOT / "hexz_serve.py", "--check", *arguments).stdout
        assert f"good (default): {other}/good.hxz: " in told
        assert f"skipped: {folder}/good.hxz: another snapshot is called 'good' already" in told
