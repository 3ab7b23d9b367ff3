"""What has to be installed beside this package, and who else lives in its folder.

Nothing here needs more than the standard library: it is what runs when something is missing.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable

from hexz import __version__
from hexz.errors import PackageMissing

__all__ = ["APART", "PYTHON", "at_home", "check_packages", "how_to_get", "versions"]

REQUIRED = {"lz4": "lz4.block", "zstandard": "zstandard"}
"""What the block codecs stand on: the package to install, and a module that only the real one has."""
OPTIONAL = ("cryptography", "blake3", "isal")
"""For encrypted snapshots and signatures, for recorded hashes, and for CRCs that take a fraction of the time."""
PYTHON = sys.version.split()[0]
"""The interpreter's version, without `platform`, which takes longer to import than all that is read here."""
APART = "uninstall both (pip uninstall hexz hexz-serve) and give each a virtual environment of its own"
"""What to do about another project's distribution ``hexz`` in the same environment."""
_RECORD = re.compile(r"hexz-([^-]+)\.(?:dist|egg)-info")
"""How installers name their record of a distribution that is called just ``hexz`` (PEP 376, PEP 503)."""


def how_to_get(packages: Iterable[str]) -> str:
    """The commands that install Python packages of these names, for the system's Python and for any other."""
    names = sorted(packages)
    debian = " ".join(f"python3-{name}" for name in names)
    return f"apt install {debian}, or in a virtual environment: pip install {' '.join(names)}"


def check_packages() -> None:
    """See that the packages are there without which no snapshot can be read.

    Raises: PackageMissing.
    """
    missing: list[str] = []
    for name, module in REQUIRED.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            missing.append(name)
        except ImportError as error:  # built for another Python
            raise PackageMissing(f"the package {name} cannot be loaded ({error}): {how_to_get([name])}") from None
    if missing:
        what = "the package {} is" if len(missing) == 1 else "the packages {} are"
        raise PackageMissing(f"{what.format(' and '.join(missing))} missing: {how_to_get(missing)}")


def versions() -> str:
    """The versions of this program and of what it runs on, as --version prints them: two lines."""
    found = [f"Python {PYTHON}"]
    for name in (*REQUIRED, *OPTIONAL):
        try:
            found.append(f"{name} {importlib.import_module(name).__version__}")
        except (ImportError, AttributeError):  # or it is a folder of that name
            found.append(f"no {name}")
    return f"hexz-serve {__version__}\n{', '.join(found)}"


def at_home(command: str) -> bool:
    """Whether the package ``hexz`` is this one; when another project's is near, `command` says so on standard error.

    That one and ours both own ``hexz/__init__.py``: whichever was installed last has it, and removing one breaks the
    other.  Ours does without trouble what it does, so that is worth a warning only.
    """
    package = sys.modules["hexz"]
    other = _intruder()
    if getattr(package, "PROJECT", None) != "hexz-serve":
        where = getattr(package, "__file__", None) or "the package hexz"
        print(f"{command}: {where} belongs to {other or 'another project'}: {APART}", file=sys.stderr)
        return False
    if other is not None:
        print(f"{command}: warning: the project {other} is installed in the same place: {APART}", file=sys.stderr)
    return True


def _intruder() -> str | None:
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        names = os.listdir(folder)
    except OSError:  # inside an archive
        return None
    versions = [found[1] for found in map(_RECORD.fullmatch, names) if found]
    return f"hexz {versions[0]}" if versions else None
