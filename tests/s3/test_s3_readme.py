"""What the README says about S3 works when pasted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.peers import ROOT, Server, need


def test_pasted(disk_image: Path, snapshot_file: Path, tmp_path: Path) -> None:
    need("aws", "awscli")
    need("curl", "curl")
    need("openssl", "openssl")
    section = (ROOT / "README.md").read_text().partition("\n## S3\n")[2].partition("\n## ")[0]
    script = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    program = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    shutil.copy(disk_image, tmp_path / "disk.raw")
    before, command, after = re.split(r"(python3 hexz_serve\.py [^\n]*&)\n", script)
    assert command == "python3 hexz_serve.py snap.hxz --s3 --s3-keys-file s3.keys &"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(text: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=tmp_path,
            env=environment,
            timeout=100,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(before)
    assert (tmp_path / "s3.keys").stat().st_mode & 0o777 == 0o600
    with Server("--s3-port", 0, "--s3-keys-file", tmp_path / "s3.keys", snapshot_file) as server:
        url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        assert "http://127.0.0.1:9000" in script
        assert "http://127.0.0.1:9000" in program
        (tmp_path / "program.py").write_text(program.replace("http://127.0.0.1:9000", url))
        pasted = after.replace("http://127.0.0.1:9000", url)
        told = run(f"{pasted}{sys.executable} program.py")
    assert told.count("identical\n") == 2
    assert "snap.hxz" in told
    for copy in ("copy.raw", "copy2.raw"):
        assert (tmp_path / copy).read_bytes() == disk_image.read_bytes()
