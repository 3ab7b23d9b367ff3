"""slow.py FOLDER EXPECTED: a download that stalls until FOLDER/enough exists, and must then be the file EXPECTED.

FOLDER/begun appears with the first bytes.
"""

from __future__ import annotations

import os
import socket
import sys
import time

PATIENCE_S = 60


def main(folder: str, expected: str) -> int:
    """Download."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # so that the rest stays with the server
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", 8080))
        sock.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = sock.recv(1000)
        open(f"{folder}/begun", "w").close()
        while not os.path.exists(f"{folder}/enough"):
            time.sleep(0.05)
        while part := sock.recv(1 << 20):
            reply += part
    with open(expected, "rb") as file:
        return 0 if reply.partition(b"\r\n\r\n")[2] == file.read() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
