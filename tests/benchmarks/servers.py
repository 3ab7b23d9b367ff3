"""Servers that are compared: each started on a free port, its URL once it answers, and ended afterwards."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.benchmarks.clients import program
from tests.peers import ROOT, Server

__all__ = [
    "Start", "cold", "find_original", "free_port", "nbdkit", "nginx", "original", "ours_http", "ours_nbd", "qemu_nbd",
    "running",
]  # fmt: skip

LOOK_AGAIN_S = 0.02
START_S = 20.0
STOP_S = 20.0

Start = Callable[[], AbstractContextManager[str]]
"""Starts a server and gives its URL."""

NGINX = """
daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{
  access_log off; {sending}; keepalive_requests 1000000000; open_file_cache max=10;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location = {path} {{ alias {raw}; }} }}
}}
"""


def free_port() -> int:
    """A TCP port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(
    command: list[object],
    port: int,
    start_s: float = START_S,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """The pid of `command`, once it answers on `port`; `log` takes what it prints.

    Raises: RuntimeError after `start_s` seconds, or when it ends before.
    """
    parts = [program(str(command[0])), *(str(part) for part in command[1:])]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log is not None else subprocess.DEVNULL
        process = subprocess.Popen(parts, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            deadline = time.monotonic() + start_s
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        said = log.read_text(errors="replace")[-2000:] if log is not None else ""
                        raise RuntimeError(f"{parts[0]} did not start: {said}") from None
                    time.sleep(LOOK_AGAIN_S)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cold(start: Start, client: Callable[[str], float]) -> float:
    """The client's figure with a server that was just started; the kernel has the files in memory."""
    with start() as url:
        return client(url)


@contextmanager
def ours_nbd(snapshot: Path, cache: str = "1G") -> Iterator[str]:
    """The daemon with a snapshot, over NBD."""
    with Server(snapshot, "--nbd-port", 0, "--cache-size", cache, "--log-level", "error") as server:
        yield server.nbd


@contextmanager
def ours_http(snapshot: Path, cache: str = "1G") -> Iterator[str]:
    """The daemon with a snapshot, the URL of its disk over HTTP."""
    with Server(snapshot, "--http-port", 0, "--cache-size", cache, "--log-level", "error") as server:
        yield f"{server.http}/disk"


@contextmanager
def nbdkit(raw: Path) -> Iterator[str]:
    """nbdkit's file plugin."""
    port = free_port()
    with running(["nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", port, "file", raw], port):
        yield f"nbd://127.0.0.1:{port}"


@contextmanager
def qemu_nbd(path: Path, form: str) -> Iterator[str]:
    """qemu-nbd with a raw or a qcow2 image."""
    port = free_port()
    with running(["qemu-nbd", "-r", "-t", "-e", 1024, "-b", "127.0.0.1", "-p", port, "-f", form, path], port):
        yield f"nbd://127.0.0.1:{port}"


@contextmanager
def nginx(raw: Path, folder: Path, sending: str = "sendfile on; tcp_nopush on", path: str = "/disk") -> Iterator[str]:
    """nginx with two workers and a raw image at `path`."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    (folder / "conf").write_text(NGINX.format(folder=folder, port=port, raw=raw, sending=sending, path=path))
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    with running(["nginx", "-p", folder, "-e", folder / "errors", "-c", folder / "conf", *user], port):
        yield f"http://127.0.0.1:{port}{path}"


@contextmanager
def original(serving: Path, snapshot: Path, *options: str) -> Iterator[str]:
    """The Hexz project's own server; with ``--nbd`` over NBD, else the URL of the disk over HTTP."""
    port = free_port()
    with running([serving, "serve", snapshot, *options, "--port", port], port):
        yield f"nbd://127.0.0.1:{port}" if "--nbd" in options else f"http://127.0.0.1:{port}/disk"


def find_original(*versions: str) -> tuple[str, Path] | None:
    """The first of these releases of the original that is built in ``.cache`` or on PATH, and where."""
    for version in versions:
        for candidate in (ROOT / ".cache" / f"hexz-{version}" / "bin" / "hexz", Path("hexz")):
            try:
                said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
            except OSError:
                continue
            if said.split() == ["hexz", version]:
                return version, candidate
    return None
