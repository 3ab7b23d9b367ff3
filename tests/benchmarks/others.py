"""Other servers to compare with: a free port for each, started, and ended afterwards."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["free_port", "running"]

LOOK_AGAIN_S = 0.02


def free_port() -> int:
    """A TCP port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(command: list[object], port: int, start_s: float) -> Iterator[int]:
    """The pid of `command`, once it answers on `port`.  Raises: RuntimeError after `start_s` seconds."""
    parts = [str(part) for part in command]
    process = subprocess.Popen(parts, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + start_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{parts[0]} did not start") from None
                time.sleep(LOOK_AGAIN_S)
        yield process.pid
    finally:
        process.terminate()
        process.wait()
