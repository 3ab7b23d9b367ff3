"""S3 as values: signatures, names, listings, documents; no sockets, no files."""
