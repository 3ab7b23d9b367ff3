"""Sockets and threads: one small handler per protocol over the catalog."""
