"""Distributed object stores on loopback, of which single servers can be killed and frozen: Swift and Ceph.

    with swift(folder) as cluster:
        read(cluster.store)
        cluster.freeze("object2")

Swift comes from the package index into an environment of its own, Ceph is Debian's. Each takes half a minute or less,
and about 300 MB and 1 GB of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.servers import free_port
from tests.peers import ROOT, missing, need, run
from tests.remote.stores import ACCESS_KEY, BUCKET, REGION, SECRET, Store, _no_put, filled, scratch
from tests.waiting import until

STORAGE = ("object1", "object2", "object3")
"""The servers that hold objects; each object is on all three."""
STOP_S = 20.0
NODE_TIMEOUT_S = 5
"""After how long Swift's proxy turns away from a storage server that says nothing, and Ceph holds one for dead."""


class Cluster:
    """Servers by name, each the leader of a session of its own."""

    store: Store
    """As it is reached through the first of its ways in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: list[Store] = []
        """The same store through its other ways in."""
        self._commands: dict[str, list[str]] = {}
        self._takes_part: dict[str, Callable[[], object]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "log").mkdir(parents=True)

    def add(self, name: str, *command: object, takes_part: Callable[[], object] = lambda: True) -> None:
        """Start a server; `takes_part` says whether it does what it is there for."""
        self._commands[name] = [str(part) for part in command]
        self._takes_part[name] = takes_part
        self._start(name)

    def _start(self, name: str) -> None:
        # Nothing stays when the tests are killed.
        command = [need("setpriv"), "--pdeathsig", "KILL", "--", *self._commands[name]]
        with self.log(name).open("ab") as out:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start(self, name: str) -> None:
        """Start one that was killed, and return once it takes part again."""
        self._start(name)
        self.wait(name)

    def wait(self, name: str) -> None:
        """Return once it takes part.  Raises: AssertionError with what it printed."""
        try:
            until(lambda: self.alive(name) and self._takes_part[name]())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}\n{self._last_words(name)}") from None

    def _last_words(self, name: str) -> str:
        return self.log(name).read_text(errors="replace")[-2000:]

    def log(self, name: str) -> Path:
        """What a server printed."""
        return self.folder / "log" / name

    def alive(self, name: str) -> bool:
        """Whether it runs.  Raises: AssertionError with its last words when it has ended by itself."""
        status = self._processes[name].poll()
        assert status in (None, -signal.SIGKILL), self._last_words(name)
        return status is None

    def kill(self, name: str) -> None:
        """End it without a warning."""
        self._signal(name, signal.SIGKILL)
        self._processes[name].wait()

    def freeze(self, name: str) -> None:
        """Let it be there and never answer."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on, and return once it takes part again."""
        self._signal(name, signal.SIGCONT)
        self.wait(name)

    def pid(self, name: str) -> int:
        """Of a server, or of the one that it was."""
        return self._processes[name].pid

    def memory(self) -> dict[str, int]:
        """Bytes that each server has in memory."""
        found = {}
        for name, process in self._processes.items():
            if process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text()
                found[name] = int(status.partition("VmRSS:")[2].split()[0]) << 10
        return found

    def _signal(self, name: str, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[name].pid, number)

    def close(self) -> None:
        """End all of them, those that others need last."""
        for name in reversed(self._processes):
            self._signal(name, signal.SIGCONT)
            self._signal(name, signal.SIGTERM)
        for name, process in self._processes.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            # Also what it left in its session.
            self._signal(name, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _cluster() -> Iterator[Cluster]:
    with scratch() as folder:
        cluster = Cluster(folder)
        try:
            yield cluster
        finally:
            cluster.close()


def _answers(url: str) -> Callable[[], bool]:
    """Whether somebody answers there at all."""

    def asks() -> bool:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            return False
        return True

    return asks


# Swift

SWIFT = "swift==2.38.*"
SWIFT_AGAIN_S = 1
SWIFT_USER, SWIFT_KEY = "test:tester", "testing"
SWIFT_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/{name}
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
log_address = {folder}/nobody-listens
[pipeline:main]
pipeline = {pipeline}
"""
SWIFT_STORAGE = """
[app:{kind}-server]
use = egg:swift#{kind}
recon_cache_path = {folder}
"""
SWIFT_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "s3api", "tempauth", "slo", "copy")
SWIFT_PROXY = """
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = {timeout}
recoverable_node_timeout = {timeout}
conn_timeout = 0.5
# A server that failed twice is left alone so many seconds, then asked again.
error_suppression_interval = {again}
error_suppression_limit = 1
[filter:s3api]
location = {region}
s3_acl = false
[filter:tempauth]
user_test_tester = {key} .admin
"""
SWIFT_RINGS = """
import json, sys
from swift.common.ring import RingBuilder
folder, layout = sys.argv[1], json.loads(sys.argv[2])
for kind, ports in layout.items():
    builder = RingBuilder(6, len(ports), 1)
    for number, port in enumerate(ports, 1):
        place = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
        builder.add_dev({"region": 1, "zone": number, "device": "disk", "weight": 1.0, "meta": "", **place})
    builder.rebalance(seed=1)
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


def need_swift() -> Path:
    """The programs of Swift, brought from the package index the first time."""
    folder = ROOT / ".cache" / "swift-{}.{}".format(*sys.version_info)
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
        command = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", SWIFT]
        if subprocess.run(command, check=False, timeout=600).returncode:
            missing("swift")
        (folder / "complete").touch()
    return folder / "bin"


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[Cluster]:
    """OpenStack Swift: a proxy that speaks S3, servers of accounts and containers, and three of objects."""
    programs = need_swift()
    with _cluster() as cluster:
        work = cluster.folder
        ports = {name: free_port() for name in ("account", "container", *STORAGE, "proxy")}
        (work / "swift.conf").write_text(
            f"[swift-hash]\nswift_hash_path_prefix = {uuid.uuid4()}\nswift_hash_path_suffix = {uuid.uuid4()}\n"
            "[storage-policy:0]\nname = three\ndefault = yes\n"
        )
        layout = {"account": [ports["account"]], "container": [ports["container"]]}
        layout["object"] = [ports[name] for name in STORAGE]
        run(programs / "python", "-c", SWIFT_RINGS, work, json.dumps(layout))
        user = run("id", "-un").stdout.strip()
        facts = {"folder": work, "user": user, "region": REGION, "key": SWIFT_KEY, "timeout": NODE_TIMEOUT_S}
        facts["again"] = SWIFT_AGAIN_S
        for name, port in ports.items():
            kind = name.rstrip("123")
            (work / name / "disk").mkdir(parents=True)
            pipeline = " ".join((*SWIFT_FILTERS, "proxy-server")) if kind == "proxy" else f"{kind}-server"
            text = SWIFT_SERVER + (SWIFT_PROXY if kind == "proxy" else SWIFT_STORAGE)
            text = text.format(name=name, kind=kind, port=port, pipeline=pipeline, **facts)
            if kind == "proxy":
                for one in SWIFT_FILTERS:
                    text = _with_setting(text, f"[filter:{one}]", f"use = egg:swift#{one}")
            (work / f"{name}.conf").write_text(text)
            healthy = _answers(f"http://127.0.0.1:{port}/healthcheck")
            cluster.add(name, programs / f"swift-{kind}-server", work / f"{name}.conf", takes_part=healthy)
        for name in ports:
            cluster.wait(name)
        endpoint = f"http://127.0.0.1:{ports['proxy']}"
        cluster.store = filled(
            Store(
                "swift", f"{endpoint}/{BUCKET}", _no_put, public=False, endpoint=endpoint,
                access_key=SWIFT_USER, secret=SWIFT_KEY,
            ),
            folder,
        )  # fmt: skip
        yield cluster


def _with_setting(text: str, section: str, setting: str) -> str:
    """A setting more in a section, which is made if it is not there."""
    return text.replace(section, f"{section}\n{setting}") if section in text else f"{text}{section}\n{setting}\n"


# Ceph

CEPH_REGION = "default"
CEPH = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
# Where nobody proves who he is, no key is agreed on to encrypt with.
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
keyring = {folder}/none
run dir = {folder}
crash dir = {folder}
pid file =
admin socket = {folder}/$name.asok
log file = {folder}/log/$name.ceph
log to stderr = false
# Every object on all three, and one of them is enough to go on.
osd pool default size = 3
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd heartbeat interval = 1
osd heartbeat grace = {grace}
mon osd adjust heartbeat grace = false
mon osd min down reporters = 1
[mon]
mon data = {folder}/mon
# Disks of test machines are full.
mon data avail warn = 1
mon data avail crit = 1
[osd]
osd data = {folder}/osd$id
osd objectstore = bluestore
bluestore block size = {disk_bytes}
bluestore block db create = false
bluestore block wal create = false
bluestore fsck on mount = false
bluestore cache autotune = false
bluestore cache size = {cache_bytes}
[client]
rgw thread pool size = 256
"""
CEPH_DISK_BYTES = 8 << 30
"""Of each storage server, sparse."""
CEPH_CACHE_BYTES = 64 << 20
CEPH_PROGRAMS = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw", "ceph": "ceph-common"}


def need_ceph() -> None:
    """Ceph's programs, brought by apt-get where that may be done."""
    wanted = [package for program, package in CEPH_PROGRAMS.items() if shutil.which(program) is None]
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "-qq", "-y", "install", "--no-install-recommends", *wanted]
        for command in (["apt-get", "-qq", "update"], install):
            subprocess.run(command, check=True, timeout=600, env=environment, stdout=subprocess.DEVNULL)
    for program, package in CEPH_PROGRAMS.items():
        need(program, package)


def _is_active(control: Path) -> Callable[[], bool]:
    """Whether a storage server is one of the cluster's, as the others see it too."""

    def asks() -> bool:
        done = run("ceph", "--admin-daemon", control, "status", check=False)
        return done.returncode == 0 and json.loads(done.stdout)["state"] == "active"

    return asks


@contextlib.contextmanager
def ceph(folder: Path, gateways: int = 1) -> Iterator[Cluster]:
    """Ceph: a monitor, three servers of objects, and gateways ("gateway1") that speak S3."""
    need_ceph()
    with _cluster() as cluster:
        work = cluster.folder
        conf = work / "conf"
        monitor = free_port()
        conf.write_text(
            CEPH.format(
                fsid=uuid.uuid4(), monitor=monitor, folder=work, grace=NODE_TIMEOUT_S,
                disk_bytes=CEPH_DISK_BYTES, cache_bytes=CEPH_CACHE_BYTES,
            )
        )  # fmt: skip
        common = ("-c", conf)
        run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", work / "monmap")
        run("ceph-mon", *common, "--mkfs", "-i", "a", "--monmap", work / "monmap")
        cluster.add("monitor", "ceph-mon", "-f", *common, "-i", "a")
        for number, name in enumerate(STORAGE):
            disk = str(uuid.uuid4())
            (work / f"osd{number}").mkdir()
            run("ceph", *common, "--connect-timeout", 30, "osd", "new", disk)
            run("ceph-osd", *common, "-i", number, "--mkfs", "--osd-uuid", disk, timeout=120)
            active = _is_active(work / f"osd.{number}.asok")
            cluster.add(name, "ceph-osd", "-f", *common, "-i", number, takes_part=active)
        ports = [free_port() for _ in range(gateways)]
        for number, port in enumerate(ports, 1):
            who = ("-n", f"client.rgw.{number}")
            front = f"--rgw_frontends=beast endpoint=127.0.0.1:{port}"
            answers = _answers(f"http://127.0.0.1:{port}/")
            cluster.add(f"gateway{number}", "radosgw", "-f", *common, *who, front, takes_part=answers)
            cluster.wait(f"gateway{number}")
        keys = ("--access-key", ACCESS_KEY, "--secret", SECRET)
        run("radosgw-admin", *common, *who, "user", "create", "--uid", "hexz", "--display-name", "hexz", *keys)
        endpoints = [f"http://127.0.0.1:{port}" for port in ports]
        store = Store(
            "ceph", f"{endpoints[0]}/{BUCKET}", _no_put, public=False, endpoint=endpoints[0], region=CEPH_REGION
        )
        cluster.store = filled(store, folder)
        cluster.others = [replace(cluster.store, base=f"{one}/{BUCKET}", endpoint=one) for one in endpoints[1:]]
        yield cluster
