"""An S3 endpoint inside the test."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ACCESS_KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
LIMITED_KEY, LIMITED_SECRET = "LIMITED", "a-secret-of-some-length"
REGION = "us-east-1"


def write_keys(folder: Path) -> Path:
    """A keys file: one key for everything, one for the bucket "dir" alone."""
    path = folder / "keys"
    path.write_text(f"{ACCESS_KEY} {SECRET}  # all\n\n# a comment\n{LIMITED_KEY} {LIMITED_SECRET} dir\n")
    return path


class Endpoint(NamedTuple):
    """Where a daemon serves S3: a URL without the last slash."""

    url: str

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.url.rpartition(":")[2])
