"""HTTP ranges against nginx and the standard library's server: the same image, the same client, one run.

nginx serves the raw image as a static file with two workers, once with sendfile and tcp_nopush and once
without: sometimes one is faster and sometimes the other, and the better one counts.  The standard
library's handler is the shortest one that knows ranges.  The client is wrk with one thread; with two cores
for everything, a server has about one of them to itself.  Contenders take turns in every round, so
that what else the machine does falls on all of them; figures are medians.  Cold means that the
server was just started; the kernel has the files in memory for everybody.

What stands in the way where a goal is missed: one thread answers all small ranges, 13 us of CPU each, two
thirds of them the kernel's, where nginx has two workers that need as much.  A mebibyte is copied to the
kernel (170 us and more), where sendfile only points at it.  In a cold GET the check of each block's CRC
costs about as much as its decompression by lz4, and whoever receives needs a core as well.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hexz.tools.pack import pack
from tests.benchmarks.others import free_port, running
from tests.benchmarks.reader import CACHE_BYTES, IMAGE_BYTES, bare, image, stored_blocks, verified
from tests.benchmarks.report import Row
from tests.peers import Server

BLOCK_BYTES = 64 << 10
SECONDS = 1
ROUNDS = 5
START_S = 10.0
NEEDED = {"nginx": "nginx-light", "wrk": "wrk", "curl": "curl"}

WORKS = [
    # bytes, connections, goal against nginx
    (4 << 10, 1, 0.9),
    (4 << 10, 16, 0.6),
    (64 << 10, 16, 1.0),
    (1 << 20, 16, 1.0),
]
STOCK_GOAL = 3.0
COLD_GOAL = 1.5

SCRIPT = """
local size, length = {size}, {length}
local asked, number = {{}}, 0
init = function(args)
  math.randomseed({seed})
  for n = 1, 4096 do
    local start = math.random(0, math.floor(size / length) - 1) * length
    local headers = {{ Host = wrk.headers["Host"], Range = "bytes=" .. start .. "-" .. (start + length - 1) }}
    asked[n] = wrk.format("GET", nil, headers)
  end
end
request = function()
  number = number % 4096 + 1
  return asked[number]
end
"""

NGINX = """
daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{
  access_log off; {sending}; keepalive_requests 1000000000; open_file_cache max=10;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location = /disk {{ alias {raw}; }} }}
}}
"""

STOCK = """
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        with open(sys.argv[2], "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last = map(int, re.match(r"bytes=(\\d+)-(\\d+)", self.headers["Range"]).groups())
            file.seek(first)
            data = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@contextmanager
def nginx(raw: Path, folder: Path, sending: str = "sendfile on; tcp_nopush on") -> Iterator[str]:
    """nginx with the raw image."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    (folder / "conf").write_text(NGINX.format(folder=folder, port=port, raw=raw, sending=sending))
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    with running(["nginx", "-p", folder, "-e", folder / "errors", "-c", folder / "conf", *user], port, START_S):
        yield f"http://127.0.0.1:{port}/disk"


@contextmanager
def stock(raw: Path, folder: Path) -> Iterator[str]:
    """The standard library's server with the raw image."""
    port = free_port()
    (folder / "stock.py").write_text(STOCK)
    with running([sys.executable, folder / "stock.py", port, raw], port, START_S):
        yield f"http://127.0.0.1:{port}/disk"


@contextmanager
def ours(packed: Path, cache: str) -> Iterator[str]:
    """The daemon with the packed image, as a user starts it."""
    with Server(packed, "--http-port", 0, "--cache-size", cache, "--log-level", "error") as server:
        yield f"{server.http}/disk"


def wrk(url: str, script: Path, connections: int, seconds: float) -> float:
    """Requests a second; every answer was 206."""
    out = _run("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, url)
    found = re.search(r"Requests/sec: +([0-9.]+)", out)
    if found is None or "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"wrk with {url}: {out}")
    return float(found[1])


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout


def fetch(url: str) -> float:
    """Bytes a second of a full GET."""
    out = _run("curl", "-sSf", "-o", os.devnull, "-w", "%{size_download} %{time_total}", url)
    size, took = map(float, out.split())
    return size / took


def cached_rows(raw: Path, packed: Path, folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Ranges of what is in memory: ours decompressed in its cache, theirs in the page cache."""
    samples: dict[tuple[int, int], dict[str, list[float]]] = {work[:2]: {} for work in WORKS}
    with ExitStack() as stack:
        urls = {
            "hexz lz4": stack.enter_context(ours(packed, "1G")),
            "nginx": stack.enter_context(nginx(raw, folder / "n")),
            "nginx, no sendfile": stack.enter_context(nginx(raw, folder / "m", "sendfile off")),
            "http.server": stack.enter_context(stock(raw, folder)),
        }
        fetch(urls["hexz lz4"])
        for turn in range(rounds):
            for length, connections, _ in WORKS:
                script = folder / "ranges.lua"
                script.write_text(SCRIPT.format(size=raw.stat().st_size, length=length, seed=turn))
                for name, url in urls.items():
                    figure = wrk(url, script, connections, seconds)
                    samples[length, connections].setdefault(name, []).append(figure)
    rows = []
    for length, connections, goal in WORKS:
        figures = {name: statistics.median(values) for name, values in samples[length, connections].items()}
        work = f"cached {length >> 10} KiB ranges, {connections} at once"
        best = max(("nginx", "nginx, no sendfile"), key=lambda peer: figures[peer])
        for peer, to_reach in ((best, goal), ("http.server", STOCK_GOAL)):
            rows.append(Row(work, "answers/s", figures, figures["hexz lz4"] / figures[peer], to_reach, peer))
    return rows


def cold_rows(raw: Path, packed: Path, folder: Path, rounds: int) -> list[Row]:
    """A full GET from a server just started, against one core that does nothing but decompress the same blocks.

    Both keep as many decompressed bytes.  «verified» reads the blocks from the file and checks their CRC too, as
    every server must; nginx sends the raw image as it is, which is the most that the wire and the client can take.
    """
    places = stored_blocks(packed)
    data = packed.read_bytes()
    blocks = [data[offset : offset + length] for offset, length in places]
    samples: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        samples.setdefault(name, []).append(IMAGE_BYTES / 1e6 / (time.perf_counter() - began))

    with nginx(raw, folder / "n") as raw_url:
        for _ in range(rounds):
            with ours(packed, str(CACHE_BYTES)) as url:
                samples.setdefault("hexz lz4", []).append(fetch(url) / 1e6)
            timed("codec", lambda: bare("lz4", blocks))
            timed("verified", lambda: verified("lz4", packed, places))
            samples.setdefault("nginx, raw", []).append(fetch(raw_url) / 1e6)
    figures = {name: statistics.median(values) for name, values in samples.items()}
    return [
        Row("cold full GET", "MB/s", figures, figures["hexz lz4"] / figures[peer], goal, f"{peer}, one core")
        for peer, goal in (("codec", COLD_GOAL), ("verified", 0))
    ]


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> list[Row]:
    """All rows."""
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is missing: install the Debian package {package}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, packed = folder / "raw", folder / "image.hxz"
        image(raw)
        pack(str(raw), str(packed), compression="lz4", block_size=BLOCK_BYTES)
        return [*cached_rows(raw, packed, folder, rounds, seconds), *cold_rows(raw, packed, folder, rounds)]
