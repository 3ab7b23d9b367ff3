"""Serve compressed snapshots: ``python3 hexz_serve.py SNAPSHOT [SNAPSHOT ...]``, or ``hexz-serve`` once installed."""

import os
import sys


def main() -> int:
    """The daemon; returns its exit status."""
    if not _at_home("hexz-serve"):
        return os.EX_CONFIG
    from hexz.cli import main as run

    return run()


def toolbox() -> int:
    """The commands beside it (``hexz pack`` and others); returns the exit status."""
    if not _at_home("hexz"):
        return os.EX_CONFIG
    from hexz.tools.main import main as run

    return run()


def _at_home(command: str) -> bool:
    try:
        from hexz.installation import at_home
    except ImportError:
        print(f"{command}: another project's package hexz is in the way: install hexz-serve again", file=sys.stderr)
        return False
    return at_home(command)


if __name__ == "__main__":
    # An isolated interpreter (python3 -I) does not look beside the script for itself.
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    sys.exit(main())
