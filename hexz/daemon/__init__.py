"""Being a daemon: detaching, pid file, logs, signals, and the ways of systemd."""
