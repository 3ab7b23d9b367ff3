"""The counters as the control API asks for them: by mountpoint, with its refusal where nothing is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hexz.catalog import Catalog
from hexz.control.mounts import MountTable
from hexz.metrics import Collected, nydus
from hexz.protocol.nydus.errors import ControlError, no_counter

__all__ = ["ControlFigures"]

_Answer = TypeVar("_Answer")


class ControlFigures:
    """Every method answers for the snapshot mounted at `wanted`, or for all of them together if it is None.

    Each raises ControlError (404) where nothing is mounted.
    """

    def __init__(self, catalog: Catalog, mounts: MountTable) -> None:
        self._catalog = catalog
        self._metrics = catalog.context.metrics
        self._mounts = mounts

    def _ask(
        self,
        wrapper: str,
        shape: Callable[[Collected, str | None], _Answer],
        wanted: str | None,
        heat: bool = False,
    ) -> _Answer:
        name = None
        if wanted is not None:
            try:
                # Clients of the cache's figures leave the slash out at times.
                name = self._mounts.name_at(wanted if wanted.startswith("/") else f"/{wanted}")
            except ControlError:
                raise no_counter(wrapper) from None
        try:
            return shape(self._metrics.collect(heat), name)
        except nydus.NoCounter:
            raise no_counter(wrapper) from None

    def events(self, since: float) -> dict[str, Any]:
        """The last errors, those after `since` (seconds since 1970)."""
        return nydus.events(self._metrics.collect(), since)

    def fs(self, wanted: str | None) -> dict[str, Any]:
        """Requests of clients, under the id that was asked for as it was written."""
        answer = self._ask("GlobalMetrics", nydus.fs, wanted)
        return answer if wanted is None else {**answer, "id": wanted}

    def files(self, wanted: str | None) -> dict[str, dict[str, Any]]:
        """Requests by stream."""
        return self._ask("FsFilesMetrics", nydus.files, wanted)

    def latest(self, wanted: str | None, clear: bool) -> list[list[int]]:
        """The stretches of streams that were read since this was last cleared."""

        def shape(collected: Collected, name: str | None) -> list[list[int]]:
            names = list(collected.snapshots) if name is None else [name]
            found = [self._metrics.find(one) for one in names]
            heats = [one.file.heat for one in found if one is not None and one.file is not None]
            return nydus.latest(stretch for heat in heats for stretch in heat.fresh(clear))

        return self._ask("FsFilesMetrics", shape, wanted)

    def pattern(self, wanted: str | None, top: int | None) -> list[dict[str, Any]]:
        """How often which stretch was wanted, at most `top` of them."""
        return self._ask("Pattern", lambda collected, name: nydus.pattern(collected, name, top), wanted, heat=True)

    def backend(self, wanted: str | None) -> dict[str, Any]:
        """Reads of snapshot files."""
        return self._ask("BackendMetrics", nydus.backend, wanted)

    def blobcache(self, wanted: str | None) -> dict[str, Any]:
        """The block cache."""
        return self._ask("BlobcacheMetrics", nydus.blobcache, wanted)

    def inflight(self, min_age_ms: int) -> list[dict[str, Any]]:
        """Requests being executed for at least so long."""
        return nydus.inflight(self._metrics.collect(), min_age_ms)
