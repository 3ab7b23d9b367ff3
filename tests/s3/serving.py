"""An S3 endpoint inside the test, and archives with any names in them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from hexz.catalog import Catalog
from hexz.rights.exposure import Grant
from hexz.servers.http.access import Gate, parse_rate_limit
from hexz.servers.s3.access import KeyFile, S3Policy
from hexz.servers.s3.answers import RULES
from hexz.servers.s3.application import S3Application
from hexz.snapshot import new_context
from tests.crafted import Craft
from tests.http.serving import Reply, Serving, serving
from tests.peers import write_secret

ACCESS_KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
LIMITED_KEY, LIMITED_SECRET = "LIMITED", "a-secret-of-some-length"
REGION = "us-east-1"


class Endpoint(NamedTuple):
    """Where a daemon serves S3: a URL without the last slash."""

    url: str

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.url.rpartition(":")[2])


def write_keys(folder: Path) -> Path:
    """A keys file: one key for everything, one for the bucket "dir" alone."""
    path = folder / "keys"
    write_secret(path, f"{ACCESS_KEY} {SECRET}  # all\n\n# a comment\n{LIMITED_KEY} {LIMITED_SECRET} dir\n")
    return path


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    """A folder archive with these files."""
    craft = Craft("C52")
    listed = []
    for name, data in files.items():
        offset = sum(int(item["size"]) for item in listed)
        listed.append({"path": name, "offset": offset, "size": len(data)})
        if data:
            craft.data(data)
    craft.page()
    craft.metadata = json.dumps({"files": listed}).encode()
    return craft.write(path)


@contextlib.contextmanager
def serving_s3(
    snapshots: dict[str, Path],
    keys: KeyFile | None = None,
    anonymous: bool = True,
    domains: tuple[str, ...] = (),
    limit: str = "0",
    **settings: Any,
) -> Iterator[Serving]:
    """A server in this process."""
    catalog = Catalog(new_context(64 << 20))
    for name, path in snapshots.items():
        catalog.add(name, str(path))
    policy = S3Policy(Gate(None, parse_rate_limit(limit)), keys)
    settings = {"gate": policy, "rules": RULES, "grant": Grant(anonymous), **settings}
    with serving({}, application=S3Application(catalog, keys, domains), **settings) as server:
        server.catalog = catalog
        server.policy = policy  # type: ignore[attr-defined]
        yield server


def error_of(reply: Reply) -> dict[str, str]:
    """The elements of an error's document."""
    assert reply.headers["content-type"] == "application/xml"
    root = ElementTree.fromstring(reply.body)
    assert root.tag == "Error"
    found = {element.tag: element.text or "" for element in root}
    assert found["RequestId"] == reply.headers["x-amz-request-id"]
    assert found["HostId"] == reply.headers["x-amz-id-2"]
    return found
