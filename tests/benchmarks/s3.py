"""Multipart downloads with boto3 and rclone: this daemon with the packed image, other S3 servers with the raw one.

``rclone serve s3`` is a gateway in Go over a folder, moto a server in Python that holds objects in memory; it
slows down with an object's size, so it gets a smaller one, and so do the others in its row. nginx knows nothing
of S3 and checks nothing; it sends the raw file as fast as these clients take anything. The clients run
with their defaults on the same cores. Every download goes to memory (/dev/shm where there is one), is compared
with the raw image, and is cold for the daemon: the cache holds less than the image. Contenders take turns in
every round; figures are medians. The processor time of each server for one download tells how much of the
time is the client's own.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from hexz.tools.pack import pack
from tests.benchmarks.others import free_port, running
from tests.benchmarks.report import Row
from tests.peers import Server, write_secret

LARGE_BYTES = 1 << 30
SMALL_BYTES = 128 << 20
BLOCK_BYTES = 64 << 10
POOL_BYTES = 8 << 20
ROUNDS = 3
GOAL = 1.5
START_S = 60.0
ACCESS_KEY, SECRET = "AKIDEXAMPLE", "a-secret-of-some-length"
BUCKET, KEY = "bench", "disk"

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; open_file_cache max=10;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location = /{bucket}/disk {{ alias {raw}; }} }}
}}
"""

Client = Callable[[str, Path], None]


class Contender(NamedTuple):
    """A server that runs: its URL and its process."""

    url: str
    pid: int

    def processor_s(self) -> float:
        """Processor time used so far, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def image(path: Path, size: int) -> None:
    """Half words, half noise, no zeros, no repeated block."""
    source = random.Random(1)
    words = [bytes(source.choices(b"abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) + b" " for _ in range(3000)]
    pool = b"".join(source.choices(words, k=POOL_BYTES // 5))[:POOL_BYTES]
    half = BLOCK_BYTES // 2
    with path.open("wb") as file:
        for _ in range(size // BLOCK_BYTES):
            start = source.randrange(len(pool) - half)
            file.write(pool[start : start + half] + os.urandom(half))


@contextmanager
def ours(packed: Path, folder: Path, cache: int) -> Iterator[Contender]:
    """The daemon with the packed image, as a user starts it."""
    keys = folder / "keys"
    write_secret(keys, f"{ACCESS_KEY} {SECRET}\n")
    options = ["--s3-port", 0, "--s3-keys-file", keys, "--cache-size", cache, "--log-level", "error"]
    with Server(*options, f"{BUCKET}={packed}") as server:
        yield Contender(server.urls["s3"].replace("s3:", "http:").rstrip("/"), server.process.pid)


@contextmanager
def _process(command: list[object], port: int) -> Iterator[Contender]:
    with running(command, port, START_S) as pid:
        yield Contender(f"http://127.0.0.1:{port}", pid)


def _rclone() -> Path:
    return Path(sys.executable).with_name("rclone")


@contextmanager
def rclone_serve(raw: Path, folder: Path) -> Iterator[Contender]:
    """``rclone serve s3`` with the raw image."""
    bucket = folder / "root" / BUCKET
    bucket.mkdir(parents=True)
    os.link(raw, bucket / KEY)
    port = free_port()
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET}", "--config", os.devnull]
    with _process([_rclone(), "serve", "s3", bucket.parent, *options], port) as contender:
        yield contender


@contextmanager
def nginx(raw: Path, folder: Path) -> Iterator[Contender]:
    """nginx with the raw image, in one process as it is."""
    port = free_port()
    (folder / "conf").write_text(NGINX.format(folder=folder, port=port, raw=raw, bucket=BUCKET))
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    with _process(["nginx", "-p", folder, "-e", folder / "errors", "-c", folder / "conf", *user], port) as contender:
        yield contender


@contextmanager
def moto(raw: Path) -> Iterator[Contender]:
    """moto's server with the raw image."""
    port = free_port()
    with _process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port], port) as contender:
        client = _boto3(contender.url)
        client.create_bucket(Bucket=BUCKET)
        with raw.open("rb") as file:
            client.put_object(Bucket=BUCKET, Key=KEY, Body=file)
        yield contender


def _boto3(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def with_boto3(url: str, target: Path) -> None:
    """``download_file``: parts of 8 MiB, ten at once."""
    _boto3(url).download_file(BUCKET, KEY, str(target))


def with_rclone(url: str, target: Path) -> None:
    """``rclone copyto``: four streams, for the smaller object too."""
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": url,
        "ACCESS_KEY_ID": ACCESS_KEY,
        "SECRET_ACCESS_KEY": SECRET,
        "REGION": "us-east-1",
    }
    environment = {**os.environ, **{f"RCLONE_CONFIG_S_{name}": value for name, value in settings.items()}}
    command = [_rclone(), "--config", os.devnull, "copyto", "--multi-thread-cutoff", "64M", f"s:{BUCKET}/{KEY}", target]
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)


def compare(size: int, peers: list[str], clients: dict[str, Client], rounds: int, parent: str | None) -> list[Row]:
    """A row for each client and peer."""
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=parent) as name, ExitStack() as stack:
        folder = Path(name)
        raw, packed, target = folder / "raw", folder / f"{BUCKET}.hxz", folder / "target"
        image(raw, size)
        pack(str(raw), str(packed), compression="lz4", block_size=BLOCK_BYTES)
        contenders = {"hexz lz4": stack.enter_context(ours(packed, folder, size // 4))}
        if "rclone serve s3" in peers:
            contenders["rclone serve s3"] = stack.enter_context(rclone_serve(raw, folder))
        if "nginx" in peers:
            contenders["nginx"] = stack.enter_context(nginx(raw, folder))
        if "moto" in peers:
            contenders["moto"] = stack.enter_context(moto(raw))
        used: dict[tuple[str, str], list[float]] = {}
        for turn in range(rounds):
            for client_name, download in clients.items():
                for contender_name, contender in contenders.items():
                    target.unlink(missing_ok=True)
                    before, began = contender.processor_s(), time.perf_counter()
                    download(contender.url, target)
                    rate = size / 1e6 / (time.perf_counter() - began)
                    rates.setdefault((client_name, contender_name), []).append(rate)
                    used.setdefault((client_name, contender_name), []).append(contender.processor_s() - before)
                    if not turn and not filecmp.cmp(raw, target, shallow=False):
                        raise RuntimeError(f"{contender_name} sent something else to {client_name}")
    rows = []
    for client_name in clients:
        figures = {one: statistics.median(rates[client_name, one]) for one in contenders}
        seconds = {f"{one} cpu s": statistics.median(used[client_name, one]) for one in contenders}
        for peer in peers:
            ratio = figures["hexz lz4"] / figures[peer]
            work = f"{client_name}, {size >> 20} MiB"
            goal = 0 if peer == "nginx" else GOAL
            rows.append(Row(work, "MB/s", {**figures, **seconds}, ratio, goal, peer))
    return rows


def memory_folder() -> str | None:
    """Where files are in memory, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def measure(rounds: int = ROUNDS, size: int = LARGE_BYTES) -> list[Row]:
    """All rows; those against nginx and moto if they are installed."""
    parent = memory_folder()
    peers = ["rclone serve s3", *(["nginx"] if shutil.which("nginx") else [])]
    rows = compare(size, peers, {"boto3": with_boto3, "rclone": with_rclone}, rounds, parent)
    if importlib.util.find_spec("moto") is not None:
        small = min(size, SMALL_BYTES)
        rows += compare(small, ["moto"], {"boto3": with_boto3, "rclone": with_rclone}, rounds, parent)
    return rows
