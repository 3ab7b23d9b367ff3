"""Wire protocols: bytes in, values out.  Nothing here knows a socket, a file or a thread."""
