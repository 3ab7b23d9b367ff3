"""Serve compressed snapshots: ``python hexz_serve.py SNAPSHOT [SNAPSHOT ...]``."""

import sys

from hexz.cli import main

if __name__ == "__main__":
    sys.exit(main())
