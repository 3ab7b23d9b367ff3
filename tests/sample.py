"""``make run``: pack a small sample image, serve it over HTTP and NBD on loopback, say how to read it back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hexz.tools.pack import pack  # noqa: E402
from tests import samples  # noqa: E402

FOLDER = ROOT / "build" / "sample"
TOUR = """
Read it back, from another shell (apt install curl xxd libnbd-bin file qemu-utils):

  curl -s {http}info
  curl -s -r 0-15 {http}disk | xxd
  curl -s {http}disk | cmp - {raw} && echo identical
  nbdinfo {nbd}
  nbdcopy {nbd} /tmp/sample.raw && cmp /tmp/sample.raw {raw} && echo identical
  qemu-img info {nbd}

Ctrl-C stops it.
"""
PORT_TAKEN = 69
"""The daemon's exit status when it cannot listen."""


def main() -> int:
    """Pack, serve, wait for the daemon to end."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    raw, packed = FOLDER / "sample.raw", FOLDER / "sample.hxz"
    raw.write_bytes(samples.image(32 << 20))
    result = pack(str(raw), str(packed))
    print(f"packed {result.image_bytes} bytes into {result.file_bytes}: {packed}")
    ports = sys.argv[1:] or ["--http", "--nbd"]
    command = [sys.executable, str(ROOT / "hexz_serve.py"), *ports, str(packed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        urls: dict[str, str] = {}
        try:
            for line in daemon.stdout:
                print(line, end="")
                found = re.match(r"listening ((\w+)://\S+)", line)
                if found:
                    urls[found[2]] = found[1]
                if len(urls) == 2:
                    print(TOUR.format(http=urls["http"], nbd=f"{urls['nbd']}sample", raw=raw), flush=True)
                    urls.clear()
            status = daemon.wait()
            if status == PORT_TAKEN:
                print('on free ports: make run PORTS="--http-port 0 --nbd-port 0"', file=sys.stderr)
            return status
        except KeyboardInterrupt:
            daemon.wait()
            return 0


if __name__ == "__main__":
    sys.exit(main())
