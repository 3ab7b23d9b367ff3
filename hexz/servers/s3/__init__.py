"""The S3 gateway: an application of the HTTP server."""
