"""The NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md): handshake, requests and replies as values."""
