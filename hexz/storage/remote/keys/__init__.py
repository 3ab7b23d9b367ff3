"""S3 keys: where they come from, and when they are read again."""

from hexz.storage.remote.keys.credentials import Credentials

__all__ = ["Credentials"]
