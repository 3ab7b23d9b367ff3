"""Names to open snapshots: which there are, and who reads them."""

from hexz.catalog.catalog import Catalog, SyncResult
from hexz.catalog.leases import Lease, Served
from hexz.catalog.names import Source, check_name

__all__ = ["Catalog", "Lease", "Served", "Source", "SyncResult", "check_name"]
