"""What the tests of the images API share: a server with registrations, and the NBD servers behind it."""

from __future__ import annotations

import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.peers import Server, listens, need, run

READY_S = 60.0


class House:
    """A daemon, its registrations in ``images`` and its files in ``files``, below one folder."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.images = folder / "images"
        self.files = folder / "files"
        self.images.mkdir(mode=0o755, exist_ok=True)
        self.files.mkdir(mode=0o755, exist_ok=True)
        self.server = Server("--images-dir", self.images, "--images-allow", self.files, "--http-port", 0, *arguments)
        where = urlsplit(self.server.urls.get("http") or self.server.urls["https"])
        self.base = f"{where.scheme}://{where.netloc}"
        assert where.hostname is not None and where.port is not None
        self.address = (where.hostname, where.port)

    def register(self, image_id: str, **keys: Any) -> str:
        """Register an image, or register it anew; its URL."""
        aside = self.images / f".{image_id}.new"
        aside.write_text(json.dumps(keys))
        aside.chmod(0o600 if keys.get("token") else 0o644)
        aside.rename(self.images / image_id)
        return self.url(image_id)

    def url(self, image_id: str) -> str:
        """Where an image is."""
        return f"{self.base}/images/{image_id}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and body, of a request for ``/images`` + `path` on a new connection."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, f"/images{path}", body, dict(headers or {}))
            answer = connection.getresponse()
            data = answer.read()
            # Where things lie on the server is nobody's business.
            assert answer.status < 400 or tempfile.gettempdir().encode() not in data, data
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, data
        finally:
            connection.close()

    def json(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON of an answer that is fine."""
        status, _, data = self.ask(method, path, body, headers)
        assert status == 200, (status, data)
        return json.loads(data)

    def extents(self, image_id: str, query: str = "") -> list[dict[str, Any]]:
        """The extents of an image, which have to tile it."""
        size = int(self.json("OPTIONS", f"/{image_id}")["size"])
        found: list[dict[str, Any]] = self.json("GET", f"/{image_id}/extents{query}")
        position = 0
        for extent in found:
            assert extent["start"] == position and extent["length"] > 0
            position += extent["length"]
        assert position == size
        return found

    def __enter__(self) -> House:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.server.__exit__(*raised)


class Peer:
    """An NBD server on a unix socket."""

    def __init__(self, socket: Path, *command: object) -> None:
        self.socket = socket
        self._command = [str(part) for part in command]
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens."""
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command)
        deadline = time.monotonic() + READY_S
        while not listens(self.socket):
            assert self.process.poll() is None and time.monotonic() < deadline, self._command
            time.sleep(0.005)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def qemu_nbd(socket: Path, image: Path, kind: str = "raw", *options: object) -> Peer:
    """A qemu-nbd of `image` as the export ``disk``."""
    program = need("qemu-nbd", "qemu-utils")
    return Peer(socket, program, "-t", "-e", 8, "-k", socket, "-f", kind, "-x", "disk", *options, image)


def nbdkit(socket: Path, *plugin: object) -> Peer:
    """An nbdkit with `plugin` and its parameters."""
    return Peer(socket, need("nbdkit", "nbdkit"), "-f", "-U", socket, *plugin)


def qcow2_with_bitmap(path: Path, raw: Path, *writes: str) -> None:
    """A qcow2 image of `raw` with the persistent dirty bitmap ``b0``, and qemu-io's `writes` after it began."""
    need("qemu-img", "qemu-utils")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    run("qemu-img", "bitmap", "--add", "-g", "65536", path, "b0")
    for write in writes:
        run("qemu-io", "-f", "qcow2", "-c", write, path)


def same(one: Path, other: Path, kinds: tuple[str, str] = ("raw", "raw")) -> None:
    """qemu-img finds the images identical."""
    run("qemu-img", "compare", "-f", kinds[0], "-F", kinds[1], one, other)
