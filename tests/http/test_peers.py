"""Programs that people read images with: each gets every byte right, over one daemon on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests import samples
from tests.conftest import CORPUS
from tests.peers import ROOT, Server, listens, need, need_module, run
from tests.s3.serving import write_archive


@pytest.fixture(scope="module")
def daemon(snapshot_file: Path) -> Iterator[Server]:
    with Server(snapshot_file, "--http-port", 0) as running:
        yield running


@pytest.fixture
def url(daemon: Server) -> str:
    return f"{daemon.http}/disk"


def part(disk: bytes, path: Path, length: int = 3_000_001) -> Path:
    """The beginning of a download that was cut."""
    path.write_bytes(disk[:length])
    return path


# curl


@pytest.mark.parametrize(
    ("options", "start", "stop"),
    [
        ((), 0, None),
        (("--http1.0",), 0, None),
        (("-r", "0-0"), 0, 1),
        (("-r", "4095-70000"), 4095, 70001),
        (("-r", "8000000-"), 8_000_000, None),
        (("-r", "-777"), -777, None),
        (("--http1.0", "-r", "5-9"), 5, 10),
        (("-C", "5000000"), 5_000_000, None),
        (("-H", "Expect: 100-continue"), 0, None),
    ],
)
def test_curl_ranges(
    url: str, disk: bytes, tmp_path: Path, options: tuple[str, ...], start: int, stop: int | None
) -> None:
    run(need("curl", "curl"), "-sSf", *options, "-o", tmp_path / "out", url)
    assert (tmp_path / "out").read_bytes() == disk[start:stop]


def test_curl_several_ranges(url: str, disk: bytes, tmp_path: Path) -> None:
    run(need("curl", "curl"), "-sSf", "-r", "0-9,5000-5009", "-D", tmp_path / "head", "-o", tmp_path / "out", url)
    assert "multipart/byteranges" in (tmp_path / "head").read_text()
    body = (tmp_path / "out").read_bytes()
    assert disk[:10] in body and disk[5000:5010] in body


def test_curl_goes_on_where_it_was_cut(url: str, disk: bytes, tmp_path: Path) -> None:
    curl = need("curl", "curl")
    path = part(disk, tmp_path / "out")
    run(curl, "-sSf", "-C", "-", "-o", path, url)
    assert path.read_bytes() == disk
    # Going on with a whole file asks for what lies past the end: 416 says that there is nothing, and curl is content.
    run(curl, "-sS", "-C", "-", "-o", path, url)
    assert path.read_bytes() == disk


def test_curl_parallel_over_few_connections(url: str, disk: bytes, tmp_path: Path) -> None:
    spans = [(n * 400_000, n * 400_000 + 399_999) for n in range(16)]
    lines = "".join(
        f'{"next" if n else ""}\nurl = "{url}"\nrange = "{a}-{b}"\noutput = "{tmp_path / str(n)}"\n'
        for n, (a, b) in enumerate(spans)
    )
    (tmp_path / "config").write_text(lines)
    run(need("curl", "curl"), "-sSf", "--parallel", "--parallel-max", "4", "-K", tmp_path / "config")
    for number, (first, last) in enumerate(spans):
        assert (tmp_path / str(number)).read_bytes() == disk[first : last + 1]


def test_curl_asks_whether_its_copy_is_current(url: str, tmp_path: Path) -> None:
    """RFC 9110 13.1.2 and 13.1.3, as curl sends them."""
    curl = need("curl", "curl")
    tag, copy = tmp_path / "tag", tmp_path / "copy"
    status = ("-sS", "-w", "%{http_code} %{size_download}")
    size = run(curl, *status, "--etag-save", tag, "-o", copy, url).stdout
    assert size == f"200 {copy.stat().st_size}"
    assert run(curl, *status, "--etag-compare", tag, "-o", "/dev/null", url).stdout == "304 0"
    # -R gives the copy the date of the image, and -z sends it back.
    run(curl, "-sSf", "-R", "-o", copy, url)
    assert run(curl, *status, "-z", copy, "-o", "/dev/null", url).stdout == "304 0"


def test_curl_over_a_unix_socket(snapshot_file: Path, disk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with Server(snapshot_file, "--http-socket", path):
        run(need("curl", "curl"), "-sSf", "--unix-socket", path, "-o", tmp_path / "out", "http://host/disk")
        assert (tmp_path / "out").read_bytes() == disk
    assert not path.exists()


# Programs that fetch whole files


def test_wget_goes_on_where_it_was_cut(url: str, disk: bytes, tmp_path: Path) -> None:
    path = part(disk, tmp_path / "out")
    run(need("wget", "wget"), "-q", "-c", "-O", path, url)
    assert path.read_bytes() == disk
    run(need("wget", "wget"), "-q", "-c", "-O", path, url)
    assert path.read_bytes() == disk


def test_aria2_with_eight_connections(url: str, disk: bytes, tmp_path: Path) -> None:
    run(
        need("aria2c", "aria2"), "-q", "-x", "8", "-s", "8", "-k", "1M", "--file-allocation=none",
        "-d", tmp_path, "-o", "out", url,
    )  # fmt: skip
    assert (tmp_path / "out").read_bytes() == disk


# QEMU's http driver


def test_qemu_img(url: str, disk_image: Path, tmp_path: Path) -> None:
    need("qemu-img", "qemu-utils")
    facts = json.loads(run("qemu-img", "info", "--output=json", url).stdout)
    size = disk_image.stat().st_size
    assert facts["virtual-size"] == size
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk_image, url)
    # One request at a time: with several, QEMU's driver now and then misses the end of an answer, whoever serves it.
    run("qemu-img", "convert", "-m", "1", "-f", "raw", "-O", "raw", url, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == disk_image.read_bytes()


def test_qemu_io(url: str, disk: bytes) -> None:
    found = re.search(rb"\0{4096}", disk)
    assert found is not None
    zeros = (found.start() + 511) // 512 * 512
    opened = "json:" + json.dumps({"driver": "raw", "file": {"driver": "http", "url": url, "readahead": 65536}})
    done = run(
        need("qemu-io", "qemu-utils"), "-r", "-c", f"read -P 0 {zeros} 1024", "-c", "aio_read 0 1M", "-c", "aio_flush",
        "-c", "read 4M 1M", "-c", "read 8387584 2560", opened,
    )  # fmt: skip
    assert "Pattern verification failed" not in done.stdout + done.stderr
    assert done.stdout.count("read 1048576/1048576 bytes") == 2 and "read 2560/2560" in done.stdout


# Python


def test_requests(daemon: Server, disk: bytes) -> None:
    with requests.Session() as session:
        for start, stop in ((0, 1), (123_456, 1_234_567), (8_000_000, len(disk))):
            reply = session.get(f"{daemon.http}/disk", headers={"Range": f"bytes={start}-{stop - 1}"}, timeout=60)
            assert (reply.status_code, reply.content) == (206, disk[start:stop])
        reply = session.get(f"{daemon.http}/disk", stream=True, timeout=60)
        assert b"".join(reply.iter_content(1 << 16)) == disk
        assert session.get(f"{daemon.http}/info", timeout=60).json()["streams"]["disk"]["size"] == len(disk)


def test_fsspec(daemon: Server, disk: bytes) -> None:
    need_module("aiohttp")
    fsspec = need_module("fsspec")
    system = fsspec.filesystem("http", skip_instance_cache=True)
    url = f"{daemon.http}/disk"
    assert system.info(url)["size"] == len(disk)
    source = random.Random(4)
    starts = [source.randrange(len(disk) - 50_000) for _ in range(20)]
    stops = [start + source.randrange(1, 50_000) for start in starts]
    assert system.cat_ranges([url] * 20, starts, stops) == [disk[a:b] for a, b in zip(starts, stops)]
    with system.open(url, "rb", block_size=1 << 20) as file:
        file.seek(-5000, 2)
        assert file.read() == disk[-5000:]
        file.seek(3_333_333)
        assert file.read(2_000_000) == disk[3_333_333:5_333_333]


# A caching proxy in front

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors warn;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache keys_zone=slices:1m max_size=64m;
  upstream snapshots {{ server {upstream}; keepalive 4; }}
  server {{
    listen unix:{folder}/front;
    location / {{
      slice 1m; proxy_cache slices; proxy_cache_key $uri$is_args$args$slice_range;
      proxy_set_header Range $slice_range; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass http://snapshots; add_header X-Cache $upstream_cache_status;
    }}
  }}
}}
"""


def test_nginx_caches_slices(snapshot_file: Path, disk: bytes, tmp_path: Path) -> None:
    """Slices of a URL that names its content come from us once, and from the proxy's cache even when we are gone."""
    nginx, curl = need("nginx", "nginx-light"), need("curl", "curl")
    folder = tmp_path / "n"
    folder.mkdir()
    front = folder / "front"
    archive = write_archive(tmp_path / "names.hxz", {"empty": b"", "text": b"a few words"})
    # nginx asks for the name of its upstream.
    with Server(snapshot_file, archive, "--http-port", 0, "--host-name", "snapshots") as server:
        (folder / "conf").write_text(NGINX.format(folder=folder, upstream=server.http.rpartition("/")[2]))
        user = ("-g", "user root;") if os.getuid() == 0 else ()
        proxy = subprocess.Popen([nginx, "-p", folder, "-e", folder / "errors", "-c", folder / "conf", *user])
        try:
            deadline = time.monotonic() + 30
            while not listens(front):
                assert proxy.poll() is None and time.monotonic() < deadline, (folder / "errors").read_text()
                time.sleep(0.01)

            def ask(path: str, *options: str) -> tuple[str, bytes]:
                done = run(curl, "-sSf", "--unix-socket", front, "-D", "-", "-o", tmp_path / "out", *options,
                           f"http://host{path}")  # fmt: skip
                found = re.search(r"X-Cache: (\w+)", done.stdout)
                return (found[1] if found else ""), (tmp_path / "out").read_bytes()

            etag = requests.head(f"{server.http}/disk", timeout=60).headers["ETag"].strip('"')
            named = f"/disk?v={etag}"
            assert ask(named, "-r", "3000000-3999999") == ("MISS", disk[3_000_000:4_000_000])
            assert ask(named, "-r", "3100000-3100009") == ("HIT", disk[3_100_000:3_100_010])
            assert ask(named) == ("MISS", disk)
            for _ in range(2):  # what may change is asked for each time
                assert ask("/disk", "-r", "0-9") == ("MISS", disk[:10])
            assert ask("/snapshots/names/files/text") == ("MISS", b"a few words")
            assert ask("/snapshots/names/files/empty") == ("MISS", b"")  # what nginx asks for there is a range
            server.stop()
            assert ask(named) == ("HIT", disk)
            assert ask(named, "-r", "-99") == ("HIT", disk[-99:])
        finally:
            proxy.terminate()
            proxy.wait()
    errors = (folder / "errors").read_text()
    assert "[error]" not in errors and "[crit]" not in errors, errors


# A checker of resources

ROUTES = [
    "/", "/disk", "/memory", "/info", "/extents", "/snapshots", "/snap.hxz", "/snapshots/snap/disk",
    "/snapshots/snap/info", "/snapshots/snap/extents", "/snapshots/dir/files/", "/snapshots/dir/files/disk",
    "/disk?v={etag}", "/metrics", "/healthz", "/readyz", "/images/snap", "/images/snap/extents",
    "/nothing",
]  # fmt: skip


# What the daemon answers is the same on every interpreter; redbot's last release for Python 3.9 overlooks no-cache.
if sys.version_info >= (3, 10):

    def test_redbot_finds_nothing_wrong(snapshot_file: Path) -> None:
        need_module("redbot")
        with Server(snapshot_file, f"dir={CORPUS / '0.8.0-zstd-dir.hxz'}", "--http-port", 0) as server:
            etag = requests.head(f"{server.http}/disk", timeout=60).headers["ETag"].strip('"')
            urls = [server.http + route.format(etag=etag) for route in ROUTES]
            done = run(sys.executable, "-m", "tests.http.redbot_notes", *urls, cwd=ROOT, timeout=110)
        checked = [json.loads(line) for line in done.stdout.splitlines()]
        assert sorted(entry["url"] for entry in checked) == sorted(urls)
        for entry in checked:
            assert entry["status"] == (404 if entry["url"].endswith("/nothing") else 200)
            assert entry["notes"]
            assert [note for level, note in entry["notes"] if level not in ("GOOD", "INFO")] == [], entry["url"]


def test_large_answers_are_whole(tmp_path: Path) -> None:
    """An image several times the cache, in one answer and in a range longer than the clamp of others (32 MiB)."""
    from hexz.tools.pack import pack

    raw = tmp_path / "raw"
    chunk = samples.image(1 << 20, seed=9)
    with raw.open("wb") as file:
        for number in range(48):
            file.write(chunk[number:] + chunk[:number])
    pack(str(raw), str(tmp_path / "big.hxz"))
    expected = hashlib.sha256(raw.read_bytes())
    with Server(tmp_path / "big.hxz", "--http-port", 0, "--cache-size", "8M") as server:
        for options in ((), ("-r", "0-")):
            run(need("curl", "curl"), "-sSf", *options, "-o", tmp_path / "out", f"{server.http}/disk")
            assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == expected.digest()
