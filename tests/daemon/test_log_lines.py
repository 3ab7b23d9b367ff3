"""A log has so many lines of one kind in a minute, and says how many more there were."""

from __future__ import annotations

import errno
import http.client
import io
import logging
import re
import socket
from pathlib import Path

import pytest

from hexz.daemon import log_limits
from hexz.daemon.log_limits import LINES, LimitedHandler
from hexz.protocol.nbd import constants as c
from hexz.servers.nbd.outbox import MAX_BATCH
from hexz.snapshot import new_context, open_snapshot
from hexz.tools.pack import pack
from tests import samples
from tests.nbd.wire import Client
from tests.peers import Server

TIMES = 2000
LEFT_OUT = re.compile(r"\.\.\. (\d+) more like this in the last \d+ s, the last of them: (.*)")


def damaged(folder: Path, position: int = 0) -> tuple[Path, int]:
    """A snapshot whose block at `position` cannot be read, and that position."""
    raw, path = folder / "image.raw", folder / "hurt.hxz"
    raw.write_bytes(samples.image(2 << 20, seed=21))
    pack(str(raw), str(path))
    with open_snapshot(str(path), new_context(1 << 20, workers=0)) as snapshot:
        page = snapshot.streams["disk"].pages.at(position).page
        entry = next(entry for entry in range(page.count) if page.block_start(entry) + page.logical[entry] > position)
        place = page.stored_offset(entry)
        assert page.stored[entry]
    data = bytearray(path.read_bytes())
    data[place + 100 : place + 400] = bytes(300)
    path.write_bytes(data)
    return path, position


def counted(log: str, logger: str, mark: str) -> tuple[int, int]:
    """How many lines of a logger have `mark`, and how many more the log says there were."""
    lines = [line for line in log.splitlines() if f" {logger}: " in line and mark in line]
    more = [LEFT_OUT.search(line) for line in lines]
    return sum(found is None for found in more), sum(int(found[1]) for found in more if found is not None)


def test_failing_reads_and_malformed_requests_fill_no_log(tmp_path: Path) -> None:
    path, position = damaged(tmp_path)
    with Server("--http-port", 0, "--nbd-port", 0, path) as server:
        address = server.http.removeprefix("http://")
        asking = http.client.HTTPConnection(address, timeout=60)
        for _ in range(TIMES):
            asking.request("GET", "/disk", headers={"Range": f"bytes={position}-{position + 9}"})
            reply = asking.getresponse()
            assert reply.status == 500 and b"damaged" in reply.read()
        asking.close()
        client = Client(("127.0.0.1", server.nbd_port))
        client.go("")
        for _ in range(TIMES):
            assert client.request(c.CMD_READ, position, 512).error == errno.EIO
        client.sock.close()
        host, _, port = address.partition(":")
        for _ in range(TIMES // 4):
            with socket.create_connection((host, int(port)), timeout=60) as sock:
                sock.sendall(b"GET /\x01 HTTP/1.1\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
        server.stop()
        log = server.stderr()
    for logger, mark, times in (
        ("hexz.http", "disk block at", TIMES),
        ("hexz.nbd", "disk block at", TIMES),
        ("hexz.http", ": 400: ", TIMES // 4),
    ):
        logged, left_out = counted(log, logger, mark)
        assert logged + left_out == times
        assert logged <= LINES * 3  # of several periods, where the machine is slow


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (0, MAX_BATCH + 512)], ids=["at once", "in a long read"])
def test_where_files_lie_is_for_the_log_alone(tmp_path: Path, offset: int, length: int) -> None:
    path, _ = damaged(tmp_path, position=offset + length - 512)
    with Server("--nbd-port", 0, path) as server:
        client = Client(("127.0.0.1", server.nbd_port)).negotiate("structured")
        client.go("")
        told = b"".join(payload for _, _, payload in client.request(c.CMD_READ, offset, length).chunks)
        client.sock.close()
        assert b"damaged" in told and str(tmp_path).encode() not in told and path.name.encode() not in told
        server.stop()
        assert str(path) in server.stderr()


def test_a_kind_is_heard_again_when_its_period_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log_limits.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    handler = LimitedHandler(written)

    def say(template: str, *words: object, level: int = logging.WARNING, **more: object) -> None:
        record = logging.LogRecord("some", level, "file", 1, template, words, None)
        record.__dict__.update(more)
        handler.handle(record)

    for number in range(LINES + 5):
        say("read %d failed", number)
    say("another kind")
    handler.say_left_out()
    lines = written.getvalue().splitlines()
    assert lines == [*(f"read {number} failed" for number in range(LINES)), "another kind"]
    now[0] += log_limits.PERIOD_S
    handler.say_left_out()  # also when nothing more comes
    last = f"read {LINES + 4} failed"
    assert written.getvalue().splitlines()[-1] == f"... 5 more like this in the last 60 s, the last of them: {last}"
    for number in range(LINES + 1):
        say("read %d failed", number)
    now[0] += log_limits.PERIOD_S
    say("read %s failed", "another")  # another template
    say("read %d failed", 7)
    assert written.getvalue().splitlines()[-2:] == [
        f"... 1 more like this in the last 60 s, the last of them: read {LINES} failed",
        "read 7 failed",
    ]
    written.truncate(0)
    for number in range(LINES * 2):
        say("detail %d", number, level=logging.DEBUG)
        say("an operator's doing: %d", number, each=True)
    assert len(written.getvalue().splitlines()) == LINES * 4
    written.truncate(0)
    for number in range(log_limits.MAX_KINDS * 2):
        say(f"never twice the same: {number}")
    assert len(written.getvalue().splitlines()) <= log_limits.MAX_KINDS + LINES
