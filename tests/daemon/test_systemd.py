"""The units, on this distribution's own systemd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.peers import ROOT, can_boot, missing, need, run

HERE = Path(__file__).parent
HELPERS = {"put_in_place", "explain", "loaded"}
SCENARIOS = [
    line.split("(")[0]
    for line in (HERE / "inside.sh").read_text().splitlines()
    if re.fullmatch(r"[a-z_]+\(\) \{", line) and line.split("(")[0] not in HELPERS
]
EXPOSURE = {"hexz-serve@.service": 0.9, "hexz-serve-activated@.service": 0.2}


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed units as instances of x, those for one user in the folder user."""
    need("systemd-analyze", "systemd")
    image = tmp_path_factory.mktemp("image")
    run("make", "-s", "install", f"DESTDIR={image}", "PREFIX=/usr", cwd=ROOT)
    folder = tmp_path_factory.mktemp("units")
    for kind in ("system", "user"):
        (folder / kind).mkdir()
        for unit in (image / "usr/lib/systemd" / kind).iterdir():
            text = unit.read_text().replace("/usr/lib/hexz-serve", f"{image}/usr/lib/hexz-serve")
            (folder / kind / unit.name.replace("@.", "@x.")).write_text(text.replace(f"file:{image}", "file:"))
    return folder


@pytest.mark.parametrize("kind", ["system", "user"])
def test_units_are_valid(units: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = run("systemd-analyze", f"--{kind}", "verify", "--man=no", *sorted((units / kind).iterdir()))
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("unit", EXPOSURE)
def test_exposure(units: Path, unit: str) -> None:
    path = units / "system" / unit.replace("@.", "@x.")
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", path, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE[unit]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_service(scenario: str, snapshot_file: Path, disk_image: Path) -> None:
    for program, package in (
        ("systemctl", "systemd"),
        ("curl", "curl"),
        ("nbdinfo", "libnbd-bin"),
        ("pkill", "procps"),
        ("dbus-daemon", "dbus"),
        ("sshd", "openssh-server"),
        ("nginx", "nginx-light"),
        ("openssl", "openssl"),
    ):
        need(program, package)
    lacking = can_boot()
    if lacking:
        missing(f"systemd, and {lacking} to boot it in a box")
    shown = {str(path.parent) for path in (snapshot_file, disk_image)}
    if str(ROOT).startswith("/tmp/"):
        shown.add(str(ROOT))
    command = ["env", f"BOX_SHOW={' '.join(sorted(shown))}", "bash", HERE / "box.sh"]
    run(*command, "bash", HERE / "inside.sh", scenario, ROOT, snapshot_file, disk_image, timeout=200)
