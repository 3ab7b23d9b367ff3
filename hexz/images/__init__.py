"""Images of the images API: one interface over snapshots, overlays, NBD servers and raw files."""
