"""load.py ADDRESS FOLDER EXPECTED: clients that come and go, six at a time, until FOLDER/enough exists.

ADDRESS is a unix socket's path or HOST:PORT.  Each client connects, asks for bytes 4096-8191 of the disk and compares
them with those of the file EXPECTED.  FOLDER/begun appears when the first ones have been served.  Prints how it went;
fails unless every single one was.
"""

from __future__ import annotations

import collections
import os
import socket
import sys
import threading

CLIENTS = 6
PATIENCE_S = 60
REQUEST = b"GET /disk HTTP/1.1\r\nHost: localhost\r\nRange: bytes=4096-8191\r\nConnection: close\r\n\r\n"


def ask(address: str, expected: bytes) -> str:
    """What became of one client."""
    host, _, port = address.rpartition(":")
    step = "connect"
    with socket.socket(socket.AF_INET if host else socket.AF_UNIX) as sock:
        try:
            sock.settimeout(PATIENCE_S)
            sock.connect((host, int(port)) if host else address)
            step = "send"
            sock.sendall(REQUEST)
            step = "receive"
            reply = b""
            while part := sock.recv(65536):
                reply += part
        except OSError as error:
            return f"{step}: {error}"
    head, _, body = reply.partition(b"\r\n\r\n")
    return "good" if body == expected else f"wrong: {head[:40]!r}"


def main(address: str, folder: str, expected: str) -> int:
    """Run the clients."""
    with open(expected, "rb") as file:
        file.seek(4096)
        data = file.read(4096)
    seen: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def client() -> None:
        while not os.path.exists(f"{folder}/enough"):
            outcome = ask(address, data)
            with lock:
                seen[outcome] += 1
                if seen[outcome] == CLIENTS:
                    open(f"{folder}/begun", "w").close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"clients: {dict(seen)}")
    return 0 if set(seen) == {"good"} else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
