"""Images behind an NBD server: our NBD client, and a pool of its connections."""
