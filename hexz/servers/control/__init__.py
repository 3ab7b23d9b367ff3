"""The control API on its unix socket."""
