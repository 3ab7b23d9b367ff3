"""What the daemon counts, and the forms in which it is shown: Prometheus text, and lines for people."""

from hexz.metrics.counters import Cell, Meter, Metrics, Purpose, SnapshotMetrics
from hexz.metrics.figures import Collected

__all__ = ["Cell", "Collected", "Meter", "Metrics", "Purpose", "SnapshotMetrics"]
