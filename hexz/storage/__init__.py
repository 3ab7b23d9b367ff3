"""Where a snapshot's bytes come from: today a local file, checked against its seal where it has one."""

from hexz.storage.interface import SealFacts, Storage
from hexz.storage.local import LocalFile

__all__ = ["LocalFile", "SealFacts", "Storage"]
