"""The JSON of the control API's answers about the daemon and its snapshots."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from hexz import __version__
from hexz.installation import PYTHON

__all__ = ["Instance", "backend_facts", "daemon_info", "format_mounted"]

RAFS_MAGIC = 0x52414653
"""What Nydus clients know as the magic of a file system image."""


class Instance(NamedTuple):
    """A snapshot that is served: where it is mounted, since when (seconds since 1970), and its facts."""

    mountpoint: str
    mounted: float
    info: dict[str, Any]


def format_mounted(seconds: float) -> str:
    """``2026-01-31 09:08:07.123456789 +00:00:00``: the one form that every release of nydusctl reads."""
    whole = int(seconds)
    nanoseconds = int(seconds % 1 * 1e9)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(whole))}.{nanoseconds:09d} +00:00:00"


def _config(instance: Instance) -> dict[str, Any]:
    """A configuration in which every release of nydusctl finds the keys that it insists on; ours are in ``hexz``."""
    return {
        "version": 2,
        "cache": {"type": "", "prefetch": {"enable": True}},
        "rafs": {"mode": "direct"},
        "backend": {"type": "localfs"},
        "mode": "direct",
        "device": {"backend": {"type": "localfs", "config": {}}},
        "fs_prefetch": {"enable": True, "threads_count": 0, "merging_size": 0},
        "hexz": instance.info,
    }


def _descriptor(instance: Instance) -> dict[str, Any]:
    return {
        "backend_type": "Rafs",
        "mountpoint": instance.mountpoint,
        "mounted_time": format_mounted(instance.mounted),
        "config": _config(instance),
    }


def daemon_info(
    own_id: str | None, supervisor: str | None, state: str, instances: list[Instance] | None, extra: dict[str, Any]
) -> dict[str, Any]:
    """GET daemon.  Without `instances` the collection is null, as in version 2; `extra` stands under ``hexz``."""
    collection = None if instances is None else {one.mountpoint: _descriptor(one) for one in instances}
    return {
        "version": {
            "package_ver": __version__,
            "git_commit": "",
            "build_time": "",
            "profile": "release",
            "rustc": f"python {PYTHON}",
        },
        "id": own_id,
        "supervisor": supervisor,
        "state": state,
        "backend_collection": collection,
        "hexz": extra,
    }


def backend_facts(info: dict[str, Any]) -> dict[str, Any]:
    """GET daemon/backend: the numbers of a superblock as far as a snapshot has them, and its own facts."""
    streams: dict[str, Any] = info["streams"]
    return {
        "magic": RAFS_MAGIC,
        "version": 1,
        "sb_size": 4096,
        "chunk_size": info["block_size"],
        "flags": 0,
        "inodes_count": len(streams),
        "hexz": info,
    }
