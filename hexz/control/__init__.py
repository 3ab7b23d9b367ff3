"""What the control API does to the daemon: mounts, registered blobs, run-time settings."""
