"""Everything that the proxy can do to answers: right bytes or a clear error, and all is well once it is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.errors import BlockError, HexzError, OriginChanged, OriginTimeout
from hexz.storage.remote import fetchers, server
from tests.remote.faults import FAULTS, MEND, NOTHING, REOPEN, RETRY
from tests.remote.proxy import Proxy
from tests.remote.reading import HASTY, PATIENT, PIECE, nothing_left, opened, read, right_or_told
from tests.remote.stores import Store, nginx
from tests.waiting import until

REFUSED = {"chunked", "without length"}
"""Right answers that no store gives to a range: they are refused."""
ACCEPTED = {"another last-modified"}
"""The ETag says that it is the same file."""
FIRST, SECOND, THIRD = 3 << 20, 5 << 20, 7 << 20
"""Where is read: far from each other, and none of it comes along when the file is opened."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing is left alone after a moment, and threads without work end at once."""
    monkeypatch.setattr(server, "STALL_S", 0.3)
    monkeypatch.setattr(fetchers, "IDLE_S", 0.01)


@pytest.fixture(scope="module")
def origin(still_folder: Path) -> Iterator[Store]:
    with nginx(still_folder) as store:
        yield store


@pytest.fixture(scope="module")
def image(disk_image: Path) -> bytes:
    return disk_image.read_bytes()


@pytest.fixture
def proxy(origin: Store) -> Iterator[Proxy]:
    with Proxy(origin.base) as made:
        yield made


def test_the_reader_is_not_easily_put_off(proxy: Proxy, image: bytes) -> None:
    assert {fault.cure for fault in FAULTS.values()} == {NOTHING, RETRY, REOPEN, MEND}
    assert set(FAULTS) >= REFUSED | ACCEPTED
    with opened(proxy.url("snap.hxz")) as snapshot:
        assert read(snapshot, 0, len(image)) == image


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.stage != "connect"])
def test_a_fault_that_strikes_once(name: str, proxy: Proxy, image: bytes) -> None:
    """Another try gets right bytes; where it cannot, an error says so, and the next read does."""
    cure = FAULTS[name].cure
    with nothing_left(), opened(proxy.url("snap.hxz"), PATIENT) as snapshot:
        rule = proxy.use(name, times=1)
        error = right_or_told(snapshot, image, FIRST)
        assert rule.struck == 1
        proxy.clear()
        if cure in (NOTHING, RETRY):
            assert error is None, error
        elif cure == REOPEN and name not in ACCEPTED:
            assert isinstance(error, OriginChanged) and snapshot.changed
        if cure == REOPEN and error is not None:
            assert isinstance(right_or_told(snapshot, image, SECOND), OriginChanged)
        else:
            assert read(snapshot, SECOND, PIECE) == image[SECOND : SECOND + PIECE]
            assert read(snapshot, FIRST, PIECE) == image[FIRST : FIRST + PIECE]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays(name: str, proxy: Proxy, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right bytes, or an error when the time is up; and right bytes when it is over, without opening it again."""
    cure = FAULTS[name].cure
    with nothing_left(), opened(proxy.url("snap.hxz")) as snapshot:
        # Not before: on a busy machine it takes longer to open it.
        monkeypatch.setattr(snapshot.storage, "_deadline_s", HASTY.deadline_s)
        rule = proxy.use(name)
        if FAULTS[name].stage == "connect":
            proxy.cut()
        error = right_or_told(snapshot, image, FIRST)
        assert rule.struck
        proxy.clear()
        proxy.cut()
        if cure == NOTHING and name not in REFUSED and not isinstance(error, OriginTimeout):
            assert error is None, error
        if not isinstance(error, OriginChanged):
            assert cure != REOPEN or name in ACCEPTED
            # What is left of the fault may take the whole of one more read.
            until(lambda: right_or_told(snapshot, image, SECOND) is None)
            until(lambda: right_or_told(snapshot, image, FIRST) is None)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_while_it_is_opened(name: str, proxy: Proxy, image: bytes) -> None:
    with nothing_left():
        proxy.use(name)
        try:
            with opened(proxy.url("snap.hxz"), HASTY) as snapshot:
                right_or_told(snapshot, image, FIRST)
        except HexzError as error:
            assert str(error).startswith(proxy.url("snap.hxz")) and "\n" not in str(error)
        proxy.clear()
        with opened(proxy.url("snap.hxz")) as snapshot:
            assert read(snapshot, THIRD, PIECE) == image[THIRD : THIRD + PIECE]
        proxy.cut()


@pytest.mark.parametrize("name", ["flipped bits", "zeros", "bytes of another range"])
def test_wrong_bytes_do_not_stay_in_the_disk_cache(name: str, proxy: Proxy, image: bytes, tmp_path: Path) -> None:
    settings = PATIENT._replace(disk_cache=str(tmp_path / "cache"), disk_cache_size=64 << 20, speculation=0.0)
    with opened(proxy.url("snap.hxz"), settings) as snapshot:
        proxy.use(name)
        assert isinstance(right_or_told(snapshot, image, FIRST), BlockError)
        proxy.clear()
        assert read(snapshot, FIRST, PIECE) == image[FIRST : FIRST + PIECE]
    with opened(proxy.url("snap.hxz"), settings) as snapshot:
        assert read(snapshot, FIRST, PIECE) == image[FIRST : FIRST + PIECE]
