"""The images API against ovirt-imageio's own daemon: the same bytes, oVirt's client.

Cold means that the server was just started; the kernel has the files in memory for everybody.  The client is a process
of its own with four connections: ``stream`` reads the extents with data and drops them; ``download`` is the client's
download to a raw file, which it writes through a qemu-nbd of its own.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hexz.tools.pack import pack
from tests.benchmarks.files import Files as OtherFiles
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.servers import free_port
from tests.peers import ROOT

IMAGE_BYTES = 512 << 20
BLOCK_BYTES = 64 << 10
CONNECTIONS = 4
ROUNDS = 3
START_S = 20.0
TICKET = "11111111-2222-3333-4444-55555555555"
GOALS = {"stream": (0.6, 1.0), "download": (0, 0)}
"""Of a snapshot, cold and again, to a raw file."""
NBD_GOAL = 1.3

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


def races(_: OtherFiles) -> Iterator[Race]:
    """The snapshot against a raw file, and NBD against NBD."""
    with tempfile.TemporaryDirectory(prefix="hexz-bench-", dir=place(IMAGE_BYTES)) as name, ExitStack() as stack:
        folder = Path(name)
        files = make_files(folder, IMAGE_BYTES)
        nbd = stack.enter_context(qemu_nbd(folder, files.raw))
        ours = stack.enter_context(hexz_serve(folder, files, nbd))
        theirs = stack.enter_context(ovirt_imageio(folder, files, nbd))

        def cold(what: str) -> float:
            with hexz_serve(folder, files, nbd) as urls:
                return rate(files, urls["snapshot"], what)

        for what, (cold_goal, warm_goal) in GOALS.items():
            rate(files, ours["snapshot"], what)
            work, peer = f"images {what}, {CONNECTIONS} connections", "ovirt-imageio file"
            contenders = {
                "cold": partial(cold, what),
                "again": partial(rate, files, ours["snapshot"], what),
                peer: partial(rate, files, theirs["file"], what),
            }
            pairs = (
                Pair(f"{work}, cold", "cold", (peer,), cold_goal),
                Pair(f"{work}, again", "again", (peer,), warm_goal),
            )
            yield Race("MB/s", contenders, pairs, ROUNDS)
            peer = "ovirt-imageio nbd"
            contenders = {
                "ours": partial(rate, files, ours["nbd"], what),
                peer: partial(rate, files, theirs["nbd"], what),
            }
            yield Race("MB/s", contenders, (Pair(f"{work}, nbd", "ours", (peer,), NBD_GOAL),), ROUNDS)


def place(size: int) -> str | None:
    """Memory, where there is room for the image, its snapshot and a copy: the servers are compared, not the disk."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 4 * size else None


def rate(files: Files, url: str, what: str) -> float:
    """Megabytes a second of oVirt's client.  What was downloaded is compared with the image."""
    out = files.raw.with_name("out.raw")
    seconds = fetch(url, what, out)
    if what == "download":
        subprocess.run(["cmp", "--", str(files.raw), str(out)], check=True)
        out.unlink()
    return IMAGE_BYTES / 1e6 / seconds
