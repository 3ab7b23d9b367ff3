"""oVirt's own client downloads and uploads: whole and incremental, raw and qcow2, over http and TLS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexz.tools.pack import pack
from tests import samples
from tests.images.house import House, qcow2_with_bitmap, qemu_nbd, same
from tests.peers import need, need_module, run

client = need_module("ovirt_imageio.client")

SIZE = (6 << 20) + 8192
CLUSTER = 65536


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations of an image, raw and packed, the second one thin."""
    path = tmp_path_factory.mktemp("ovirt")
    old = samples.image(SIZE, seed=3)
    new = bytearray(old)
    new[CLUSTER : CLUSTER + 10] = b"0123456789"
    new[20 * CLUSTER : 24 * CLUSTER] = bytes(4 * CLUSTER)
    new[-5000:] = samples.image(5000, seed=4)
    (path / "old.raw").write_bytes(old)
    (path / "new.raw").write_bytes(new)
    pack(str(path / "old.raw"), str(path / "old.hxz"))
    pack(str(path / "new.raw"), str(path / "new.hxz"), parent=str(path / "old.hxz"))
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    path = tmp_path_factory.mktemp("tls")
    cert, key = path / "cert.pem", path / "key.pem"
    run(
        need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", key, "-out", cert,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="module", params=["http", "https"])
def house(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    certificate: tuple[Path, Path],
) -> Iterator[House]:
    """A daemon with both generations."""
    tls = ("--tls-cert", certificate[0], "--tls-key", certificate[1]) if request.param == "https" else ()
    with House(tmp_path_factory.mktemp("house"), *tls, folder / "old.hxz", folder / "new.hxz") as made:
        yield made


def cafile(house: House, certificate: tuple[Path, Path]) -> str | None:
    """What the client needs to trust the server."""
    return str(certificate[0]) if house.base.startswith("https") else None


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_downloads_a_snapshot(
    house: House, folder: Path, certificate: tuple[Path, Path], tmp_path: Path, fmt: str, workers: int
) -> None:
    out = tmp_path / "out"
    client.download(
        house.url("new"), str(out), cafile(house, certificate), fmt=fmt, max_workers=workers, buffer_size=256 << 10
    )
    same(folder / "new.raw", out, ("raw", fmt))


@pytest.mark.parametrize("workers", [1, 4])
def test_downloads_an_increment_onto_the_old_generation(
    house: House, folder: Path, certificate: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    full, increment = tmp_path / "full.qcow2", tmp_path / "increment.qcow2"
    trust = cafile(house, certificate)
    client.download(house.url("old"), str(full), trust, fmt="qcow2", max_workers=workers)
    client.download(
        house.url("new"), str(increment), trust, fmt="qcow2", incremental=True,
        backing_file=str(full), backing_format="qcow2", max_workers=workers,
    )  # fmt: skip
    same(folder / "new.raw", increment, ("raw", "qcow2"))
    # It has to be an increment: a few clusters, not the image.
    assert increment.stat().st_size < 12 * CLUSTER < full.stat().st_size


@pytest.mark.parametrize("workers", [1, 4])
def test_uploads_to_an_overlay_and_reads_it_back(
    house: House, folder: Path, certificate: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    name = f"over{workers}"
    url = house.register(name, backend="overlay", snapshot="old", file=str(house.files / name), max_writers=4)
    trust = cafile(house, certificate)
    client.upload(str(folder / "new.raw"), url, trust, max_workers=workers)
    client.download(url, str(tmp_path / "out"), trust, fmt="raw", max_workers=workers)
    same(folder / "new.raw", tmp_path / "out")
    client.download(house.url("old"), str(tmp_path / "below"), trust, fmt="raw")
    same(folder / "old.raw", tmp_path / "below")
    assert client.checksum(str(folder / "new.raw"))["checksum"] == remote_checksum(url, trust)


def remote_checksum(url: str, trust: str | None) -> str:
    """The server's own checksum of an image, asked by curl."""
    answer = run(need("curl", "curl"), "-sf", *(["--cacert", trust] if trust else []), f"{url}/checksum").stdout
    return str(json.loads(answer)["checksum"])


@pytest.mark.parametrize("workers", [1, 4])
def test_uploads_to_an_nbd_image_and_reads_it_back(
    house: House, folder: Path, certificate: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    raw = tmp_path / "target.raw"
    raw.write_bytes(bytes(SIZE))
    trust = cafile(house, certificate)
    with qemu_nbd(tmp_path / "nbd.sock", raw) as peer:
        url = house.register(f"nbd{workers}", socket=str(peer.socket), export="disk")
        client.upload(str(folder / "new.raw"), url, trust, max_workers=workers)
        client.download(url, str(tmp_path / "out"), trust, fmt="raw", max_workers=workers)
    same(folder / "new.raw", tmp_path / "out")
    same(folder / "new.raw", raw)


def test_downloads_an_increment_through_a_dirty_bitmap(
    house: House, folder: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    disk = tmp_path / "disk.qcow2"
    qcow2_with_bitmap(disk, folder / "old.raw", "write -P 9 1M 100k", "write -z 4M 64k", "write -P 3 5000k 10")
    expected = tmp_path / "expected.raw"
    run("qemu-img", "convert", "-O", "raw", disk, expected)
    trust = cafile(house, certificate)
    with qemu_nbd(tmp_path / "nbd.sock", disk, "qcow2", "-r", "-B", "b0") as peer:
        url = house.register("bitmap", socket=str(peer.socket), export="disk", export_bitmap="b0")
        full, increment = tmp_path / "full.qcow2", tmp_path / "increment.qcow2"
        client.download(house.url("old"), str(full), trust, fmt="qcow2")
        client.download(
            url, str(increment), trust, fmt="qcow2", incremental=True, backing_file=str(full), backing_format="qcow2"
        )
    same(expected, increment, ("raw", "qcow2"))
    assert increment.stat().st_size < 12 * CLUSTER


def test_a_large_refused_write_is_told_even_over_tls(house: House, certificate: tuple[Path, Path]) -> None:
    data = bytes(SIZE)
    with client.ImageioClient(house.url("old"), cafile=cafile(house, certificate)) as connection:
        for _ in range(3):
            with pytest.raises(Exception, match="not possible"):
                connection.write(0, data)


def test_the_checksum_is_the_client_s(house: House, folder: Path, certificate: tuple[Path, Path]) -> None:
    ours = remote_checksum(house.url("new"), cafile(house, certificate))
    assert ours == client.checksum(str(folder / "new.raw"))["checksum"]


def test_the_example_checker_of_a_copy_finds_damage(tmp_path: Path, folder: Path) -> None:
    """The comparison that these tests rest on can fail."""
    damaged = bytearray((folder / "new.raw").read_bytes())
    damaged[777] ^= 1
    (tmp_path / "damaged.raw").write_bytes(damaged)
    answer = subprocess.run(
        [need("qemu-img"), "compare", "-f", "raw", "-F", "raw", str(folder / "new.raw"), str(tmp_path / "damaged.raw")],
        capture_output=True,
        check=False,
    )
    assert answer.returncode == 1


def test_a_client_on_the_same_machine_is_told_of_the_unix_socket_and_uses_it(folder: Path, tmp_path: Path) -> None:
    log, where = tmp_path / "access", tmp_path / "http.sock"
    with House(tmp_path, "--http-socket", where, "--access-log", log, folder / "old.hxz") as house:
        assert house.json("OPTIONS", "/old")["unix_socket"] == str(where)
        client.download(house.url("old"), str(tmp_path / "out"), None, fmt="raw", max_workers=4)
    same(folder / "old.raw", tmp_path / "out")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    local = {entry["client"] for entry in entries if entry["method"] == "GET"}
    assert len(local) == 1 and "127.0.0.1" not in local.pop()
