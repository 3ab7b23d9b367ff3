"""What all listeners of NBD have in common: the exports, TLS, and the threads that wait for cold blocks."""

from __future__ import annotations

from collections.abc import Sequence

from hexz.catalog import Catalog, Lease
from hexz.errors import NoSuchSnapshot
from hexz.protocol.nbd.constants import MAX_NAME
from hexz.protocol.nbd.handshake import ExportFacts, TlsMode
from hexz.servers.crowd import Crowd
from hexz.servers.nbd.misses import MissPools
from hexz.servers.nbd.outbox import Export
from hexz.servers.tls import TlsContext

__all__ = ["CatalogDirectory", "NbdSite"]

COMPANY = 4
"""So many connections with cached reads at once are served together; fewer do better in their own threads."""


class CatalogDirectory:
    """The catalog's streams as exports, sizes rounded up to `pad` bytes."""

    def __init__(self, catalog: Catalog, pad: int) -> None:
        self._catalog = catalog
        self._pad = pad

    def exports(self) -> Sequence[str]:
        """The names to list."""
        return [name for name in self._catalog.exports() if len(name.encode()) <= MAX_NAME]

    def open(self, name: str) -> tuple[Lease, Export] | None:
        """The export behind `name`, with the lease to release when the client has gone."""
        try:
            lease, stream = self._catalog.stream(name)
        except NoSuchSnapshot:
            return None
        size = -(-stream.size // self._pad) * self._pad
        return lease, Export(stream, size, lease.metrics, self._catalog.context.metrics)

    def opens(self, name: str, export: Export) -> bool:
        """Whether `name` still means the same stream."""
        opened = self.open(name)
        if opened is not None:
            opened[0].release()
        return opened is not None and opened[1].stream is export.stream

    def facts(self, name: str) -> ExportFacts | None:
        """What a client is told of the export."""
        opened = self.open(name)
        if opened is None:
            return None
        lease, export = opened
        stream = export.stream
        full = lease.name if stream.name == "disk" else f"{lease.name}/{stream.name}"
        description = f"{stream.name} of {lease.name}, {stream.size} bytes"
        facts = ExportFacts(full, export.size, description, max(stream.block_size, 4096), stream.file.thin)
        lease.release()
        return facts


class NbdSite:
    """Every stream of the catalog as a read-only export; for any number of listeners."""

    answers_spares = False  # a client of NBD comes to stay

    def __init__(
        self, catalog: Catalog, pad: int = 1, tls_mode: TlsMode = TlsMode.OFF, tls: TlsContext | None = None
    ) -> None:
        """`pad` rounds export sizes up to a multiple of so many bytes, with zeros."""
        self.scheme = "nbds" if tls_mode is TlsMode.REQUIRED else "nbd"
        self.directory = CatalogDirectory(catalog, pad)
        self.tls_mode = tls_mode
        self.tls = tls
        self.pools = MissPools()
        self.crowd = Crowd("nbd", COMPANY, None)
