"""The images API: an application of the HTTP server."""
