"""The daemons that are asked: their snapshots, their settings, and a subprocess for each."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import samples
from tests.corpus.talk import Place

HERE = Path(__file__).parent
FIXED_NS = 1_700_000_000 * 10**9
"""When each snapshot was last changed: entity tags and Last-Modified are made of it."""
TOKEN = "a-token-of-some-length"
ACCESS_KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
LIMITED_KEY, LIMITED_SECRET = "LIMITED", "a-secret-of-some-length"
FILES = {
    "snap": "0.7.0-zstd-disk+mem",
    "archive": "0.8.0-zstd-dir",
    "memonly": "0.7.0-lz4-memonly",
    "pages": "0.7.0-lz4-pages",
    "0.5.5-lz4-thin-base": "0.5.5-lz4-thin-base",
    "thin": "0.5.5-lz4-thin-child-grown-bs8192",
}
READY_S = 60.0


def write_snapshots(folder: Path) -> None:
    """Snapshots of releases, a large one packed here, and one with a damaged block, all with one time."""
    from hexz.tools.pack import pack

    folder.mkdir()
    for name, source in FILES.items():
        shutil.copyfile(HERE / f"{source}.hxz", folder / f"{name}.hxz")
    raw = folder / "big.raw"
    raw.write_bytes(samples.image((3 << 20) + 1536))
    raw.chmod(0o644)
    os.utime(raw, ns=(FIXED_NS, FIXED_NS))  # which the snapshot keeps, like the mode
    pack(str(raw), str(folder / "big.hxz"), workers=1)
    raw.unlink()
    data = bytearray((folder / "big.hxz").read_bytes())
    data[4096 + 100] ^= 0xFF
    (folder / "damaged.hxz").write_bytes(data)
    for path in folder.iterdir():
        os.utime(path, ns=(FIXED_NS, FIXED_NS))


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key, good for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    forms = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *forms))
    return certificate, private


def write_images(folder: Path) -> None:
    """Registrations of each kind that needs no other daemon, good and bad, and the files behind them."""
    images, files = folder / "images", folder / "files"
    images.mkdir(mode=0o755)
    files.mkdir(mode=0o755)
    (files / "disk.raw").write_bytes(samples.image(256 << 10, seed=7))
    (files / "secret.raw").write_bytes(bytes(65536))
    for image, fields in {
        "file": {"backend": "file", "file": str(files / "disk.raw")},
        "read-only": {"backend": "file", "file": str(files / "disk.raw"), "mode": "ro"},
        "tokened": {"backend": "file", "file": str(files / "secret.raw"), "token": "token-of-the-image"},
        "overlay": {"backend": "overlay", "file": str(files / "over"), "snapshot": "snap"},
        "hexz": {"backend": "hexz", "snapshot": "snap"},
        "ram": {"backend": "hexz", "snapshot": "snap", "stream": "memory"},
        "gone": {"backend": "hexz", "snapshot": "nothing"},
        "no-file": {"backend": "file", "file": str(files / "nothing.raw")},
        "outside": {"backend": "file", "file": "/etc/hostname"},
        "no-nbd": {"backend": "nbd", "socket": str(folder / "nothing.sock")},
        "bad": {"backend": "tape"},
    }.items():
        (images / image).write_text(json.dumps(fields))
        (images / image).chmod(0o600 if "token" in fields else 0o644)


class Daemon:
    """A checkout's ``hexz_serve.py`` in a process of its own, once it is ready."""

    def __init__(self, checkout: Path, python: str, folder: Path, name: str, *arguments: object) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        command = [python, str(checkout / "hexz_serve.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "TZ": "UTC"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environment)
        assert self.process.stdout is not None
        # The ready lines come in one write, once every listener answers.
        text = os.read(self.process.stdout.fileno(), 65536).decode()
        found = re.findall(r"listening (\w+)://[^/\s]*:(\d+)/", text)
        if not found:
            raise SystemExit(f"the daemon {name} of {checkout} did not start: {self.log.read_text().strip()}")
        self.places: dict[str, Place] = {scheme.rstrip("s"): ("127.0.0.1", int(port)) for scheme, port in found}

    def stop(self) -> int:
        """End it as systemd does; its status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(READY_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Running:
    """All daemons of one run; `places` by ``DAEMON.PROTOCOL``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[Daemon] = []
        self.places: dict[str, Place] = {}

    def add(self, daemon: Daemon, **more: Place) -> None:
        """One more."""
        self.daemons.append(daemon)
        for protocol, place in {**daemon.places, **more}.items():
            self.places[f"{daemon.name}.{protocol}"] = place

    @property
    def paths(self) -> dict[str, str]:
        """What this run's own paths are shown as."""
        return {str(self.folder): "<folder>"}


@contextlib.contextmanager
def running(checkout: Path, python: str = sys.executable) -> Iterator[Running]:
    """Start every daemon; stop them at the end, after which their logs are whole."""
    # Short and always as long: paths are in bodies, whose Content-Length is compared.
    with tempfile.TemporaryDirectory(prefix="hexz-corpus-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        snapshots = folder / "snapshots"
        write_snapshots(snapshots)
        write_images(folder)
        certificate, key = write_certificate(folder)
        (folder / "tokens").write_text(f"operator {TOKEN}\n")
        (folder / "keys").write_text(f"{ACCESS_KEY} {SECRET}\n{LIMITED_KEY} {LIMITED_SECRET} archive\n")
        for secret in (folder / "tokens", folder / "keys", key):
            secret.chmod(0o600)
        default = f"snap={snapshots / 'snap.hxz'}"
        every = [default, *sorted(path for path in snapshots.iterdir() if path.stem != "snap")]
        tls = ("--tls-cert", certificate, "--tls-key", key)
        ports = ("--http-port", 0, "--nbd-port", 0, "--s3-port", 0)
        images = ("--images-dir", folder / "images", "--images-allow", folder / "files")
        control = folder / "control.sock"
        runs = Running(folder)
        try:
            for daemon, *arguments in (
                ("open", *ports, *images, "--cors", "https://app.example", "--s3-domain", "s3.example",
                 "--host-name", "disks.example", "--access-log", folder / "open.access", *every),
                ("guarded", "--http-port", 0, "--s3-port", 0, *images, "--token-file", folder / "tokens",
                 "--s3-keys-file", folder / "keys", "--max-range", "16K", "--s3-domain", "s3.example",
                 "--access-log", folder / "guarded.access", *every),
                ("secret", "--http-port", 0, "--nbd-port", 0, *tls, "--nbd-pad", 512, *every),
                ("choice", "--nbd-port", 0, *tls, "--nbd-tls", "optional", *every),
                ("control", "--http-port", 0, "--control", control, "--id", "corpus", default),
            ):  # fmt: skip
                more = {"unix": str(control)} if daemon == "control" else {}
                runs.add(Daemon(checkout, python, folder, str(daemon), *arguments), **more)
            yield runs
        finally:
            for one in runs.daemons:
                if one.process.poll() is None:
                    one.stop()
