"""The catalog while several threads change it at once, and when it is read again."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.catalog import Catalog, Source
from hexz.catalog import catalog as module
from hexz.daemon.running import Running
from hexz.daemon.systemd import Notifier
from hexz.errors import NoSuchSnapshot
from hexz.servers.accept_loop import AcceptLoop
from hexz.snapshot import Opener, Snapshot, new_context
from tests.waiting import until

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PATIENCE_S = 20.0


def opens(path: Path) -> int:
    """How many descriptors of this process lead to `path`."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{fd}"):
            found += os.path.realpath(f"/proc/self/fd/{fd}") == str(path)
    return found


def test_what_is_taken_away_while_its_successor_is_opened_stays_away(
    images: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, _), (second, _) = images[0], images[1]
    catalog = Catalog(new_context(4 << 20))
    catalog.add("a", str(first))

    opened = Opener.open

    def open_slowly(self: Opener, path: str) -> Snapshot:
        assert catalog.remove("a", timeout=30)
        return opened(self, path)

    monkeypatch.setattr(Opener, "open", open_slowly)
    with pytest.raises(NoSuchSnapshot):
        catalog.replace("a", str(second))
    assert catalog.names() == [] and catalog.default is None
    assert opens(first) == opens(second) == 0
    monkeypatch.undo()
    catalog.add("a", str(second))  # the name is free again
    catalog.close()


def test_what_a_name_meant_before_is_forgotten_once_nobody_reads_it(images: list[tuple[Path, bytes]]) -> None:
    (first, _), (second, _) = images[0], images[1]
    catalog = Catalog(new_context(4 << 20))
    catalog.add("a", str(first))
    held = catalog.lease("a")
    seen = [weakref.ref(held.snapshot)]
    ended: list[str] = []
    held.when_ended(lambda: ended.append("held"))
    for number in range(6):
        catalog.replace("a", str((second, first)[number % 2]))
        with catalog.lease("a") as snapshot:
            seen.append(weakref.ref(snapshot))
        del snapshot
    gc.collect()
    assert len({id(one()) for one in seen if one() is not None}) <= 2  # what is served, and what is held
    assert not catalog.remove("a", timeout=0, end_leases=True)
    assert ended == ["held"]
    held.release()
    assert opens(first) == opens(second) == 0


def test_the_names_of_a_file_follow_what_is_served(images: list[tuple[Path, bytes]]) -> None:
    catalog = Catalog(new_context(4 << 20))
    paths = [path for path, _ in images[:2]]
    source = random.Random(8)
    for _ in range(200):
        name, path = source.choice("abcd"), source.choice(paths)
        if name not in catalog:
            catalog.add(name, str(path))
        elif source.random() < 0.5:
            catalog.replace(name, str(path))
        else:
            catalog.remove(name)
        for path in paths:
            served = sorted(one.name for one in catalog.served() if one.snapshot.path == str(path))
            assert sorted(catalog.names_of(str(path))) == served
    catalog.close()
    assert not any(catalog.names_of(str(path)) for path in paths)


def test_there_is_always_a_default_while_it_changes(images: list[tuple[Path, bytes]]) -> None:
    class Racing(dict[str, object]):
        """The snapshots by name, of which one is taken away just before it is looked up."""

        def get(self, name: str, *_: object) -> object:  # type: ignore[override]
            if name == "a" and "a" in self:
                catalog.remove("a")
            return super().get(name)

    catalog = Catalog(new_context(4 << 20))
    for name in ("a", "b"):
        catalog.add(name, str(images[0][0]))
    catalog._published = Racing(catalog._published)  # type: ignore[assignment]
    with catalog.lease() as snapshot:
        assert catalog.serves("b", snapshot)
    catalog.remove("b")
    with pytest.raises(NoSuchSnapshot, match="no snapshot is served"):
        catalog.lease()


def test_a_name_that_goes_by_itself_stops_neither_a_reload_nor_the_end(images: list[tuple[Path, bytes]]) -> None:
    catalog = Catalog(new_context(4 << 20))
    for name in ("a", "b", "c"):
        catalog.add(name, str(images[0][0]))
    serving, named = catalog.served, catalog.names

    def served_with_a_delay() -> list[module.Served]:
        found = serving()
        catalog.remove("b")
        return found

    def names_with_a_delay() -> list[str]:
        found = named()
        catalog.remove("a")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "served", served_with_a_delay)
        assert catalog.sync(lambda: [Source("a", str(images[0][0]))]).removed == ["c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "names", names_with_a_delay)
        catalog.close()
    assert len(catalog) == 0


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    """What the daemon does with signals is taken back."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_reload_without_threads_to_spare_comes_later(
    images: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch, signals_as_they_were: None
) -> None:
    catalog = Catalog(new_context(4 << 20))
    front = AcceptLoop()
    running = Running(front, catalog, Notifier(), lambda: [Source("a", str(images[0][0]))])
    start, refused = threading.Thread.start, []

    def start_later(thread: threading.Thread) -> None:
        if thread.name == "reload" and len(refused) < 3:
            refused.append(thread)
            front.wake()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    running.on_reload("the end", front.stop)
    running.trap_signals()
    signal.raise_signal(signal.SIGHUP)
    running.run(drain_timeout=30)
    until(lambda: catalog.names() == ["a"])
    assert len(refused) == 3
    front.close()
    catalog.close()


def test_a_reload_that_is_asked_for_while_another_begins_is_done_as_well(
    monkeypatch: pytest.MonkeyPatch, signals_as_they_were: None
) -> None:
    catalog = Catalog(new_context(4 << 20))
    front = AcceptLoop()
    running = Running(front, catalog, Notifier(), list)
    start, reloads = threading.Thread.start, []

    def start_and_ask_again(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "reload" and len(reloads) < 2:
            thread.join()
            signal.raise_signal(signal.SIGHUP)

    def reload() -> None:
        reloads.append(time.monotonic())
        if len(reloads) == 2:
            front.stop()

    monkeypatch.setattr(threading.Thread, "start", start_and_ask_again)
    running.on_reload("this list", reload)
    running.trap_signals()
    signal.raise_signal(signal.SIGHUP)
    patience = threading.Timer(PATIENCE_S, front.stop)
    patience.start()
    running.run(drain_timeout=30)
    patience.cancel()
    assert len(reloads) == 2
    front.close()
    catalog.close()
