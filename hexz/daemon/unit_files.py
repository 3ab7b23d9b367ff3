"""Unit files for whoever has this program from pip or pipx: templates, filled with how it is started here."""

from __future__ import annotations

import importlib.util
import os
import re
import site
import sys

from hexz.errors import ConfigError

__all__ = ["TEMPLATES", "hidden_from_services", "start_command", "unit_file"]

TEMPLATES = {
    "service": "hexz-serve@.service",
    "activated": "hexz-serve-activated@.service",
    "http-socket": "hexz-serve-http@.socket",
    "nbd-socket": "hexz-serve-nbd@.socket",
    "user": "user/hexz-serve@.service",
}
"""The template of each of `hexz.options.parser.UNIT_KINDS`, by its path below the folder ``systemd``."""
SHARED = "share/hexz-serve/systemd"
"""Where an installer puts that folder, below the prefix."""
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What ProtectHome= and PrivateTmp= of the system's services hide from them (systemd.exec(5))."""
MAX_TEMPLATE = 64 << 10
_HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The folder that holds the package ``hexz`` and, in a checkout, everything else."""
_START = "@PYTHON@ -I @LIBDIR@/hexz_serve.py"
_PLAIN = re.compile(r"[\w@%+=:,./ ~-]+")
"""Paths that a unit can name with no more than quotes around them."""


def unit_file(kind: str) -> str:
    """The text of the unit file of this kind, one of `TEMPLATES`, for the program as it was started now.

    Raises: ConfigError when this installation has no templates, or a unit cannot say how the program is started.
    """
    text = _template(TEMPLATES[kind]).replace(_START, " ".join(map(_quoted, start_command())))
    # What an installation by make would fill in, and manual pages that only it brings.
    lines = [line for line in text.splitlines() if not re.match(r"Documentation=.*(@\w+@|man:)", line)]
    return "\n".join(lines) + "\n"


def _template(name: str) -> str:
    folders = [f"{_HOME}/systemd", f"{sys.prefix}/{SHARED}", f"{site.getuserbase()}/{SHARED}"]
    for folder in folders:
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                return file.read(MAX_TEMPLATE)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{folder}/{name}: cannot read the unit file: {error.strerror}") from None
    raise ConfigError(
        f"no unit files in {' or '.join(folders)}: install hexz-serve again, or copy them from its source"
    )


def start_command() -> list[str]:
    """The words that start this very program: its own script in an environment, or the interpreter and hexz_serve.py.

    Raises: ConfigError when that is not to be known.
    """
    script = os.path.abspath(sys.argv[0])
    if not script.endswith(".py") and os.path.isfile(script) and os.access(script, os.X_OK):
        return [script]
    if not script.endswith("hexz_serve.py"):
        script = f"{_HOME}/hexz_serve.py"
    if not os.path.isfile(script) or not sys.executable:
        raise ConfigError("cannot tell how this program is started: ask the command hexz-serve itself")
    # Isolated, so that neither the environment nor the current folder adds code; but not without its packages.
    return [sys.executable, script] if _packages_are_the_users() else [sys.executable, "-I", script]


def _packages_are_the_users() -> bool:
    """What blocks are decompressed with comes from the user's own site folder, which an isolated interpreter skips."""
    found = importlib.util.find_spec("zstandard")
    own = site.getusersitepackages()
    return found is not None and found.origin is not None and found.origin.startswith(f"{own}/")


def _quoted(path: str) -> str:
    """A path as a word of ExecStart= (systemd.service(5)).  Raises: ConfigError."""
    if not _PLAIN.fullmatch(path):
        raise ConfigError(f"{path!r}: a unit cannot name this path: install hexz-serve elsewhere")
    escaped = path.replace("%", "%%")
    return f'"{escaped}"' if " " in escaped else escaped


def hidden_from_services(kind: str) -> str | None:
    """A folder of this installation that a unit of this kind does not see, if there is one."""
    if kind == "user":
        return None
    for path in [*start_command(), sys.prefix, _HOME]:
        if any(os.path.abspath(path).startswith(f"{folder}/") for folder in HIDDEN):
            return path
    return None
