"""Snapshots that lie in an object store or behind a web server, read by ranges."""
