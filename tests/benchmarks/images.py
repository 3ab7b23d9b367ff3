"""The images API against ovirt-imageio's own daemon: the same bytes, oVirt's client, one run.

Every figure is the median over the rounds; within a round all servers take their
turn.  Cold means that the server was just started; the kernel has the files in
memory for everybody.  The client is a process of its own with four connections:
``download`` is the client's download to a raw file, which it writes through a
qemu-nbd of its own; ``stream`` reads the extents with data and drops them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from hexz.tools.pack import pack
from tests.benchmarks.others import free_port
from tests.benchmarks.report import Row

ROOT = Path(__file__).resolve().parents[2]
IMAGE_BYTES = 1 << 30
BLOCK_BYTES = 64 << 10
CONNECTIONS = 4
START_S = 20.0
TICKET = "11111111-2222-3333-4444-55555555555"
GOALS = {"nbd": 1.3, "snapshot, cold": 1.0}

CLIENT = f"""
import sys, threading, time
from ovirt_imageio import client
url, what, out = sys.argv[1:]
began = time.monotonic()
if what == "download":
    client.download(url, out, None, fmt="raw", max_workers={CONNECTIONS})
else:
    class Null:
        def write(self, data):
            return len(data)
    with client.ImageioClient(url) as first:
        spans = [(e.start + at, min(32 << 20, e.length - at))
                 for e in first.extents() if not e.zero for at in range(0, e.length, 32 << 20)]
    def work():
        with client.ImageioClient(url) as connection:
            while True:
                try:
                    start, length = spans.pop()
                except IndexError:
                    return
                connection.write_to(Null(), start, length)
    workers = [threading.Thread(target=work) for _ in range({CONNECTIONS})]
    began = time.monotonic()
    for worker in workers: worker.start()
    for worker in workers: worker.join()
print(time.monotonic() - began)
"""


class Files(NamedTuple):
    """The same image in every form."""

    raw: Path
    snapshot: Path


StartServer = Callable[[Path, Files, Path], AbstractContextManager["dict[str, str]"]]


def make_files(folder: Path, size: int) -> Files:
    """An image of noise and words, with one eighth zeros."""
    files = Files(folder / "image.raw", folder / "image.hxz")
    source = random.Random(5)
    words = [bytes(source.choices(b"abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) + b" " for _ in range(2000)]
    texts = [b"".join(source.choices(words, k=14000))[:BLOCK_BYTES].ljust(BLOCK_BYTES, b".") for _ in range(64)]
    with files.raw.open("wb") as out:
        for number in range(size // BLOCK_BYTES):
            if number % 256 < 32:
                out.seek(BLOCK_BYTES, 1)
            elif number % 2:
                out.write(source.randbytes(BLOCK_BYTES))
            else:
                out.write(texts[number % 64])
        out.truncate(size)
    pack(str(files.raw), str(files.snapshot), block_size=BLOCK_BYTES)
    return files


@contextmanager
def process(command: list[str], ready: Callable[[], bool], log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server from when it is ready until the block ends."""
    with log.open("wb") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **more})
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()}")
            time.sleep(0.01)
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(START_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(port: int) -> Callable[[], bool]:
    """Whether somebody listens at `port`."""

    def ask() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ask


@contextmanager
def qemu_nbd(folder: Path, raw: Path) -> Iterator[Path]:
    """The NBD server behind both daemons."""
    where = folder / "nbd.sock"
    where.unlink(missing_ok=True)
    command = ["qemu-nbd", "-r", "-t", "-e", "64", "-k", str(where), "-f", "raw", "-x", "disk", str(raw)]
    with process(command, where.exists, folder / "qemu-nbd.log"):
        yield where


@contextmanager
def hexz_serve(folder: Path, files: Files, nbd: Path) -> Iterator[dict[str, str]]:
    """Our daemon: URLs by backend."""
    port = free_port()
    images = folder / "images"
    images.mkdir(exist_ok=True)
    (images / "nbd").write_text(json.dumps({"socket": str(nbd), "export": "disk", "mode": "ro"}))
    (images / "file").write_text(json.dumps({"backend": "file", "file": str(files.raw), "mode": "ro"}))
    command = [
        sys.executable, str(ROOT / "hexz_serve.py"), "--port", str(port), "--images-dir", str(images),
        "--images-allow", str(folder), "--log-level", "error", str(files.snapshot),
    ]  # fmt: skip
    with process(command, answers(port), folder / "hexz.log"):
        base = f"http://127.0.0.1:{port}/images"
        yield {"snapshot": f"{base}/image", "nbd": f"{base}/nbd", "file": f"{base}/file"}


@contextmanager
def ovirt_imageio(folder: Path, files: Files, nbd: Path) -> Iterator[dict[str, str]]:
    """oVirt's daemon with its own settings: URLs by backend."""
    port = free_port()
    control = folder / "ovirt.sock"
    conf = folder / "ovirt" / "conf.d"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / "bench.conf").write_text(
        f"[daemon]\nrun_dir = {folder}\ndrop_privileges = false\nsystemd_enable = false\n"
        f"[tls]\nenable = false\n[remote]\nhost = 127.0.0.1\nport = {port}\n[local]\nenable = false\n"
        f"[control]\ntransport = unix\nsocket = {control}\n"
        "[handlers]\nkeys = stderr\n[logger_root]\nlevel = ERROR\nhandlers = stderr\n"
    )
    control.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("ovirt-imageio")), "--conf-dir", str(folder / "ovirt")]
    with process(command, lambda: answers(port)() and control.exists(), folder / "ovirt.log"):
        urls = {}
        for number, (backend, target) in enumerate(
            {"file": f"file://{files.raw}", "nbd": f"nbd:unix:{nbd}:exportname=disk"}.items()
        ):
            ticket = {
                "uuid": f"{TICKET}{number}", "url": target, "size": files.raw.stat().st_size,
                "ops": ["read"], "timeout": 3600, "sparse": True,
            }  # fmt: skip
            put_ticket(control, ticket)
            urls[backend] = f"http://127.0.0.1:{port}/images/{TICKET}{number}"
        yield urls


def put_ticket(control: Path, ticket: dict[str, object]) -> None:
    """Register a ticket at oVirt's control socket."""
    body = json.dumps(ticket).encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(control))
        head = f"PUT /tickets/{ticket['uuid']} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        answer = sock.recv(4096)
    if not re.match(rb"HTTP/1.1 200", answer):
        raise RuntimeError(f"the ticket was refused: {answer!r}")


def fetch(url: str, what: str, out: Path) -> float:
    """Seconds that oVirt's client needs."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, url, what, str(out)], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def measure(rounds: int = 3, size: int = IMAGE_BYTES) -> list[Row]:
    """MiB/s by work and server."""
    figures: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="hexz-bench-", dir=place(size)) as name:
        folder = Path(name)
        files = make_files(folder, size)
        for _ in range(rounds):
            for server in (hexz_serve, ovirt_imageio):
                for backend in ("snapshot", "nbd", "file"):
                    for what in ("stream", "download"):
                        for label, seconds in timed(folder, files, server, backend, what):
                            figures.setdefault((what, server.__name__, label), []).append(size / seconds / (1 << 20))
    medians = {key: statistics.median(values) for key, values in figures.items()}
    rows = []
    for (what, server_name, label), ours in medians.items():
        if server_name == "hexz_serve":
            against = "nbd" if label == "nbd" else "file"
            theirs = medians[what, "ovirt_imageio", against]
            rows.append(
                Row(
                    f"{what}, {CONNECTIONS} connections, {label}",
                    "MiB/s",
                    {"hexz-serve": ours, f"ovirt-imageio {against}": theirs},
                    ours / theirs,
                    GOALS.get(label, 0),
                    f"ovirt-imageio {against}",
                )
            )
    return rows


def place(size: int) -> str | None:
    """Memory, where there is room for the image, its snapshot and a copy: the servers are compared, not the disk."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 4 * size else None


def timed(folder: Path, files: Files, server: StartServer, backend: str, what: str) -> Iterator[tuple[str, float]]:
    """(backend and state, seconds) of a server that was just started."""
    with ExitStack() as stack:
        nbd = stack.enter_context(qemu_nbd(folder, files.raw))
        url = stack.enter_context(server(folder, files, nbd)).get(backend)
        if url is None:
            return
        out = folder / "out.raw"
        for turn in ("snapshot, cold", "snapshot, again") if backend == "snapshot" else (backend,):
            yield turn, fetch(url, what, out)
            if what == "download":
                same(files.raw, out)
                out.unlink()


def same(one: Path, other: Path) -> None:
    """What was downloaded is the image."""
    subprocess.run(["cmp", "--", str(one), str(other)], check=True)
