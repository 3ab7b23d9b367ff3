"""hexz-serve: open compressed ``.hxz`` snapshots and serve them, read-only and unchanged."""

__version__ = "0.2.0"
PROJECT = "hexz-serve"
"""Tells this package from another project's of the same name."""
