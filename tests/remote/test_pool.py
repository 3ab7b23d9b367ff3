"""The kept connections of a server: which are kept, and for how long."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from hexz.storage.remote import transport
from hexz.storage.remote.errors import Stale
from hexz.storage.remote.places import OriginName
from hexz.storage.remote.transport import IDLE_S, MAX_IDLE, Pool, ServerConnection


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(transport, "clock", made)
    return made


@pytest.fixture
def pool() -> Iterator[Pool]:
    with socket.create_server(("127.0.0.1", 0), backlog=2 * MAX_IDLE) as listener:
        made = Pool(OriginName("http", "127.0.0.1", listener.getsockname()[1]), None)
        with contextlib.closing(made):
            yield made


def taken(pool: Pool, clock: Clock, count: int) -> list[ServerConnection]:
    return [pool.take(clock.now + 10) for _ in range(count)]


def is_open(connection: ServerConnection) -> bool:
    return connection._sock.fileno() >= 0


def test_no_more_than_some_are_kept_and_those_used_last(pool: Pool, clock: Clock) -> None:
    connections = taken(pool, clock, MAX_IDLE + 2)
    for connection in connections:
        pool.give(connection)
    assert [is_open(one) for one in connections] == [False, False] + [True] * MAX_IDLE
    assert pool.take(clock.now + 10) is connections[-1]


def test_what_nobody_wanted_long_is_closed_while_another_goes_on(pool: Pool, clock: Clock) -> None:
    busy, *others = taken(pool, clock, 4)
    for connection in others:
        pool.give(connection)
    clock.now += IDLE_S - 1
    pool.give(busy)
    assert all(map(is_open, others))
    assert pool.take(clock.now + 10) is busy
    clock.now += 1
    pool.give(busy)
    assert not any(map(is_open, others)) and is_open(busy)


def test_an_answer_that_was_not_read_to_its_end_ends_its_connection(pool: Pool, clock: Clock) -> None:
    connection = taken(pool, clock, 1)[0]
    connection.reusable = False
    pool.give(connection)
    assert not is_open(connection)


def test_a_closed_pool_keeps_nothing(pool: Pool, clock: Clock) -> None:
    kept, late = taken(pool, clock, 2)
    pool.give(kept)
    pool.close()
    pool.give(late)
    assert not is_open(kept) and not is_open(late)


def test_a_connection_that_was_made_ahead_may_have_been_closed_before_it_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with contextlib.closing(Pool(OriginName("http", "127.0.0.1", listener.getsockname()[1]), None)) as pool:
            deadline = transport.clock() + 10
            assert (pool.prepare(1), pool.prepare(1)) == (1, 0)
            pool.add(deadline)
            listener.accept()[0].close()
            with contextlib.closing(pool.take(deadline)) as connection, pytest.raises(Stale):
                connection.get(b"GET / HTTP/1.1\r\n\r\n", 1, deadline)
