"""A daemon that is restarted under load, with its sockets held meanwhile, leaves no request without an answer."""

from __future__ import annotations

from pathlib import Path

from tests.daemon.restarts import bad, restarts


def test_no_request_is_lost(tmp_path: Path) -> None:
    """``python -m tests.daemon.restarts`` does the same a hundred times."""
    found = restarts(3, tmp_path)
    assert not bad(found), found
    assert all(seen["answered"] for seen in found.values())
