"""The figures that matter, in a few lines for people."""

from __future__ import annotations

import time
from collections import Counter

from hexz.metrics.figures import Collected, SnapshotFigures
from hexz.metrics.labels import READ
from hexz.units import format_size

__all__ = ["snapshot_line", "summary_lines"]

MAX_SNAPSHOTS = 10
"""Snapshots that the summary names."""


def snapshot_line(figures: SnapshotFigures) -> str:
    """What clients had of one snapshot."""
    reads = [one for one in figures.operations if one.op == READ]
    ok = sum(one.ok for one in reads)
    if not ok:
        said = "not read yet"
    else:
        waited = sum(one.partial + one.missed for one in reads)
        protocols: Counter[str] = Counter()
        for one in reads:
            protocols[one.protocol] += one.ok
        by = ", ".join(f"{protocol} {count:,}" for protocol, count in protocols.most_common() if count)
        size = format_size(sum(one.size for one in reads))
        said = f"{ok:,} reads ({by}), {size} sent, {100 * (ok - waited) / ok:.1f} % at once from the cache"
    failed = sum(one.outcomes.get("failed", 0) for one in figures.operations)
    return f"{said}, {failed:,} failed" if failed else said


def summary_lines(collected: Collected) -> list[str]:
    """One line for each snapshot, then the cache, the files, what is under way, and the last error."""
    named = sorted(collected.snapshots.values(), key=lambda one: -sum(op.size for op in one.operations))
    lines = [f"{figures.name}: {snapshot_line(figures)}" for figures in named[:MAX_SNAPSHOTS]]
    if len(named) > MAX_SNAPSHOTS:
        lines.append(f"and {len(named) - MAX_SNAPSHOTS} snapshots that were read less")
    cache = collected.cache
    lines.append(
        f"cache: {format_size(cache.held)} of {format_size(cache.budget)} in {cache.blocks:,} blocks, "
        f"{cache.loads:,} decompressed, {cache.evictions:,} made room for others"
    )
    storage = [figures.storage for figures in named]
    count = sum(one.reads for one in storage)
    mean = 1000 * sum(one.seconds for one in storage) / count if count else 0.0
    lines.append(
        f"files: {count:,} reads, {format_size(sum(one.size for one in storage))}, {mean:.2f} ms each, "
        f"{sum(one.errors for one in storage):,} failed; {format_size(sum(one.ahead.size for one in named))} read ahead"
    )
    if collected.flights:
        oldest = max(flight.age for flight in collected.flights)
        count = len(collected.flights)
        lines.append(f"under way: {count} request{'s' * (count != 1)}, the oldest for {oldest:.1f} s")
    if collected.events:
        last = collected.events[-1]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.time))
        lines.append(f"errors: {collected.events_seen:,}, the last one {when}: {last.text}")
    return lines
