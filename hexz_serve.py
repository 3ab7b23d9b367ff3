"""Serve compressed snapshots: ``python hexz_serve.py SNAPSHOT [SNAPSHOT ...]``."""

import os
import sys

# An isolated interpreter (python -I) does not look beside the script for itself.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from hexz.cli import main

if __name__ == "__main__":
    sys.exit(main())
