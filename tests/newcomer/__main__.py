"""``make check-newcomer``: what a newcomer does, on a Debian that has nothing but its base packages.

The README's requirements are installed as it says, then both commands run as it writes them: first by a user who may
not install anything, then as root.  Last, the installed daemon runs with Debian's packages alone, under a systemd of
its own.  Printed is each command with its time and its last line.  Needs root; the bare root and what was done in it
stay in .cache/bare, the base is used again by the next run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".cache" / "bare"
CLONE = "/home/newcomer/hexz-serve"
READY = "Ctrl-C stops it"
INSTALL = "apt-get -qq -y install"
QUIETLY = ">/dev/null 2>&1"
DETACHED = """cd /tmp && head -c 3000000 /dev/urandom >disk.raw && hexz pack disk.raw snap.hxz &&
hexz-serve --daemon --port 8099 snap.hxz && hexz-serve --status --port 8099 && hexz-serve --stop --port 8099"""
OWN = """make install PREFIX=$HOME/.local && ~/.local/bin/hexz-serve --version &&
test -e ~/.local/share/systemd/user/hexz-serve@.service && make uninstall PREFIX=$HOME/.local"""
STOP_S = 30.0


class World:
    """A bare root, with a clone of this checkout in the home of the user newcomer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.run("-", "true")
        clone = FOLDER / name / "upper" / CLONE.lstrip("/")
        clone.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        self.run("-", "chown -R newcomer: /home/newcomer")

    def command(self, user: str, text: str) -> list[str]:
        """How `text` is run by a shell of that user in the clone; root where the user is "-"."""
        enter = ["bash", str(HERE / "bare.sh"), str(FOLDER), self.name]
        if user != "-":
            become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
            enter += [*become, "env", f"HOME=/home/{user}", f"USER={user}"]
        return [*enter, "bash", "-c", f"cd {CLONE} 2>/dev/null; {text}"]

    def run(self, user: str, text: str, status: int = 0) -> str:
        """Run it to its end and see its status; what it printed."""
        begun = time.monotonic()
        done = subprocess.run(
            self.command(user, text), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", check=False,
        )  # fmt: skip
        if text != "true" and not text.startswith("chown"):
            tell(self.name, user, text, begun, done.stdout)
        if done.returncode != status:
            sys.exit(f"{done.stdout}\n`{text}` ended with {done.returncode}, not {status}")
        return done.stdout

    def make_run(self, user: str) -> None:
        """`make run`, until it says that it is ready; then what it serves, and Ctrl-C."""
        begun = time.monotonic()
        process = subprocess.Popen(
            self.command(user, "make run; exit $?"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if READY in line:
                break
        else:
            sys.exit(f"make run ended by itself:\n{printed}")
        address = re.search(r"listening (http://\S+)", printed)
        assert address is not None, printed
        with urllib.request.urlopen(f"{address[1]}disk", timeout=STOP_S) as answer:
            served = answer.read()
        raw = FOLDER / self.name / "upper" / CLONE.lstrip("/") / "build" / "sample" / "sample.raw"
        assert served == raw.read_bytes(), "make run serves something else than its sample"
        os.killpg(process.pid, signal.SIGINT)
        left = process.stdout.read()
        status = process.wait(STOP_S)
        tell(self.name, user, "make run, one download, Ctrl-C", begun, printed + left)
        assert status in (0, 130), f"make run ended with {status}: {left}"


def tell(world: str, user: str, text: str, begun: float, printed: str) -> None:
    """A line for a command: where, who, what, how long, and its last line."""
    lines = [line for line in printed.splitlines() if line.strip()] or [""]
    who = "root" if user == "-" else user
    print(f"{world}: {who}$ {text}\n    {time.monotonic() - begun:.0f} s: {lines[-1]}", flush=True)


def requirements(what: str) -> str:
    """One of README's lines of Debian packages."""
    found = re.search(
        rf"^(?:sudo )?(apt install [a-z0-9 .-]+?)\s+# {what}", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert found is not None, f"README names no packages {what}"
    return f"{found[1].replace('apt install', INSTALL)} {QUIETLY}"


def without_rights() -> None:
    """A user who may not install packages: a set-up that fails and mends itself, both commands, no peers."""
    world = World("alone")
    install = requirements("for the two commands")
    half = install.replace("python3-venv", "python3")
    world.run("-", f"apt-get -qq update {QUIETLY}; {half}")
    printed = world.run("newcomer", "make run", status=2)
    assert "apt install python3-venv" in printed, printed
    world.run("newcomer", "test ! -e .venv")
    world.run("-", install)
    world.make_run("newcomer")
    world.run("newcomer", "du -sh .venv")
    printed = world.run("newcomer", "make test PEERS=no")
    assert re.search(r"\d+ passed", printed), printed
    assert "make peers" in printed.splitlines()[-1], printed


def with_peers() -> None:
    """Root: `make test` brings the peers, and skips nothing."""
    world = World("peers")
    world.run("-", f"apt-get -qq update {QUIETLY}; {requirements('for the two commands')}")
    world.run("-", f"git config --global --add safe.directory {CLONE}; CI=true make test")


def installed() -> None:
    """`make install` with Debian's packages alone, and a service under systemd."""
    world = World("installed")
    world.run("-", f"apt-get -qq update {QUIETLY}; {INSTALL} make {QUIETLY}")
    printed = world.run("-", "make install", status=2)
    assert "apt install python3-lz4 python3-zstandard" in printed, printed
    world.run("-", requirements("for the daemon"))
    world.run("-", "make install")
    world.run("newcomer", DETACHED)
    world.run("newcomer", OWN)
    world.run("-", f"{INSTALL} --no-install-recommends systemd dbus procps iproute2 curl libnbd-bin {QUIETLY}")
    world.run("-", f"bash tests/daemon/box.sh bash {CLONE}/tests/newcomer/service.sh")
    world.run("-", "make uninstall")


def main() -> int:
    """Everything, or the parts that are named."""
    parts = {"alone": without_rights, "peers": with_peers, "installed": installed}
    for name in sys.argv[1:] or parts:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        parts[name]()
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
