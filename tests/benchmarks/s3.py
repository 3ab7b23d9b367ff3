"""Multipart downloads with boto3 and rclone: this daemon with the packed image, others with the raw one.

``rclone serve s3`` is a gateway in Go over a folder.  nginx knows nothing of S3 and checks nothing; it sends the raw
file as fast as these clients take anything.  The clients run with their defaults on the same cores.  Every download
goes to memory (/dev/shm where there is one), our first one to each client is compared with the raw image, and all are
cold for the daemon: the cache holds less than the image.
"""

from __future__ import annotations

import filecmp
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3

from hexz.tools.pack import pack
from tests.benchmarks.clients import run
from tests.benchmarks.files import BLOCK_BYTES, Files
from tests.benchmarks.race import Pair, Race
from tests.benchmarks.servers import free_port, nginx, running
from tests.peers import Server, write_secret

IMAGE_BYTES = 1 << 30
POOL_BYTES = 8 << 20
ROUNDS = 3
ACCESS_KEY, SECRET = "AKIDEXAMPLE", "a-secret-of-some-length"
BUCKET, KEY = "bench", "disk"

Client = Callable[[str, Path], None]


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
def ours(packed: Path, folder: Path, cache: int) -> Iterator[str]:
    """The daemon with the packed image, as a user starts it."""
    keys = write_secret(folder / "keys", f"{ACCESS_KEY} {SECRET}\n")
    options = ["--s3-port", 0, "--s3-keys-file", keys, "--cache-size", cache, "--log-level", "error"]
    with Server(*options, f"{BUCKET}={packed}") as server:
        yield server.urls["s3"].replace("s3:", "http:").rstrip("/")


@contextmanager
def rclone_serve(raw: Path, folder: Path) -> Iterator[str]:
    """``rclone serve s3`` with the raw image."""
    bucket = folder / "root" / BUCKET
    bucket.mkdir(parents=True)
    os.link(raw, bucket / KEY)
    port = free_port()
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET}", "--config", os.devnull]
    with running([_rclone(), "serve", "s3", bucket.parent, *options], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def nginx_as_bucket(raw: Path, folder: Path) -> Iterator[str]:
    """nginx with the raw image where the object would be."""
    with nginx(raw, folder, path=f"/{BUCKET}/{KEY}") as url:
        yield url.removesuffix(f"/{BUCKET}/{KEY}")


def _rclone() -> Path:
    return Path(sys.executable).with_name("rclone")


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
    """``rclone copyto``: four streams."""
    settings = {
        "type": "s3",
        "provider": "Other",
        "endpoint": url,
        "access-key-id": ACCESS_KEY,
        "secret-access-key": SECRET,
        "region": "us-east-1",
    }
    options = [part for name, value in settings.items() for part in (f"--s3-{name}", value) if name != "type"]
    run(_rclone(), "--config", os.devnull, *options, "copyto", f":s3:{BUCKET}/{KEY}", target)


def downloaded(client: Client, url: str, target: Path, size: int) -> float:
    """Megabytes a second."""
    target.unlink(missing_ok=True)
    began = time.perf_counter()
    client(url, target)
    return size / 1e6 / (time.perf_counter() - began)


def memory_folder() -> str | None:
    """Where files are in memory, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def races(_: Files) -> Iterator[Race]:
    """Each client, with all servers; boto3 is to be level with nginx."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name, ExitStack() as stack:
        folder = Path(name)
        raw, packed, target = folder / "raw", folder / "packed.hxz", folder / "target"
        image(raw, IMAGE_BYTES)
        pack(str(raw), str(packed), compression="lz4", block_size=BLOCK_BYTES)
        urls = {
            "ours": stack.enter_context(ours(packed, folder, IMAGE_BYTES // 4)),
            "nginx": stack.enter_context(nginx_as_bucket(raw, folder / "nginx")),
            "rclone serve s3": stack.enter_context(rclone_serve(raw, folder)),
        }
        clients: dict[str, tuple[Client, float]] = {"boto3": (with_boto3, 1.0), "rclone": (with_rclone, 0)}
        for client_name, (client, goal) in clients.items():
            downloaded(client, urls["ours"], target, IMAGE_BYTES)
            if not filecmp.cmp(raw, target, shallow=False):
                raise RuntimeError(f"{client_name} got something else")
            contenders = {who: partial(downloaded, client, url, target, IMAGE_BYTES) for who, url in urls.items()}
            work = f"S3 {client_name}, {IMAGE_BYTES >> 20} MiB"
            pairs = (Pair(work, "ours", ("nginx",), goal), Pair(work, "ours", ("rclone serve s3",)))
            yield Race("MB/s", contenders, pairs, ROUNDS)
