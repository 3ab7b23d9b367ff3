"""HTTP/1.x as values (RFC 9110 and 9112): request heads, ranges, conditions, responses.  No sockets."""
