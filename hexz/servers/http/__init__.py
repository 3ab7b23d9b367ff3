"""HTTP: connections, what arrives on them, the routes of the catalog."""
