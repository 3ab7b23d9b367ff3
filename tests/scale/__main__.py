"""``python -m tests.scale``: 1,000 clients, nginx, two daemons and a distributed store, of which some die under load.

The clients read ranges of eight snapshots and compare every byte with the originals, while a storage server is killed
and started, another is frozen and thawed, and a daemon is killed and started.  What they read grows all the time, so
that the store is needed in every phase.  Then all read one snapshot through both daemons in turns, and one more daemon
fetches everything for itself.  Prints a line for each phase and what it cost; status 1 if something is not as it should
be.  `CLIENTS` of them (1,000), `CLUSTER` ceph (where it is there or may be installed) or swift.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from hexz.tools.pack import pack
from tests import samples
from tests.peers import run
from tests.remote.clusters import Cluster, ceph, swift
from tests.remote.stores import Store, scratch
from tests.scale.crowd import Crowd, Image, Trouble
from tests.scale.site import CACHE_BYTES, DEADLINE_S, PROXY, Daemon, Figures, Site, site
from tests.waiting import until

CLIENTS = 1000
SNAPSHOTS, ALONE = 8, "alone"
IMAGE_BYTES = 48 << 20
COLD_S, KILLED_S, FROZEN_S, WITHOUT_S, AGAIN_S, WARM_S, ALONE_S = 15, 12, 15, 10, 10, 15, 20
STARTING_S = 8
"""About how long servers take until they are there again, under load."""
LOST_S = 5.0
"""So long after a daemon was killed reads may end with it that it had begun to answer."""
CLIENT_BYTES = 100 << 10
BASE_BYTES = 160 << 20
"""Of memory: what a client may cost a daemon; and what it has without clients, above its cache of blocks."""
MOST_FETCHED = 1.5
"""Of what was needed: what comes along is mostly needed soon, where as many clients read as here."""
MOST_TWICE = 1.1
"""Of what is kept, what was fetched: a daemon that is killed fetches again what it was just fetching."""
MOST_SOCKETS, MOST_THREADS = 64 + 8, 8
"""That a daemon may have more without clients than before the first: its kept connections; threads that decode."""


class Phase(NamedTuple):
    """What came of one."""

    name: str
    seconds: float
    took: Sequence[float]
    trouble: Sequence[Trouble]
    cost: Sequence[Figures]
    memory: Sequence[int]
    cpu_s: float
    """Of all daemons; of those that were started again, since then."""
    needed: int
    """Bytes of stored blocks that a daemon was asked for and had not been before."""

    def line(self) -> str:
        """For the table."""
        waits = sorted(self.took) or [0.0]
        times = [waits[int(len(waits) * share)] * 1e3 for share in (0.5, 0.99)]
        cost = self.cost[0] if len(self.cost) == 1 else self.cost[0].plus(self.cost[1])
        return (
            f"{self.name:34} {self.seconds:5.0f} {len(self.took):7,} {len(self.trouble):6} "
            f"{times[0]:7.0f} {times[1]:7.0f} {waits[-1] * 1e3:7.0f} {cost.requests:8,} {cost.received / 1e6:7.1f} "
            f"{self.needed / 1e6:7.1f} "
            f"{'/'.join(f'{one / 1e6:.0f}' for one in self.memory):>9} {self.cpu_s / self.seconds * 100:5.0f}"
        )


HEAD = (
    f"{'phase':34} {'s':>5} {'reads':>7} {'errors':>6} {'p50 ms':>7} {'p99 ms':>7} {'max ms':>7} "
    f"{'requests':>8} {'MB':>7} {'needed':>7} {'daemon MB':>9} {'CPU %':>5}"
)


class Watch:
    """Takes the figures of phases, and prints them."""

    def __init__(self, daemons: Sequence[Daemon], crowd: Crowd) -> None:
        self.phases: list[Phase] = []
        self._daemons = daemons
        self._crowd = crowd
        self._before = [daemon.figures() for daemon in daemons]
        self._cpu_s = [daemon.cpu_s() for daemon in daemons]
        self._touched = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done within is one."""
        began = time.monotonic()
        yield
        figures = [daemon.figures() for daemon in self._daemons]
        cost = [now.since(before) for now, before in zip(figures, self._before)]
        self._before = figures
        took, trouble = self._crowd.take()
        memory = [daemon.memory() for daemon in self._daemons]
        seconds, cpu_s = time.monotonic() - began, [daemon.cpu_s() for daemon in self._daemons]
        used_s = sum(now - then if now >= then else now for now, then in zip(cpu_s, self._cpu_s))
        touched = sum(list(self._crowd.touched.values()))
        self.phases.append(Phase(name, seconds, took, trouble, cost, memory, used_s, touched - self._touched))
        self._cpu_s, self._touched = cpu_s, touched
        print(self.phases[-1].line(), flush=True)
        for what in sorted({one.what for one in trouble}):
            those = [one for one in trouble if one.what == what]
            at, last = (moment - began for moment in (those[0].at, those[-1].at))
            took_s = max(one.took_s for one in those)
            print(f"    {len(those)} {what}: from {at:.1f} s to {last:.1f} s of it, {took_s:.1f} s long at most")


class Verdict:
    """What is as it should be, and what is not."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, good: bool, what: str) -> None:
        """Say it."""
        self.failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {what}", flush=True)


def make_images(folder: Path, served: Path) -> list[Image]:
    """Snapshots in `served`, and what they were made of."""
    images = []
    for seed, name in enumerate([*(f"snap{number}" for number in range(SNAPSHOTS)), ALONE]):
        raw, packed = folder / name, served / f"{name}.hxz"
        raw.write_bytes(samples.image(IMAGE_BYTES, seed))
        pack(str(raw), str(packed))
        images.append(Image(raw, packed))
    return images


def under_fire(cluster: Cluster, here: Site, crowd: Crowd, watch: Watch) -> float:
    """The phases in which something dies; when the daemon did."""
    with watch.phase("cold"):
        crowd.watch(COLD_S)
    with watch.phase("a storage server killed"):
        cluster.kill("object1")
        crowd.watch(KILLED_S)
    with watch.phase("and started"):
        cluster.start("object1")
        crowd.watch(STARTING_S)
    with watch.phase("another frozen"):
        cluster.freeze("object2")
        crowd.watch(FROZEN_S)
    with watch.phase("and thawed"):
        cluster.thaw("object2")
        crowd.watch(STARTING_S)
    victim = here.daemons[0]
    killed = time.monotonic()
    with watch.phase("a daemon killed, and started"):
        victim.kill()
        crowd.watch(WITHOUT_S)
        victim.start()
        crowd.watch(AGAIN_S)
    with watch.phase("all is well, growing no more"):
        crowd.watch(WARM_S)
    return killed


def judge_reads(verdict: Verdict, crowd: Crowd, phases: Sequence[Phase], killed: float) -> None:
    """Bytes, errors and waits."""
    reads = sum(len(phase.took) for phase in phases)
    verdict.check(not crowd.wrong, f"no wrong byte in {reads:,} reads {crowd.wrong[:3] or ''}")
    trouble = [one for phase in phases for one in phase.trouble]
    lost = [one for one in trouble if killed <= one.at <= killed + LOST_S]
    verdict.check(len(lost) == len(trouble), f"no errors but {len(lost)} in the {LOST_S:g} s after a daemon was killed")
    longest = max([*(one.took_s for one in trouble), *(took for phase in phases for took in phase.took)])
    verdict.check(longest < DEADLINE_S + LOST_S, f"longest wait {longest:.1f} s, deadline {DEADLINE_S} s")


def judge_cost(
    verdict: Verdict, name: str, crowd: Crowd, daemons: Sequence[Daemon], cost: Sequence[Figures], few: bool
) -> None:
    """What the store sent each daemon, beside the stored blocks that its clients needed; `few` are no measure."""
    for daemon, figures in zip(daemons, cost):
        needed = crowd.touched[daemon.address]
        if not needed:
            continue
        share = figures.received / needed
        verdict.check(
            share <= MOST_FETCHED or few,
            f"{name}, {daemon.name}: the store sent {figures.received / 1e6:.1f} MB in {figures.requests:,} requests "
            f"({figures.received / max(figures.requests, 1) / 1e3:.0f} kB each, {figures.retries} retries), blocks "
            f"needed {needed / 1e6:.1f} MB: each {share:.2f} times",
        )


def filled(verdict: Verdict, here: Site, store: Store, folder: Path) -> None:
    """One daemon more that fetches everything."""
    size = sum(path.stat().st_size for path in folder.glob("*.hxz"))
    began = time.monotonic()
    daemon = here.add("filling", store, folder, "--fill")

    def done() -> bool:
        figures = daemon.figures()
        return figures.listed >= size and figures.listed_done == figures.listed

    until(done)
    figures, took = daemon.figures(), time.monotonic() - began
    verdict.check(
        figures.received <= 1.05 * size,
        f"--fill of {size / 1e6:.1f} MB: {figures.received / 1e6:.1f} MB in {figures.requests} requests, {took:.1f} s; "
        f"on the disk {figures.disk_bytes / 1e6:.1f} MB",
    )


def judge_rest(verdict: Verdict, here: Site, phases: Sequence[Phase], clients: int) -> None:
    """What daemons keep once nobody is there any more, and what they said."""
    here.servers.kill(PROXY)
    most = CACHE_BYTES + BASE_BYTES + clients * CLIENT_BYTES
    for number, daemon in enumerate(here.daemons):
        memory = max(phase.memory[number] for phase in phases)
        verdict.check(memory <= most, f"{daemon.name}: memory {memory / 1e6:.0f} MB at most, bound {most / 1e6:.0f} MB")

        def calm(daemon: Daemon = daemon) -> bool:
            threads, sockets = daemon.rest()
            quiet = daemon.quiet
            return threads <= quiet.threads + MOST_THREADS and sockets <= quiet.sockets + MOST_SOCKETS

        with contextlib.suppress(AssertionError):
            until(calm)
        verdict.check(
            calm(),
            f"{daemon.name} without clients: {daemon.rest()}, before the first {daemon.quiet}",
        )
        verdict.check("Traceback" not in daemon.said(), f"{daemon.name} printed no traceback")


def judge_twice(verdict: Verdict, here: Site) -> None:
    """Whether anything was fetched more than once: what came, beside what of the snapshots is on the disk."""
    for daemon in here.daemons:
        figures = daemon.figures()
        share = figures.received / max(figures.held, 1)
        verdict.check(
            share <= MOST_TWICE,
            f"{daemon.name} received {figures.received / 1e6:.1f} MB in all, of which {figures.held / 1e6:.1f} "
            f"MB are kept in {figures.disk_bytes / 1e6:.1f} MB of its disk: each {share:.3f} times",
        )


def sent(cluster: Cluster) -> list[tuple[int, int]]:
    """Requests answered and bytes sent as Ceph's gateways count them."""
    found = []
    for control in sorted(cluster.folder.glob("client.rgw.*.asok")):
        counts = json.loads(run("ceph", "--admin-daemon", control, "perf", "dump").stdout)["rgw"]
        found.append((counts["get"], counts["get_b"]))
    return found


def check(kind: str, clients: int) -> int:
    """All of it; how many things were not as they should be."""
    verdict = Verdict()
    with scratch() as work:
        served = work / "served"
        served.mkdir()
        images = make_images(work, served)
        stored = sum(path.stat().st_size for path in served.iterdir())
        size = sum(len(image.data) for image in images)
        print(f"{len(images)} snapshots, {size / 1e6:.0f} MB, stored {stored / 1e6:.0f} MB", flush=True)
        began = time.monotonic()
        opener: AbstractContextManager[Cluster] = ceph(served, gateways=2) if kind == "ceph" else swift(served)
        with opener as cluster:
            stores = [cluster.store, *(cluster.others or [cluster.store])]
            print(f"{kind}, filled: {time.monotonic() - began:.1f} s", flush=True)
            began = time.monotonic()
            with site(stores, served) as here:
                print(f"{len(here.daemons)} daemons and nginx: {time.monotonic() - began:.1f} s", flush=True)
                _run(verdict, kind, clients, cluster, here, images, served)
    print(f"{verdict.failed} failed" if verdict.failed else "all is well", flush=True)
    return verdict.failed


def _run(
    verdict: Verdict, kind: str, clients: int, cluster: Cluster, here: Site, images: Sequence[Image], served: Path
) -> None:
    for daemon in here.daemons:
        daemon.quiet = daemon.rest()
    opened = [daemon.figures() for daemon in here.daemons]
    before = sent(cluster) if kind == "ceph" else []
    print(f"opening: {[(one.requests, one.received) for one in opened]} requests and bytes\n{HEAD}", flush=True)
    growing = COLD_S + KILLED_S + FROZEN_S + WITHOUT_S + AGAIN_S + 2 * STARTING_S
    with Crowd(clients, here.by_name, images[:SNAPSHOTS], growing) as crowd:
        watch = Watch(here.daemons, crowd)
        killed = under_fire(cluster, here, crowd, watch)
        spread = [daemon.figures() for daemon in here.daemons]
    with Crowd(clients, here.in_turn, images[SNAPSHOTS:], ALONE_S / 2) as together:
        watch_two = Watch(here.daemons, together)
        with watch_two.phase("one snapshot through both"):
            together.watch(ALONE_S)
    after = [daemon.figures() for daemon in here.daemons]
    phases = [*watch.phases, *watch_two.phases]
    judge_reads(verdict, crowd, phases, killed)
    few = clients < CLIENTS
    verdict.check(not together.wrong, "no wrong byte of the one snapshot either")
    judge_cost(verdict, "eight snapshots", crowd, here.daemons, [a.since(b) for a, b in zip(spread, opened)], few)
    judge_cost(verdict, "one through both", together, here.daemons, [a.since(b) for a, b in zip(after, spread)], few)
    judge_twice(verdict, here)
    if kind == "ceph":
        for number, (now, then) in enumerate(zip(sent(cluster), before)):
            received = after[number].since(opened[number])
            print(f"       gateway {number + 1} says {now[0] - then[0]:,} requests, {(now[1] - then[1]) / 1e6:.1f} MB")
            print(f"       {here.daemons[number].name} says {received.requests:,}, {received.received / 1e6:.1f} MB")
    filled(verdict, here, cluster.store, served)
    judge_rest(verdict, here, phases, clients)


def _default_cluster() -> str:
    may = os.geteuid() == 0 and shutil.which("apt-get")
    return "ceph" if may or all(map(shutil.which, ("ceph-mon", "ceph-osd", "radosgw"))) else "swift"


def _end(number: int, frame: object) -> NoReturn:
    # Everything that was started is ended on the way out.
    raise SystemExit(128 + number)


def main() -> int:
    """Do it; 1 when something is not as it should be."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 16384), hard), hard))
    clients, kind = int(os.environ.get("CLIENTS") or CLIENTS), os.environ.get("CLUSTER") or _default_cluster()
    if kind not in ("ceph", "swift"):
        print(f"CLUSTER={kind}: ceph or swift", file=sys.stderr)
        return 2
    try:
        return 1 if check(kind, clients) else 0
    except pytest.skip.Exception as error:
        print(error.msg, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
