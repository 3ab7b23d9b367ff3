"""Unit files for whoever installed without make: they start the very program that printed them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hexz.daemon.unit_files import SHARED, TEMPLATES
from hexz.options.parser import UNIT_KINDS
from tests.peers import ROOT, need

FILES = {**TEMPLATES, "user": "hexz-serve@.service"}


def installed(folder: Path) -> Path:
    """A command as pip would make it, of a package that lies in a folder of its own."""
    site = folder / "lib"
    shutil.copytree(ROOT / "hexz", site / "hexz", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hexz_serve.py", site)
    script = folder / "bin" / "hexz-serve"
    script.parent.mkdir()
    head = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(site)!r})\n"
    script.write_text(f"{head}sys.prefix = {str(folder)!r}\nfrom hexz_serve import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


def ask(*command: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **kwargs,  # type: ignore[call-overload]
    )


def started_by(text: str) -> str:
    found = re.search(r"^ExecStart=(.*) \$HEXZ_OPTIONS", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


def test_every_template_has_a_kind() -> None:
    shipped = {str(path.relative_to(ROOT / "systemd")) for path in (ROOT / "systemd").rglob("*@.*")}
    assert set(TEMPLATES.values()) <= shipped
    assert tuple(TEMPLATES) == UNIT_KINDS


def test_a_checkout_is_started_by_its_interpreter_isolated() -> None:
    done = ask(sys.executable, "hexz_serve.py", "--print-unit", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert started_by(done.stdout) == f"{sys.executable} -I {ROOT}/hexz_serve.py"
    assert "@PYTHON@" not in done.stdout and "@DOCDIR@" not in done.stdout


def test_an_installed_command_is_started_by_its_own_name(tmp_path: Path) -> None:
    script = installed(tmp_path)
    shutil.copytree(ROOT / "systemd", tmp_path / SHARED)
    link = tmp_path / "on the path" / "hexz-serve"
    link.parent.mkdir()
    link.symlink_to(script)  # as pipx does
    for kind in ("service", "activated", "user"):
        assert started_by(ask(script, "--print-unit", kind).stdout) == str(script)
        assert started_by(ask(link, "--print-unit", kind).stdout) == f'"{link}"'


def test_without_templates_it_says_where_they_should_be(tmp_path: Path) -> None:
    done = ask(installed(tmp_path), "--print-unit", env={**os.environ, "PYTHONUSERBASE": str(tmp_path / "user")})
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("hexz-serve: no unit files in ") and f"{tmp_path}/{SHARED}" in done.stderr


def test_a_place_that_the_sandbox_hides_is_told(tmp_path: Path) -> None:
    script = installed(tmp_path)
    shutil.copytree(ROOT / "systemd", tmp_path / SHARED)
    hidden = str(tmp_path).startswith(("/tmp/", "/home/", "/root/", "/var/tmp/"))
    for kind in ("service", "user"):
        done = ask(script, "--print-unit", kind)
        assert done.returncode == 0
        assert ("is hidden from services of the system" in done.stderr) is (hidden and kind != "user")


def test_an_unknown_kind_names_the_known_ones() -> None:
    done = ask(sys.executable, ROOT / "hexz_serve.py", "--print-unit", "timer")
    assert done.returncode == 2 and all(kind in done.stderr for kind in UNIT_KINDS)


@pytest.mark.parametrize("scope", ["system", "user"])
def test_systemd_accepts_them(scope: str, tmp_path: Path) -> None:
    need("systemd-analyze", "systemd")
    paths = []
    for kind in UNIT_KINDS:
        if (kind == "user") is (scope == "user"):
            path = tmp_path / FILES[kind].replace("@.", "@x.")
            path.write_text(ask(sys.executable, ROOT / "hexz_serve.py", "--print-unit", kind).stdout)
            paths.append(path)
    done = ask("systemd-analyze", f"--{scope}", "verify", *paths, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
