"""Snapshots on servers that answer ranges: HTTP and S3."""

from hexz.storage.remote.places import StoreNames, is_remote, public_name, real_path
from hexz.storage.remote.settings import LOCAL_ONLY, RemoteSettings

__all__ = ["LOCAL_ONLY", "RemoteSettings", "StoreNames", "is_remote", "public_name", "real_path"]
