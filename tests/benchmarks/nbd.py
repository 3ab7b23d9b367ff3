"""The NBD server against nbdkit and qemu-nbd: the same image, the same clients, one run.

Every figure is the median over the rounds, and within a round all servers take
their turn, so that what else the machine does falls on all of them.  Cold means
that the server was just started; the kernel has the files in memory for everybody.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from hexz.tools.pack import pack
from tests.benchmarks.others import free_port
from tests.benchmarks.report import Row

ROOT = Path(__file__).resolve().parents[2]
IMAGE_BYTES = 256 << 20
BLOCK_BYTES = 64 << 10
SECTORS = 4096
ROOTS = [Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share")]
IDLE_CONNECTIONS = 1000
START_S = 10.0
ROUNDS = 3
SECONDS = 2.0
"""Of each cached measurement."""
NEEDED = {"nbdkit": "nbdkit", "qemu-nbd": "qemu-utils", "fio": "fio", "nbdcopy": "libnbd-bin"}
RAW_PEERS = ("nbdkit raw", "qemu-nbd raw")


class Files(NamedTuple):
    """The same image in every form."""

    raw: Path
    lz4: Path
    zstd: Path
    qcow2: Path


def make_files(folder: Path) -> Files:
    """An image with what disks hold: the programs, libraries and texts of this machine, file after file."""
    files = Files(*(folder / name for name in ("image.raw", "lz4.hxz", "zstd.hxz", "image.qcow2")))
    left = IMAGE_BYTES
    with files.raw.open("wb") as out:
        for path in sorted(path for root in ROOTS for path in root.rglob("*")):
            if left and path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                content = (content + bytes(-len(content) % SECTORS))[:left]
                out.write(content)
                left -= len(content)
    if left:
        raise RuntimeError(f"{' '.join(map(str, ROOTS))} have less than {IMAGE_BYTES >> 20} MiB")
    for path, compression in ((files.lz4, "lz4"), (files.zstd, "zstd")):
        pack(str(files.raw), str(path), compression=compression, block_size=BLOCK_BYTES)
    _quietly(
        "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", files.raw, files.qcow2
    )
    return files


def _quietly(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Running(NamedTuple):
    """A server that answers: its process and its URI."""

    process: subprocess.Popen[bytes]
    uri: str
    port: int


@contextmanager
def _serving(command: Callable[[int], list[object]]) -> Iterator[Running]:
    port = free_port()
    process = subprocess.Popen([str(part) for part in command(port)], stdout=subprocess.DEVNULL)
    try:
        _await(port, process)
        yield Running(process, f"nbd://127.0.0.1:{port}", port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.recv(18)
                sock.sendall(b"\0\0\0\3IHAVEOPT\0\0\0\2\0\0\0\0")  # «abort», so that nobody complains
                sock.recv(20)
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("a server did not start") from None
            time.sleep(0.02)


def _hexz(path: Path, cache: str = "1G") -> Callable[[int], list[object]]:
    return lambda port: [
        sys.executable, ROOT / "hexz_serve.py", path, "--nbd-port", port, "--cache-size", cache, "--log-level", "error",
    ]  # fmt: skip


def _nbdkit(path: Path) -> Callable[[int], list[object]]:
    return lambda port: ["nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", port, "file", path]


def _qemu(path: Path, form: str) -> Callable[[int], list[object]]:
    return lambda port: ["qemu-nbd", "-r", "-t", "-e", "1024", "-b", "127.0.0.1", "-p", port, "-f", form, path]


def fio(uri: str, jobs: int, depth: int, *options: str) -> dict[str, float]:
    """Reads per second and bytes per second of one fio run."""
    report = _quietly(
        "fio", "--name=n", "--ioengine=nbd", f"--uri={uri}", "--rw=randread", "--bs=4k", f"--numjobs={jobs}",
        f"--iodepth={depth}", "--thread", "--group_reporting", f"--size={IMAGE_BYTES}", "--randrepeat=0",
        "--output-format=json", *options,
    )  # fmt: skip
    read = json.loads(report[report.index("{") :])["jobs"][0]["read"]
    return {"iops": read["iops"], "bytes": read["bw_bytes"]}


def _warm(server: Running) -> None:
    _quietly("nbdcopy", "--no-extents", server.uri, "null:")


def copied(uri: str) -> float:
    """Megabytes a second of one whole copy."""
    began = time.perf_counter()
    _quietly("nbdcopy", uri, "null:")
    return IMAGE_BYTES / 1e6 / (time.perf_counter() - began)


def _median(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


CACHED = [
    ("4 KiB random, 1 x 1", 1, 1, "4k", 1.0),
    ("4 KiB random, 1 x 16", 1, 16, "4k", 1.3),
    ("4 KiB random, 1 x 64", 1, 64, "4k", 1.3),
    ("4 KiB random, 4 x 1", 4, 1, "4k", 1.0),
    ("4 KiB random, 4 x 16", 4, 16, "4k", 1.5),
    ("256 KiB sequential, 1 x 8", 1, 8, "256k", 1.0),
]

COPY = "nbdcopy"


def cached_rows(files: Files) -> list[Row]:
    """Reads of what is in memory: ours decompressed in its cache, theirs in the page cache."""
    servers = {
        "hexz lz4": _hexz(files.lz4),
        "nbdkit raw": _nbdkit(files.raw),
        "qemu-nbd raw": _qemu(files.raw, "raw"),
        "qemu-nbd zstd": _qemu(files.qcow2, "qcow2"),
    }
    samples: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        running = {name: stack.enter_context(_serving(command)) for name, command in servers.items()}
        for server in running.values():
            _warm(server)
        for _ in range(ROUNDS):
            for name, jobs, depth, size, _goal in CACHED:
                sequential = ["--rw=read"] if "sequential" in name else []
                for which, server in running.items():
                    figures = fio(
                        server.uri, jobs, depth, f"--bs={size}", "--time_based", f"--runtime={SECONDS}", *sequential
                    )
                    figure = figures["bytes"] / 1e6 if sequential else figures["iops"]
                    samples.setdefault(name, {}).setdefault(which, []).append(figure)
            for which, server in running.items():
                samples.setdefault(COPY, {}).setdefault(which, []).append(copied(server.uri))
    rows = []
    for name, goal in [*((work[0], work[4]) for work in CACHED), (COPY, 0.0)]:
        figures = _median(samples[name])
        best = max(figures[peer] for peer in RAW_PEERS)
        unit = "reads/s" if "random" in name else "MB/s"
        rows.append(Row(f"cached {name}", unit, figures, figures["hexz lz4"] / best, goal, "the better on raw"))
    return rows


def cold_rows(files: Files) -> list[Row]:
    """Whole copies and random reads from servers just started."""
    servers = {
        "hexz lz4": _hexz(files.lz4),
        "hexz zstd": _hexz(files.zstd),
        "qemu-nbd zstd": _qemu(files.qcow2, "qcow2"),
        "nbdkit raw": _nbdkit(files.raw),
    }
    copies: dict[str, list[float]] = {name: [] for name in servers}
    reads: dict[str, list[float]] = {name: [] for name in servers}
    once = [f"--blockalign={BLOCK_BYTES}", f"--number_ios={IMAGE_BYTES // BLOCK_BYTES}"]
    for _ in range(ROUNDS):
        for name, command in servers.items():
            with _serving(command) as server:
                copies[name].append(copied(server.uri))
            with _serving(command) as server:
                reads[name].append(fio(server.uri, 1, 16, *once)["iops"])
    rows = []
    for work, unit, samples, goals in (
        (COPY, "MB/s", copies, (3.0, 2.0)),
        ("4 KiB random, 1 x 16", "reads/s", reads, (2.0, 1.2)),
    ):
        figures = _median(samples)
        peer = figures["qemu-nbd zstd"]
        for ours, goal in zip(("hexz lz4", "hexz zstd"), goals):
            shown = figures if ours == "hexz lz4" else {}
            rows.append(Row(f"cold {work}, {ours}", unit, shown, figures[ours] / peer, goal, "qemu-nbd, zstd qcow2"))
    return rows


def _resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def raise_limit() -> None:
    """Have descriptors for as many connections, here and in what is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * IDLE_CONNECTIONS + 200), hard), hard))


def idle_row(files: Files) -> Row:
    """Memory of connections that agreed on an export, read once, and wait."""
    raise_limit()
    servers = {"hexz lz4": _hexz(files.lz4), "qemu-nbd raw": _qemu(files.raw, "raw")}
    each = {name: _grown(command) / IDLE_CONNECTIONS / 1024 for name, command in servers.items()}
    ratio = each["hexz lz4"] / 100
    return Row(f"{IDLE_CONNECTIONS} idle connections", "KiB each", each, ratio, 1.0, "100 KiB", at_most=True)


def _grown(command: Callable[[int], list[object]]) -> int:
    with _serving(command) as server:
        _warm(server)
        return grown(server.process.pid, server.port, IDLE_CONNECTIONS)


def grown(pid: int, port: int, connections: int) -> int:
    """Bytes that so many idle connections cost a server."""
    with ExitStack() as stack:
        before = _resident(pid)
        for _ in range(connections):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\1\0\0\0\0")
            sock.sendall(b"\x25\x60\x95\x13" + bytes(20) + b"\0\0\x10\0")
            left = 18 + 10 + 16 + 4096
            while left:
                left -= len(sock.recv(left))
        return _resident(pid) - before


def measure() -> list[Row]:
    """All rows."""
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is missing: install the Debian package {package}")
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        return [*cached_rows(files), *cold_rows(files), idle_row(files)]
