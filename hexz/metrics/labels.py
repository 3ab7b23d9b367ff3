"""The words for what is counted: operations, and how a request can end."""

from __future__ import annotations

__all__ = [
    "ABORTED", "CLOSE", "EXTENTS", "FAILED", "INFO", "LIST", "OK", "OPEN", "OTHER", "PREFETCH", "READ",
    "REFUSED", "WRITE",
]  # fmt: skip

OK = "ok"
REFUSED = "refused"
"""The client asked for something it cannot have."""
FAILED = "failed"
"""The server could not do what it should."""
ABORTED = "aborted"
"""The peer left before it had everything."""

READ = "read"
INFO = "info"
"""Facts without data: HEAD, ``/info``."""
EXTENTS = "extents"
LIST = "list"
OPEN = "open"
"""A client attached to an export; `CLOSE` when it left."""
CLOSE = "close"
PREFETCH = "prefetch"
WRITE = "write"
OTHER = "other"
