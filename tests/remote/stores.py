"""Real stores over a folder of snapshots, and real caches before them: each a context manager that gives a `Store`.

    with nginx(folder) as store:
        read(store.url("snap.hxz"))
        store.put("snap.hxz", another)

`STORES` has those of the usual suite by name, to parametrize with; Azurite, and the clusters in
`tests/remote/clusters.py`, take too long for it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.benchmarks.servers import free_port, running
from tests.peers import ROOT, Server, need, need_module, need_rclone, write_secret

ACCESS_KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REGION = "us-east-1"
BUCKET = "snapshots"
START_S = 60.0
OWN_BUCKET = "{stem}"
"""A bucket for each snapshot, called as it is."""

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors warn;
events {{ worker_connections 2048; }}
http {{
  access_log off; tcp_nodelay on; client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {http}
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{ {location} }} }}
}}
"""
SLICES = """
  slice {slice_bytes}; proxy_cache slices; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 1h;
  proxy_set_header Range $slice_range; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_pass {upstream};
"""
VCL = """
vcl 4.1;
backend default {{ .host = "{host}"; .port = "{port}"; }}
"""
HAPROXY = """
global
  maxconn 2000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
cache objects
  total-max-size 128
  max-object-size 60000000
  max-age 3600
frontend front
  bind 127.0.0.1:{port}
  http-request cache-use objects
  http-response cache-store objects
  default_backend origin
backend origin
  server origin {host}:{origin}
"""


@dataclass(frozen=True)
class Store:
    """A store that runs."""

    kind: str
    base: str
    """URL of the snapshots, without a slash at the end; what is not public there needs `presigned`."""
    put: Callable[[str, bytes], None]
    """Make an object, or another one in its place: later, and so with another ETag."""
    pid: int = 0
    public: bool = True
    """Whether `url` answers who does not sign."""
    endpoint: str = ""
    """Of S3; empty where it is not spoken."""
    bucket: str = BUCKET
    access_key: str = ACCESS_KEY
    secret: str = SECRET
    region: str = REGION

    def url(self, name: str) -> str:
        """Where a snapshot is over HTTP."""
        return f"{self.base}/{quote(name)}"

    def s3_uri(self, name: str) -> str:
        """The same over S3."""
        return f"s3://{self._bucket(name)}/{name}"

    def _bucket(self, name: str) -> str:
        return self.bucket.format(stem=name.rpartition(".")[0])

    @property
    def environment(self) -> dict[str, str]:
        """What a client of S3 finds in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def boto3(self) -> Any:
        """A client of S3."""
        return need_module("boto3").client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            region_name=self.region,
            config=need_module("botocore.config").Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
        )

    def presigned(self, name: str, seconds: int = 3600) -> str:
        """A URL that holds for GET alone, and so long."""
        where = {"Bucket": self._bucket(name), "Key": name}
        url: str = self.boto3().generate_presigned_url("get_object", Params=where, ExpiresIn=seconds)
        return url

    def behind(self, root: str) -> Store:
        """The same store through a proxy at `root`, which is before `base` to see HTTP, before `endpoint` to see S3."""
        parts = urlsplit(self.base)
        return replace(self, base=f"{root}{parts.path}", endpoint=root if self.endpoint else "")


def file_putter(folder: Path) -> Callable[[str, bytes], None]:
    """How a file is replaced in a folder that is served: at one blow, and at least a second younger."""

    def put(name: str, data: bytes) -> None:
        path, new = folder / name, folder / f".{name}.new"
        new.write_bytes(data)
        if path.exists():
            # Servers make ETags of the second of the last change and the size.
            now = max(time.time(), path.stat().st_mtime + 1)
            os.utime(new, (now, now))
        new.replace(path)

    return put


def s3_putter(store: Store) -> Callable[[str, bytes], None]:
    """How an object is replaced over S3."""
    client = store.boto3()

    def put(name: str, data: bytes) -> None:
        client.put_object(Bucket=store.bucket, Key=name, Body=data)

    return put


def filled(store: Store, folder: Path) -> Store:
    """A store whose objects are put over S3, once all of `folder` is there."""
    client = store.boto3()
    client.create_bucket(Bucket=store.bucket)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            client.upload_file(str(path), store.bucket, path.name)
    return replace(store, put=s3_putter(store))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what a server needs besides."""
    with tempfile.TemporaryDirectory(prefix="store") as name:
        yield Path(name)


def _no_put(name: str, data: bytes) -> None:
    raise AssertionError("nothing can be put there")


# Over a folder


@contextlib.contextmanager
def _nginx(location: str, http: str = "") -> Iterator[tuple[int, int]]:
    """The port and the pid of an nginx with one location."""
    program = need("nginx")
    with scratch() as work:
        port = free_port()
        conf = work / "conf"
        conf.write_text(NGINX.format(folder=work, port=port, location=location, http=http.format(folder=work)))
        user = ("-g", "user root;") if os.getuid() == 0 else ()
        command: list[object] = [program, "-p", work, "-e", work / "errors", "-c", conf, *user]
        with running(command, port, START_S, work / "log") as pid:
            yield port, pid


@contextlib.contextmanager
def nginx(folder: Path, extra: str = "") -> Iterator[Store]:
    """nginx with files; `extra` are more directives of the location."""
    with _nginx(f"root {folder}; {extra}") as (port, pid):
        yield Store("nginx", f"http://127.0.0.1:{port}", file_putter(folder), pid)


@contextlib.contextmanager
def hexz_serve(folder: Path, *options: object) -> Iterator[Store]:
    """This project's own daemon: HTTP, where a snapshot's file is ``/NAME.hxz``, and S3, with a bucket for each."""
    with scratch() as work:
        keys = write_secret(work / "keys", f"{ACCESS_KEY} {SECRET}\n")
        more = ("--http-port", 0, "--s3-port", 0, "--s3-keys-file", keys, "--log-level", "error", *options)
        with Server(folder, *more) as server:
            endpoint = server.urls["s3"].replace("s3:", "http:").rstrip("/")
            yield Store(
                "hexz-serve", server.http, file_putter(folder), server.process.pid, endpoint=endpoint, bucket=OWN_BUCKET
            )


@contextlib.contextmanager
def rclone(folder: Path, *options: object) -> Iterator[Store]:
    """``rclone serve s3``: says 200 to a range and means 206, ignores If-Match, and wants a signature."""
    program = need_rclone()
    with scratch() as work:
        (work / "root").mkdir()
        (work / "root" / BUCKET).symlink_to(folder)
        port = free_port()
        command: list[object] = [program, "serve", "s3", work / "root", "--copy-links", "--config", os.devnull]
        command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET}", "--dir-cache-time", "0"]
        with running([*command, *options], port, START_S, work / "log") as pid:
            endpoint = f"http://127.0.0.1:{port}"
            store = Store("rclone", f"{endpoint}/{BUCKET}", _no_put, pid, public=False, endpoint=endpoint)
            yield replace(store, put=s3_putter(store))


# With objects of their own


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Store]:
    """moto's server: objects in memory, signatures not checked, but who does not sign is refused."""
    need_module("moto.server")
    with scratch() as work:
        port = free_port()
        command: list[object] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        with running(command, port, START_S, work / "log") as pid:
            endpoint = f"http://127.0.0.1:{port}"
            store = Store("moto", f"{endpoint}/{BUCKET}", _no_put, pid, public=False, endpoint=endpoint)
            yield filled(store, folder)


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Those that every emulator of this store has."""
AZURE_VERSION = "2021-08-06"


def need_azurite() -> Path:
    """Azurite's blob server, brought from the package index of Node.js the first time."""
    folder = ROOT / ".cache" / "azurite"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        need("node", "nodejs")
        command = [need("npm"), "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), "azurite@3"]
        subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return program


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Store]:
    """Azurite: blobs in a container that everybody may read."""
    program = need_azurite()
    with scratch() as work:
        port = free_port()
        command: list[object] = [program, "--blobPort", port, "--location", work, "--silent", "--skipApiVersionCheck"]
        with running([*command, "--disableTelemetry"], port, START_S, work / "log") as pid:

            def put(name: str, data: bytes) -> None:
                _azure(port, f"/{AZURE_ACCOUNT}/{BUCKET}/{quote(name)}", data, {"x-ms-blob-type": "BlockBlob"})

            _azure(port, f"/{AZURE_ACCOUNT}/{BUCKET}", b"", {"x-ms-blob-public-access": "blob"}, "restype=container")
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    put(path.name, path.read_bytes())
            yield Store("azurite", f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}/{BUCKET}", put, pid)


def _azure(port: int, path: str, body: bytes, fields: dict[str, str], query: str = "") -> None:
    """A PUT that is signed with the account's key.  Raises: AssertionError when it is refused."""
    headers = {**fields, "x-ms-date": formatdate(usegmt=True), "x-ms-version": AZURE_VERSION}
    canonical = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    resource = f"/{AZURE_ACCOUNT}{path}" + "".join(f"\n{one.replace('=', ':')}" for one in query.split("&") if one)
    length = str(len(body)) if body else ""
    signed = "PUT\n\n\n" + length + "\n\n" + "application/octet-stream\n\n\n\n\n\n\n" + canonical + resource
    digest = hmac.new(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers["Content-Type"] = "application/octet-stream"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("PUT", f"{path}?{query}" if query else path, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    assert answer.status == 201, said


# Caches before another store


def _in_front(kind: str, port: int, pid: int, origin: Store) -> Store:
    return replace(origin.behind(f"http://127.0.0.1:{port}"), kind=kind, pid=pid)


@contextlib.contextmanager
def nginx_slices(origin: Store, slice_bytes: int = 64 << 10) -> Iterator[Store]:
    """nginx that keeps slices, and has old ones and new ones of what was replaced."""
    root = "http://" + urlsplit(origin.base).netloc
    keep = "proxy_cache_path {folder}/cache keys_zone=slices:1m max_size=256m;"
    with _nginx(SLICES.format(slice_bytes=slice_bytes, upstream=root), keep) as (port, pid):
        yield _in_front("nginx slice", port, pid, origin)


@contextlib.contextmanager
def varnish(origin: Store) -> Iterator[Store]:
    """Varnish: ignores If-Match, and keeps what was replaced for two minutes."""
    program = need("varnishd")
    need("cc", "gcc")
    parts = urlsplit(origin.base)
    with scratch() as work:
        port = free_port()
        (work / "vcl").write_text(VCL.format(host=parts.hostname, port=parts.port))
        command: list[object] = [program, "-F", "-n", work / "state", "-f", work / "vcl", "-a", f"127.0.0.1:{port}"]
        # Its own parts run as other users where they may, who cannot come here.
        with running([*command, "-s", "malloc,128m", "-j", "none"], port, START_S, work / "log") as pid:
            yield _in_front("varnish", port, pid, origin)


@contextlib.contextmanager
def haproxy(origin: Store) -> Iterator[Store]:
    """HAProxy's cache: what it has whole it gives whole, also to who asks for a range."""
    program = need("haproxy")
    parts = urlsplit(origin.base)
    with scratch() as work:
        port = free_port()
        (work / "conf").write_text(HAPROXY.format(port=port, host=parts.hostname, origin=parts.port))
        with running([program, "-db", "-f", work / "conf"], port, START_S, work / "log") as pid:
            yield _in_front("haproxy", port, pid, origin)


@contextlib.contextmanager
def _over_nginx(cache: Callable[[Store], Any], folder: Path) -> Iterator[Store]:
    with nginx(folder) as origin, cache(origin) as store:
        yield store


Opener = Callable[[Path], "contextlib.AbstractContextManager[Store]"]
STORES: dict[str, Opener] = {
    "hexz-serve": hexz_serve,
    "nginx": nginx,
    "nginx slice": lambda folder: _over_nginx(nginx_slices, folder),
    "varnish": lambda folder: _over_nginx(varnish, folder),
    "haproxy": lambda folder: _over_nginx(haproxy, folder),
    "rclone": rclone,
    "moto": moto,
}
"""Those that start in a few seconds: `with STORES[name](folder) as store`."""
SPEAK_S3 = ("hexz-serve", "rclone", "moto")
"""Which of them speak S3."""
