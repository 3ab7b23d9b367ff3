"""What one client may take of an image that others want too: a writer's time, and the processor for checksums."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator

import pytest

from hexz.images.backend import ImageExtent, Session
from hexz.images.checksum import checksum
from hexz.tools.pack import pack
from tests import samples
from tests.crafted import Craft
from tests.http.serving import Client, request
from tests.images.house import House

SIZE = 1 << 20
OLD = samples.image(SIZE, seed=51)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("turns")
    (folder / "old.raw").write_bytes(OLD)
    pack(str(folder / "old.raw"), str(folder / "old.hxz"))
    craft = Craft()
    craft.sizes["main"] = 1 << 62
    craft.flags = (0, 0, 0)
    (folder / "huge.hxz").write_bytes(craft.finish())
    with House(folder, folder / "old.hxz", folder / "huge.hxz") as made:
        yield made


@pytest.mark.parametrize("fast_first", [False, True])
def test_a_slow_writer_gives_way_to_those_who_wait(house: House, fast_first: bool) -> None:
    image = f"slow{fast_first}"
    house.register(image, backend="overlay", snapshot="old", file=str(house.files / image))
    over = threading.Event()
    with Client(house.address) as slow:
        head = {"Range": f"bytes=0-{SIZE - 1}", "Content-Length": str(SIZE), "Expect": "100-continue"}
        slow.send(request("PATCH", f"/images/{image}", head))
        assert slow.receive().status == 100  # it has its turn
        slow.send(bytes(70_000) if fast_first else b"")

        def drip() -> None:
            while not over.wait(0.5):
                slow.send(b"x" * 3000)

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            deadline = time.monotonic() + 60
            while house.ask("PATCH", f"/{image}", b"mine", {"Range": "bytes=5-8"})[0] != 200:
                assert time.monotonic() < deadline
            answer = slow.receive()
        finally:
            over.set()
            dripping.join()
        assert answer.status == 408 and "others wait" in json.loads(answer.body)["error"]
    assert house.ask("GET", f"/{image}", None, {"Range": "bytes=5-8"})[2] == b"mine"


def cpu_s(house: House) -> float:
    fields = open(f"/proc/{house.server.process.pid}/stat").read().rpartition(")")[2].split()  # noqa: SIM115
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_checksum_ends_with_its_client_and_two_are_the_most(house: House) -> None:
    asking = [Client(house.address) for _ in range(3)]
    for client in asking[:2]:
        client.send(request("GET", "/images/huge/checksum?algorithm=md5&block_size=1048576"))
    deadline = time.monotonic() + 30
    while cpu_s(house) < 0.5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asking[2].send(request("GET", "/images/old/checksum"))
    refused = asking[2].receive()
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert house.ask("GET", "/old", None, {"Range": "bytes=0-9"})[2] == OLD[:10]
    for client in asking:
        client.sock.close()
    # The places are free soon, and nothing goes on for those who left.
    while house.ask("GET", "/old/checksum")[0] != 200:
        assert time.monotonic() < deadline
    time.sleep(0.5)
    before = cpu_s(house)
    time.sleep(1.5)
    assert cpu_s(house) - before < 0.75


class Zeros(Session):
    """Data, zeros, data."""

    def __init__(self, parts: list[tuple[int, bool]]) -> None:
        self.parts = parts
        self.size = sum(length for length, _ in parts)

    def extents(self, offset: int, length: int, dirty: bool) -> Iterator[ImageExtent]:
        at = 0
        for size, zero in self.parts:
            yield ImageExtent(at, size, zero)
            at += size

    def read(self, offset: int, length: int):  # type: ignore[no-untyped-def]
        for at in range(0, length, 50_000):
            yield (memoryview(b"d" * min(50_000, length - at)),)


@pytest.mark.parametrize("block", [1 << 20, (1 << 20) + 4096])
def test_many_zeros_are_hashed_like_any_bytes(block: int) -> None:
    parts = [
        (5000, False),
        (3 << 20, True),
        (7 << 20, False),
        (40 << 20, True),
        (13, True),
        (1, False),
        (1 << 20, True),
    ]
    content = b"".join((bytes if zero else b"d".__mul__)(length) for length, zero in parts)
    total = hashlib.sha256()
    for at in range(0, len(content), block):
        total.update(hashlib.sha256(content[at : at + block]).digest())
    assert checksum(Zeros(parts), "sha256", block) == total.hexdigest()


def test_64_tebibytes_of_zeros_is_a_matter_of_seconds() -> None:
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    checksum(Zeros([(1 << 46, True)]), "blake2b", 1 << 20, look)
    assert looks > 100
