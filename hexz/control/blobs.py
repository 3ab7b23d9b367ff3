"""Snapshot files registered as blobs of a domain, in the manner of Nydus's second API."""

from __future__ import annotations

import threading
from typing import Any

from hexz.catalog import Catalog
from hexz.control.roots import Roots
from hexz.errors import HexzError
from hexz.protocol.nydus.bodies import BlobRequest
from hexz.protocol.nydus.errors import nested, other
from hexz.storage.remote import real_path

__all__ = ["MAX_BLOBS", "BlobTable"]

MAX_BLOBS = 65536


class BlobTable:
    """(domain, id) to snapshot files.  Registering opens and checks a file; it is served under a mount only."""

    def __init__(self, catalog: Catalog, roots: Roots | None = None) -> None:
        """Files have to be below `roots`."""
        self._catalog = catalog
        self._roots = roots or Roots()
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}  # changed under _lock
        self._lock = threading.Lock()

    def create(self, request: BlobRequest) -> None:
        """Check the file and register it.

        Raises: ControlError.
        """
        key = (request.domain_id, request.blob_id)
        taken = nested("CreateBlobObject", "BlobCache", "blob_cache: entry already exists", "ALREADY_EXISTS")
        if key in self._entries:
            raise taken
        if len(self._entries) >= MAX_BLOBS:
            raise other("CreateBlobObject", "BlobCache", f"{MAX_BLOBS} blobs are registered already", "TOO_MANY")
        try:
            with self._catalog.open_aside(self._roots.allowed(request.path)) as snapshot:
                facts = snapshot.info()
        except HexzError as error:
            raise other("CreateBlobObject", "BlobCache", str(error), "BAD_SOURCE") from None
        entry = {
            "type": "bootstrap",
            "id": request.blob_id,
            "domain_id": request.domain_id,
            "metadata_path": request.path,
            "hexz": facts,
        }
        with self._lock:
            if self._entries.setdefault(key, entry) is not entry:
                raise taken

    def list(self, domain: str, blob: str | None) -> list[dict[str, Any]]:
        """The entries of a domain, or the one called `blob`, with the names under which each is served."""
        served = self._catalog.served()
        found = []
        for (in_domain, name), entry in list(self._entries.items()):
            if in_domain == domain and blob in (None, name):
                path = real_path(entry["metadata_path"])
                mounted = [one.name for one in served if real_path(one.path) == path]
                found.append({**entry, "mounted_as": mounted})
        return found

    def delete(self, domain: str, blob: str | None) -> None:
        """Forget one entry, or without `blob` every one of the domain.

        Raises: ControlError when there is no such entry.
        """
        with self._lock:
            if blob is None:
                for key in [key for key in self._entries if key[0] == domain]:
                    del self._entries[key]
            elif self._entries.pop((domain, blob), None) is None:
                raise nested("DeleteBlobObject", "BlobCache", "blob_cache: cache entry not found", "NOT_FOUND")

    def forget_cached(self, blob: str) -> None:
        """Drop the decompressed blocks of every snapshot that was registered as `blob`, in any domain.

        Raises: ControlError when there is no such entry.
        """
        paths = {
            real_path(entry["metadata_path"])
            for (_, name), entry in list(self._entries.items())
            if name == blob
        }  # fmt: skip
        if not paths:
            raise nested("DeleteBlobFile", "BlobCache", "blob_cache: cache entry not found", "NOT_FOUND")
        for one in self._catalog.served():
            if real_path(one.path) in paths:
                one.snapshot.forget_cached()
