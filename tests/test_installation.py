"""What a host that lacks a package is told, and whose code runs: never that of the folder a command is called in."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hexz import __version__
from tests.peers import ROOT

DAEMON = ROOT / "hexz_serve.py"
LAUNCHER = ROOT / "hexz" / "__main__.py"
BARE = ["-I", "-S"]
"""Options of an interpreter that sees the standard library only."""


def python(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **kwargs,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    ("prefix", "arguments"),
    [
        ("hexz-serve", [*BARE, DAEMON, "none.hxz"]),
        ("hexz-serve", [*BARE, DAEMON, "--daemon", "none.hxz"]),
        ("hexz-serve", [*BARE, DAEMON, "--check", "--nbd", "none.hxz"]),
        ("hexz", ["-S", "-m", "hexz", "info", "none.hxz"]),
        ("hexz", [*BARE, LAUNCHER, "pack", "raw", "none.hxz"]),
        ("hexz", [*BARE, LAUNCHER, "verify", "none.hxz"]),
    ],
)
def test_missing_packages_are_one_line_that_says_how_to_get_them(prefix: str, arguments: list[object]) -> None:
    done = python(*arguments, cwd=ROOT)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"{prefix}: the packages lz4 and zstandard are missing: ")
    assert done.stderr.count("\n") == 1
    assert "apt install python3-lz4 python3-zstandard" in done.stderr and "pip install lz4 zstandard" in done.stderr


@pytest.mark.parametrize("arguments", [[DAEMON, "--help"], [DAEMON, "--version"], [LAUNCHER, "pack", "--help"]])
def test_help_needs_no_packages(arguments: list[object]) -> None:
    done = python(*BARE, *arguments)
    assert done.returncode == 0 and "hexz" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("program", [[DAEMON], ["-m", "hexz"]], ids=["hexz-serve", "hexz"])
def test_versions_are_told_of_all_that_is_in_use(program: list[object]) -> None:
    told = [f"hexz-serve {__version__}", f"Python {platform.python_version()}"]
    for name in ("lz4", "zstandard", "cryptography", "blake3", "isal"):
        told.append(f"{name} {version(name)}" if importlib.util.find_spec(name) else f"no {name}")
    assert python(*program, "--version", cwd=ROOT).stdout == f"{told[0]}\n{', '.join(told[1:])}\n"
    without = python("-S", *program, "--version", cwd=ROOT).stdout.splitlines()
    assert without == [told[0], f"{told[1]}, no lz4, no zstandard, no cryptography, no blake3, no isal"]


def test_questions_about_a_daemon_need_no_packages(tmp_path: Path) -> None:
    done = python(*BARE, DAEMON, "--status", "--pid-file", tmp_path / "none.pid")
    assert done.returncode == 3 and "not running" in done.stdout


def test_a_package_for_another_python_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "zstandard.py").write_text("raise ImportError('built for another Python')\n")
    done = python(DAEMON, "none.hxz", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert "zstandard cannot be loaded (built for another Python): apt install python3-zstandard" in done.stderr


def test_the_service_manager_learns_what_is_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(30)
        done = subprocess.Popen(
            [sys.executable, *BARE, str(DAEMON), "none.hxz"],
            env={**os.environ, "NOTIFY_SOCKET": path},
            stderr=subprocess.DEVNULL,
        )
        told = manager.recv(4096).decode()
        manager.close()
        assert done.wait(30) == 78
    assert told.startswith("STATUS=the packages lz4 and zstandard are missing: ")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with this project in it, as an installer would leave it."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "hexz", folder / "hexz", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DAEMON, folder)
    return folder


ENTRIES = {
    "hexz-serve": ["-c", "import sys, hexz_serve; sys.exit(hexz_serve.main())", "--version"],
    "hexz": ["-c", "import sys, hexz_serve; sys.exit(hexz_serve.toolbox())", "--version"],
    "hexz as a module": ["-m", "hexz", "--version"],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_another_projects_package_of_the_same_name_is_noticed(site: Path, tmp_path: Path, entry: str) -> None:
    command = entry.partition(" ")[0]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    alone = python(*ENTRIES[entry], env=environment, cwd=tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")

    # Ours was installed last: it works, theirs does not, and the next removal would break ours as well.
    (site / "hexz-0.8.2.dist-info").mkdir()
    warned = python(*ENTRIES[entry], env=environment, cwd=tmp_path)
    assert warned.returncode == 0 and warned.stdout == alone.stdout
    assert warned.stderr.startswith(f"{command}: warning: the project hexz 0.8.2 is installed in the same place: ")
    assert warned.stderr.count("\n") == 1 and "pip uninstall hexz hexz-serve" in warned.stderr

    # Theirs was installed last.
    (site / "hexz" / "__init__.py").write_text("__version__ = '0.8.2'\n")
    taken = python(*ENTRIES[entry], env=environment, cwd=tmp_path)
    assert (taken.returncode, taken.stdout) == (78, "")
    assert taken.stderr.startswith(f"{command}: {site}/hexz/__init__.py belongs to hexz 0.8.2: ")
    assert taken.stderr.count("\n") == 1 and "pip uninstall hexz hexz-serve" in taken.stderr


def test_a_package_that_is_wholly_anothers_is_noticed(site: Path, tmp_path: Path) -> None:
    shutil.rmtree(site / "hexz")
    (site / "hexz").mkdir()
    (site / "hexz" / "__init__.py").write_text("class Archive:\n    pass\n")
    done = python(*ENTRIES["hexz-serve"], env={**os.environ, "PYTHONPATH": str(site)}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("hexz-serve: another project's package hexz ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("program", [["-I", LAUNCHER], ["-I", DAEMON], [LAUNCHER], [DAEMON]])
def test_no_code_comes_from_the_folder_a_command_is_called_in(program: list[object], tmp_path: Path) -> None:
    planted = "raise SystemExit('code from this folder runs')\n"
    for name in ("lz4.py", "zstandard.py", "secrets.py", "json.py", "argparse.py"):
        (tmp_path / name).write_text(planted)
    (tmp_path / "hexz").mkdir()
    (tmp_path / "hexz" / "__init__.py").write_text(planted)
    arguments = ["info", "none.hxz"] if program[-1] == LAUNCHER else ["none.hxz"]
    done = python(*program, *arguments, cwd=tmp_path)
    assert done.returncode == 66 and "none.hxz: no such file" in done.stderr


def test_run_as_a_module_it_takes_other_packages_from_elsewhere(tmp_path: Path) -> None:
    for name in ("lz4.py", "zstandard.py"):
        (tmp_path / name).write_text("raise SystemExit('code from this folder runs')\n")
    done = python("-m", "hexz", "info", "none.hxz", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 66 and "none.hxz: no such file" in done.stderr
