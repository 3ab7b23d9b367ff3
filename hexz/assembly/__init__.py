"""What a configuration becomes: the catalog, sites and listeners, and the daemon that they make up."""
