"""What is shown to whom, what is followed, and what is asked again, once."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hexz.errors import OriginError, OriginTimeout, OriginUnavailable
from hexz.snapshot import Snapshot, open_snapshot
from hexz.storage.remote import RemoteSettings, StoreNames, server, transport
from tests.peers import need, run, write_secret
from tests.remote import faults
from tests.remote.faults import Fault
from tests.remote.proxy import Asked, Proxy, Turn
from tests.remote.reading import PATIENT, PIECE, Recorder, context_of, opened, read
from tests.remote.stores import Store, nginx
from tests.waiting import until

TOKEN, OTHER_TOKEN = "tok-of-the-store", "tok-of-another"
FAR = 5 << 20
KEYS = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}-secret\naws_session_token = {}-session\n"


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is made before it is needed, as it would be where a busy machine makes the way look long."""
    monkeypatch.setattr(server, "FAR_S", 3600.0)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, snapshot_file: Path) -> Iterator[Store]:
    """nginx with a bucket's folder: it takes any signature."""
    root = tmp_path_factory.mktemp("trust")
    (root / "bucket").mkdir()
    (root / "bucket" / "snap.hxz").write_bytes(snapshot_file.read_bytes())
    with nginx(root) as store:
        yield store


@pytest.fixture
def proxy(origin: Store) -> Iterator[Proxy]:
    with Proxy(origin.base) as made:
        yield made


@pytest.fixture(scope="module")
def piece(disk_image: Path) -> bytes:
    return disk_image.read_bytes()[FAR : FAR + PIECE]


def authorization(asked: Asked) -> str:
    return asked.headers.get("authorization", "")


def tokens(folder: Path, *lines: str) -> RemoteSettings:
    return PATIENT._replace(token_file=str(write_secret(folder / "tokens", "\n".join(lines) + "\n")))


def signing(folder: Path, proxy: Proxy, name: str = "OLDKEY", region: str = "us-east-1") -> RemoteSettings:
    keys = write_secret(folder / "keys", KEYS.format(name, name, name))
    return PATIENT._replace(stores=StoreNames(proxy.root, region), credentials_file=str(keys))


# Credentials


def test_a_token_is_shown_to_its_own_server(proxy: Proxy, tmp_path: Path, piece: bytes) -> None:
    with opened(proxy.url("bucket/snap.hxz"), tokens(tmp_path, f"127.0.0.1 {TOKEN}", f"h {OTHER_TOKEN}")) as snapshot:
        assert read(snapshot, FAR, PIECE) == piece
    assert {authorization(asked) for asked in proxy.counts.asked} == {f"Bearer {TOKEN}"}


def test_a_token_that_is_replaced_is_read_again(proxy: Proxy, tmp_path: Path, piece: bytes) -> None:
    with opened(proxy.url("bucket/snap.hxz"), tokens(tmp_path, f"127.0.0.1:{proxy.port} {TOKEN}")) as snapshot:
        write_secret(tmp_path / "tokens", f"127.0.0.1:{proxy.port} {OTHER_TOKEN}-and-longer\n")
        proxy.forget()
        assert read(snapshot, FAR, PIECE) == piece
        assert {authorization(asked) for asked in proxy.counts.asked} == {f"Bearer {OTHER_TOKEN}-and-longer"}


@pytest.mark.parametrize("s3", [False, True])
def test_a_redirect_shows_another_host_nothing(
    s3: bool, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "is_inside", lambda address: False)
    settings = tokens(tmp_path, f"127.0.0.1 {TOKEN}", f"127.0.0.2 {OTHER_TOKEN}")
    if s3:
        settings = signing(tmp_path, proxy)._replace(token_file=settings.token_file)
    address = "s3://bucket/snap.hxz" if s3 else proxy.url("bucket/snap.hxz")
    with Recorder() as other, opened(address, settings) as snapshot:
        proxy.use(faults.redirect(f"{other.url}/there"))
        with pytest.raises(OriginError, match="404"):
            read(snapshot, FAR, PIECE)
        assert len(other.heads) >= 1
        for head in other.heads:
            assert b"range: bytes=" in head.lower() and f"host: {other.url[7:]}".encode() in head.lower()
            for secret in (TOKEN, OTHER_TOKEN, "OLDKEY", "authorization", "x-amz-", "session"):
                assert secret.encode() not in head
        # The place that was redirected from still is asked as before.
        proxy.clear()
        read(snapshot, FAR, PIECE)


def test_a_redirect_to_another_port_of_the_host_keeps_no_signature(
    origin: Store, proxy: Proxy, tmp_path: Path, piece: bytes
) -> None:
    with opened("s3://bucket/snap.hxz", signing(tmp_path, proxy)) as snapshot, Proxy(origin.base) as there:
        proxy.use(faults.redirect(lambda turn: f"{there.root}{turn.asked.target}", 307))
        assert read(snapshot, FAR, PIECE) == piece
        assert there.counts.requests and not any(authorization(asked) for asked in there.counts.asked)


def test_where_it_was_found_is_asked_at_once_and_not_when_it_goes_wrong_there(
    origin: Store, proxy: Proxy, piece: bytes
) -> None:
    with opened(proxy.url("bucket/snap.hxz")) as snapshot, Proxy(origin.base) as there:
        rule = proxy.use(faults.redirect(lambda turn: f"{there.root}{turn.asked.target}", 307))
        for place in range(6):
            read(snapshot, place << 20, 4096)
        assert rule.struck == 1
        expired = there.use("403 expired", times=1)
        assert read(snapshot, 7 << 20, 4096)
        assert expired.struck == 1 and rule.struck == 2


def test_a_redirect_leads_to_no_address_inside(origin: Store) -> None:
    with Proxy(origin.base) as proxy, Recorder("127.0.0.1") as inside:
        with opened(proxy.url("bucket/snap.hxz").replace("127.0.0.1", "localhost")) as snapshot:
            for url in (inside.url, inside.url.replace("127.0.0.1", "[::1]"), "http://169.254.169.254/", "http://0/"):
                proxy.use(faults.redirect(f"{url}/there"))
                with pytest.raises(OriginError, match=r"not followed|is at"):
                    read(snapshot, FAR, PIECE)
                proxy.clear()
            assert read(snapshot, FAR, PIECE)
        assert not inside.heads


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    run(
        need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def tls_proxy(origin: Store, certificate: tuple[str, str]) -> Iterator[Proxy]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with Proxy(origin.base, tls) as made:
        yield made


def test_over_tls_and_never_from_there_to_http(
    tls_proxy: Proxy, certificate: tuple[str, str], piece: bytes, tmp_path: Path
) -> None:
    settings = tokens(tmp_path, f"127.0.0.1 {TOKEN}")._replace(ca_file=certificate[0])
    with Recorder("127.0.0.1") as plain, opened(tls_proxy.url("bucket/snap.hxz"), settings) as snapshot:
        assert read(snapshot, FAR, PIECE) == piece
        tls_proxy.use(faults.redirect(f"{plain.url}/bucket/snap.hxz"))
        with pytest.raises(OriginError, match="from https to http"):
            read(snapshot, 2 << 20, PIECE)
        tls_proxy.clear()
        tls_proxy.cut()  # connections that are kept
        assert read(snapshot, 2 << 20, PIECE)
        assert not plain.heads


def test_a_certificate_is_checked(tls_proxy: Proxy) -> None:
    with pytest.raises(OriginUnavailable, match="--ca-file"), opened(tls_proxy.url("bucket/snap.hxz")):
        pass
    assert tls_proxy.counts.requests == 0


# Once more, and not for ever


def for_key(name: str) -> Callable[[Asked], bool]:
    return lambda asked: f"Credential={name}/" in authorization(asked)


@pytest.mark.parametrize("fault", ["403 expired", "400 expired", "401", "403"])
def test_keys_that_were_refused_are_renewed_once(fault: str, proxy: Proxy, tmp_path: Path, piece: bytes) -> None:
    with opened("s3://bucket/snap.hxz", signing(tmp_path, proxy)) as snapshot:
        rule = proxy.use(fault, when=for_key("OLDKEY"))
        # Nobody has new ones: an error, and not one request after the other.
        with pytest.raises(OriginError):
            read(snapshot, FAR, PIECE)
        assert rule.struck <= 4
        write_secret(tmp_path / "keys", KEYS.format("NEWKEY", "NEWKEY", "NEWKEY"))
        proxy.forget()
        assert read(snapshot, FAR, PIECE) == piece
        assert any(map(for_key("NEWKEY"), proxy.counts.asked))
        assert all("secret" not in str(asked) for asked in proxy.counts.asked)


def wrong_region(wanted: str, chunked: bool = False) -> Fault:
    body = f"<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message><Region>{wanted}</Region></Error>"

    def act(turn: Turn) -> None:
        turn.reply(400, body.encode(), content_type="application/xml")
        if chunked:
            turn.framed = False
            turn.set("Transfer-Encoding", "chunked")
            turn.body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body.encode())

    return Fault("wrong region", "request", act)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_wrong_region_is_corrected_once(chunked: bool, proxy: Proxy, tmp_path: Path, piece: bytes) -> None:
    rule = proxy.use(wrong_region("eu-west-1", chunked), when=lambda asked: "/us-east-1/" in authorization(asked))
    settings = signing(tmp_path, proxy)
    with context_of(settings) as context:
        for _ in range(8):  # the two requests of opening race
            with open_snapshot("s3://bucket/snap.hxz", context) as snapshot:
                assert read(snapshot, FAR, PIECE) == piece
    assert rule.struck <= 2


def test_a_region_that_is_never_right(proxy: Proxy, tmp_path: Path) -> None:
    rule = proxy.use(wrong_region("eu-west-1"))
    with pytest.raises(OriginUnavailable, match="AuthorizationHeaderMalformed"):
        with opened("s3://bucket/snap.hxz", signing(tmp_path, proxy)):
            pass
    assert rule.struck <= 6


def test_keys_that_cannot_be_had_are_no_silence_of_the_reader(proxy: Proxy, tmp_path: Path) -> None:
    keys = write_secret(tmp_path / "keys.json", '{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "x", '
                        '"SessionToken": "t", "Expiration": "2001-01-01T00:00:00Z"}')  # fmt: skip
    settings = PATIENT._replace(stores=StoreNames(proxy.root), credentials_file=str(keys))
    with pytest.raises(OriginUnavailable, match="expired"), opened("s3://bucket/snap.hxz", settings):
        pass
    assert proxy.counts.requests == 0


def test_retry_after_is_kept_to(proxy: Proxy, piece: bytes) -> None:
    with opened(proxy.url("bucket/snap.hxz")) as snapshot:
        proxy.use("503 retry-after", times=1)
        began = time.monotonic()
        assert read(snapshot, FAR, PIECE) == piece
        assert time.monotonic() - began >= 1
        proxy.use(faults.status(429, retry_after="3600"))
        proxy.forget()
        with pytest.raises(OriginTimeout, match="429"):  # there is no sense in waiting
            read(snapshot, 2 << 20, PIECE)
        assert proxy.counts.requests == 1


# Connections


def in_threads(count: int, action: Callable[[int], object]) -> None:
    troubles: list[BaseException] = []

    def run_one(number: int) -> None:
        try:
            action(number)
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=run_one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles, troubles


def test_requests_under_way_are_bounded(proxy: Proxy, disk_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_IN_FLIGHT", 4)
    image = disk_image.read_bytes()
    proxy.use(faults.latency(0.01))

    def check(number: int) -> None:
        offset = number * 400_000
        assert read(snapshot, offset, 4096) == image[offset : offset + 4096]

    with opened(proxy.url("bucket/snap.hxz")) as snapshot:
        in_threads(20, check)
    proxy.quiet()
    assert 1 < proxy.counts.most_in_flight <= 4 and proxy.counts.connections <= 5


def at_rest(snapshot: Snapshot, proxy: Proxy) -> int:
    """Wait until nothing is fetched ahead any more; how many connections are kept then."""
    snapshot.context.lanes.stop()
    lane = snapshot.storage.lane
    assert isinstance(lane, server.Server)
    until(lambda: not lane.measured.in_flight)
    proxy.quiet()
    return proxy.counts.open


def test_kept_connections_that_were_closed_are_not_waited_for(proxy: Proxy, piece: bytes) -> None:
    with opened(proxy.url("bucket/snap.hxz")) as snapshot:
        in_threads(8, lambda number: read(snapshot, number << 18, 4096))
        kept = at_rest(snapshot, proxy)
        proxy.cut()
        until(lambda: proxy.counts.open == 0)
        proxy.forget()
        assert read(snapshot, FAR, PIECE) == piece
        assert kept > 1 and proxy.counts.connections == proxy.counts.requests == 1


def test_of_a_frozen_machine_only_the_first_kept_connection_is_waited_for(
    proxy: Proxy, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALL_S", 0.2)
    with opened(proxy.url("bucket/snap.hxz")) as snapshot:
        in_threads(8, lambda number: read(snapshot, number << 18, 4096))
        kept = at_rest(snapshot, proxy)
        # All that are connected now hang, as behind a firewall that has forgotten them; new ones do not.
        new, hung = set(), []

        def hang(turn: Turn) -> None:
            if turn.connection.turns == 1:
                new.add(turn.connection)
            elif turn.connection not in new:
                hung.append(turn.asked.range)
                turn.hang()

        proxy.use(Fault("", "request", hang))
        assert read(snapshot, FAR, PIECE) == piece
        assert kept > len(hung) == len(set(hung)) > 0


def test_idle_connections_are_bounded_and_end(origin: Store) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Proxy(origin.base) as proxy:
        for _ in range(3):
            with opened(proxy.url("bucket/snap.hxz")) as snapshot:
                in_threads(8, lambda number, one=snapshot: read(one, number << 19, 4096))  # type: ignore[misc]
    assert len(os.listdir("/proc/self/fd")) <= before
