"""Who may read and write what, on every listener, and the secrets that show who somebody is."""
