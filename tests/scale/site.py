"""Daemons over one bucket, and nginx before them: what README's chapter on many daemons describes, on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.servers import free_port
from tests.peers import ROOT, fetch, need, write_secret
from tests.remote.clusters import Cluster
from tests.remote.stores import Store, scratch

CACHE_BYTES = 64 << 20
"""Of blocks in memory: far less than there is to read."""
DISK_CACHE_BYTES = 2 << 30
DEADLINE_S = 20
PROXY = "proxy"

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/log/{proxy} warn;
worker_processes 2; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 100000;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_buffering off;
  proxy_connect_timeout 2s; proxy_read_timeout {read_s}s;
  proxy_next_upstream error timeout http_503; proxy_next_upstream_tries 2;
  add_header X-Served-By $upstream_addr always;

  map $uri $snapshot {{
    default                   $uri;
    ~^/snapshots/(?<name>[^/]+) $name;
    ~^/(?<file>[^/]+)\\.hxz$  $file;
  }}
  upstream by_name {{
    zone by_name 64k;
    hash $snapshot consistent;
    {servers}
    keepalive 256;
  }}
  upstream in_turn {{
    zone in_turn 64k;
    {servers}
    keepalive 256;
  }}
  server {{ listen 127.0.0.1:{by_name} backlog=4096; location / {{ proxy_pass http://by_name; }} }}
  server {{ listen 127.0.0.1:{in_turn} backlog=4096; location / {{ proxy_pass http://in_turn; }} }}
}}
"""
SERVER = "server {address} max_fails=3 fail_timeout=5s;"


class Figures(NamedTuple):
    """What a daemon says in ``/metrics`` of its work so far, summed over snapshots; sizes in bytes."""

    requests: int = 0
    received: int = 0
    retries: int = 0
    fetched: int = 0
    failures: int = 0
    listed: int = 0
    listed_done: int = 0
    disk_bytes: int = 0
    disk_hits: int = 0
    disk_misses: int = 0
    held: int = 0
    """Of the snapshots, what is in the disk cache."""

    def plus(self, other: Figures) -> Figures:
        """The sum: of two lives of one daemon, or of two daemons."""
        return Figures(*map(sum, zip(self, other)))

    def since(self, before: Figures) -> Figures:
        """What came to these from `before` on."""
        return Figures(*(now - then for now, then in zip(self, before)))


METRICS = (
    "hexz_server_requests_total",
    "hexz_server_received_bytes_total",
    "hexz_server_request_retries_total",
    "hexz_remote_fetched_bytes_total",
    "hexz_remote_failures_total",
    "hexz_remote_listed_bytes",
    "hexz_remote_listed_done_bytes",
    "hexz_disk_cache_bytes",
    "hexz_disk_cache_hits_total",
    "hexz_disk_cache_misses_total",
    "hexz_remote_held_bytes",
)
"""Where each of the `Figures` is said."""
GAUGES = ("listed", "listed_done", "disk_bytes", "held")
"""Those that are of the present, not sums of what was."""


class Daemon:
    """One of the site's daemons; it may live more than once."""

    def __init__(self, servers: Cluster, name: str, port: int, store: Store, folder: Path, *options: object) -> None:
        """Start it with every snapshot of `folder` that the store has; its disk cache is its own, and outlives it."""
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self.quiet = Rest(0, 0)
        """How it was before anybody came."""
        self._servers = servers
        self._past = Figures()
        work = servers.folder
        secrets = f"aws_access_key_id = {store.access_key}\naws_secret_access_key = {store.secret}\n"
        keys = write_secret(work / "keys", f"[default]\n{secrets}")
        servers.add(
            name, sys.executable, ROOT / "hexz_serve.py", "--http-port", port, "--cache-size", CACHE_BYTES,
            "--s3-endpoint", store.endpoint, "--s3-region", store.region, "--s3-credentials-file", keys,
            "--disk-cache", work / f"{name}.cache", "--disk-cache-size", DISK_CACHE_BYTES,
            "--remote-timeout", DEADLINE_S, "--log-level", "warning", *options,
            *(store.s3_uri(path.name) for path in sorted(folder.glob("*.hxz"))),
            takes_part=self.ready,
        )  # fmt: skip

    def ready(self) -> bool:
        """Whether it serves all of its snapshots."""
        with contextlib.suppress(OSError):
            return fetch(f"{self.url}/readyz")[0] == 200
        return False

    def kill(self) -> None:
        """End it without a warning; what it counted is not forgotten."""
        self._past = self.figures()._replace(**dict.fromkeys(GAUGES, 0))
        self._servers.kill(self.name)

    def start(self) -> None:
        """Start it again."""
        self._servers.start(self.name)

    def figures(self) -> Figures:
        """Of all its lives."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        now = (sum(float(value) for value in re.findall(rf"(?m)^{name}(?:{{.*}})? (\S+)$", text)) for name in METRICS)
        return self._past.plus(Figures(*map(int, now)))

    def memory(self) -> int:
        """Bytes that it has in memory."""
        return self._servers.memory()[self.name]

    def cpu_s(self) -> float:
        """Seconds of a core that its present life took."""
        fields = Path("/proc", str(self._servers.pid(self.name)), "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rest(self) -> Rest:
        """What it has of the system's."""
        process = Path("/proc", str(self._servers.pid(self.name)))
        sockets = 0
        for path in process.joinpath("fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is closed while it is looked at
                sockets += os.readlink(path).startswith("socket:")
        return Rest(sum(1 for _ in process.joinpath("task").iterdir()), sockets)

    def said(self) -> str:
        """Its log."""
        return self._servers.log(self.name).read_text(errors="replace")


class Rest(NamedTuple):
    """What of the system a daemon has at a moment: its threads, and its sockets."""

    threads: int
    sockets: int


class Site(NamedTuple):
    """What clients meet."""

    daemons: Sequence[Daemon]
    by_name: str
    """URL of nginx where each snapshot has a daemon of its own, as long as that lives."""
    in_turn: str
    """Where each request goes to another daemon."""
    servers: Cluster

    def add(self, name: str, store: Store, folder: Path, *options: object) -> Daemon:
        """One daemon more, which nginx does not know."""
        daemon = Daemon(self.servers, name, free_port(), store, folder, *options)
        self.servers.wait(name)
        return daemon


@contextlib.contextmanager
def site(stores: Sequence[Store], folder: Path) -> Iterator[Site]:
    """A daemon for each of the ways into the store, with the snapshots that `folder` has too; and nginx."""
    with scratch() as work, contextlib.closing(Cluster(work / "site")) as servers:
        daemons = [
            Daemon(servers, f"daemon{number}", free_port(), store, folder) for number, store in enumerate(stores, 1)
        ]
        for daemon in daemons:
            servers.wait(daemon.name)
        by_name, in_turn = free_port(), free_port()
        lines = "\n    ".join(SERVER.format(address=daemon.address) for daemon in daemons)
        conf = servers.folder / "conf"
        conf.write_text(
            NGINX.format(
                folder=servers.folder, proxy=PROXY, servers=lines, by_name=by_name, in_turn=in_turn,
                read_s=2 * DEADLINE_S,
            )
        )  # fmt: skip
        user = ("-g", "user root;") if os.getuid() == 0 else ()
        servers.add(
            PROXY, need("nginx"), "-p", servers.folder, "-e", servers.folder / "log" / PROXY, "-c", conf, *user,
            takes_part=lambda: _accepts(by_name) and _accepts(in_turn),
        )  # fmt: skip
        servers.wait(PROXY)
        yield Site(daemons, f"http://127.0.0.1:{by_name}", f"http://127.0.0.1:{in_turn}", servers)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
