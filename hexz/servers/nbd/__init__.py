"""NBD: the handshake on a socket, then requests and replies."""
