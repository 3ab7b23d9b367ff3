"""The toolbox beside the daemon: one module a command, run by ``hexz``."""
