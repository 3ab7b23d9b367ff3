"""Each operation over a socket: what it answers, byte for byte where that matters."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import pytest

from hexz.format.metadata import MAX_METADATA
from hexz.protocol.s3.keys import bucket_of
from tests.crafted import Craft
from tests.http.serving import Client, Reply, Serving, request
from tests.s3.serving import error_of, serving_s3, write_archive

NAMES = {
    "a b+c%d&e<f>.txt": b"odd",
    "\u00fcml\u00e4ut/\u65e5\u672c.bin": b"far",
    "\U0001f600": b"smile",
    "empty": b"",
    "page.html": b"<script>",
    "sub/one": b"1",
    "sub/two": b"22",
    "sub/deeper/three": b"333",
    "tab\there": b"t",
}
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@pytest.fixture(scope="module")
def server(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    archive = write_archive(tmp_path_factory.mktemp("archive") / "names.hxz", NAMES)
    snapshots = {"snap": snapshot_file, "names": archive, "An odd_name": snapshot_file}
    with serving_s3(snapshots, domains=("s3.example",)) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[Client]:
    with server.client() as connected:
        yield connected


def listing(client: Client, bucket: str, **query: Any) -> ElementTree.Element:
    text = "&".join(f"{name.replace('_', '-')}={quote(str(value), safe='')}" for name, value in query.items())
    reply = client.ask("GET", f"/{bucket}?{text}")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/xml"), reply.body
    root = ElementTree.fromstring(reply.body)
    assert root.tag == f"{NAMESPACE}ListBucketResult"
    return root


def texts(root: ElementTree.Element, path: str) -> list[str]:
    return [element.text or "" for element in root.findall("/".join(NAMESPACE + tag for tag in path.split("/")))]


def field(root: ElementTree.Element, tag: str) -> str | None:
    found = root.find(NAMESPACE + tag)
    return None if found is None else found.text or ""


def all_keys(name: str) -> list[str]:
    return sorted([*(f"files/{path}" for path in NAMES), "disk", "info.json", f"{name}.hxz"], key=str.encode)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_paging_visits_every_key_once(client: Client, version: int, limit: int) -> None:
    found: list[str] = []
    query: dict[str, Any] = {"max_keys": limit, "encoding_type": "url", **({"list_type": 2} if version == 2 else {})}
    while True:
        root = listing(client, "names", **query)
        page = [unquote(key) for key in texts(root, "Contents/Key")]
        found += page
        if version == 2:
            assert field(root, "KeyCount") == str(len(page))
        if field(root, "IsTruncated") == "false":
            break
        assert len(page) == limit
        if version == 2:
            query["continuation_token"] = field(root, "NextContinuationToken")
        else:
            query["marker"] = page[-1]
    assert found == all_keys("names")


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_delimiters(client: Client, limit: int) -> None:
    for version, start, after in ((1, "marker", "NextMarker"), (2, "continuation_token", "NextContinuationToken")):
        keys: list[str] = []
        prefixes: list[str] = []
        query: dict[str, Any] = {"prefix": "files/sub/", "delimiter": "/", "max_keys": limit, "list_type": version}
        if version == 1:
            del query["list_type"]
        while True:
            root = listing(client, "names", **query)
            keys += texts(root, "Contents/Key")
            prefixes += texts(root, "CommonPrefixes/Prefix")
            assert (field(root, "Prefix"), field(root, "Delimiter")) == ("files/sub/", "/")
            if field(root, "IsTruncated") == "false":
                break
            query[start] = field(root, after)
        assert (keys, prefixes) == (["files/sub/one", "files/sub/two"], ["files/sub/deeper/"])


def test_what_a_listing_tells(client: Client, snapshot_file: Path) -> None:
    root = listing(client, "snap", list_type=2, start_after="info.json", fetch_owner="true", prefix="", delimiter="")
    assert texts(root, "Contents/Key") == ["memory", "snap.hxz"]
    assert [field(root, tag) for tag in ("Name", "Prefix", "StartAfter", "KeyCount", "MaxKeys", "IsTruncated")] == [
        "snap", "", "info.json", "2", "1000", "false"
    ]  # fmt: skip
    assert field(root, "Delimiter") is field(root, "EncodingType") is None
    assert len(texts(root, "Contents/Owner/ID")) == 2
    assert texts(root, "Contents/StorageClass") == ["STANDARD", "STANDARD"]
    head = client.ask("GET", "/snap/snap.hxz")
    assert texts(root, "Contents/ETag")[1] == head.headers["etag"]
    assert texts(root, "Contents/Size")[1] == str(snapshot_file.stat().st_size) == head.headers["content-length"]
    assert not texts(listing(client, "snap", list_type=2), "Contents/Owner/ID")
    assert texts(listing(client, "snap"), "Contents/Owner/ID")


def test_encoded_and_not(client: Client) -> None:
    odd = "files/a b+c%d&e<f>.txt"
    plain = listing(client, "names", prefix=odd)
    assert texts(plain, "Contents/Key") == [field(plain, "Prefix")] == [odd]
    encoded = listing(client, "names", prefix=odd, encoding_type="url", delimiter="%", marker="a b")
    assert field(encoded, "Prefix") == quote(odd)
    assert field(encoded, "Delimiter") == "%25"
    assert field(encoded, "Marker") == "a%20b"
    assert texts(encoded, "Contents/Key") == [quote(odd)]
    by_percent = listing(client, "names", prefix="files/a", encoding_type="url", delimiter="%")
    assert texts(by_percent, "CommonPrefixes/Prefix") == ["files/a%20b%2Bc%25"]


def test_every_odd_name_can_be_read(client: Client) -> None:
    for name, data in NAMES.items():
        reply = client.ask("GET", f"/names/{quote('files/' + name)}")
        assert (reply.status, reply.body) == (200, data), name
    page = client.ask("GET", "/names/files/page.html")
    assert page.headers["content-type"] == "text/html"
    assert page.headers["content-security-policy"] == "sandbox"


def test_buckets(client: Client, server: Serving) -> None:
    reply = client.ask("GET", "/")
    root = ElementTree.fromstring(reply.body)
    odd = bucket_of("An odd_name")
    assert texts(root, "Buckets/Bucket/Name") == sorted(["snap", "names", odd])
    page = ElementTree.fromstring(client.ask("GET", "/?max-buckets=1&prefix=n").body)
    assert texts(page, "Buckets/Bucket/Name") == ["names"]
    first = ElementTree.fromstring(client.ask("GET", "/?max-buckets=2").body)
    token = field(first, "ContinuationToken")
    second = ElementTree.fromstring(client.ask("GET", f"/?max-buckets=2&continuation-token={token}").body)
    both = texts(first, "Buckets/Bucket/Name") + texts(second, "Buckets/Bucket/Name")
    assert both == texts(root, "Buckets/Bucket/Name")
    assert field(second, "ContinuationToken") is None
    for name in (odd, "An%20odd_name"):
        assert client.ask("HEAD", f"/{name}").status == 200
        assert client.ask("GET", f"/{name}/An%20odd_name.hxz").status == 200
    head = client.ask("HEAD", "/snap")
    assert head.headers["x-amz-bucket-region"] == "us-east-1"
    assert head.headers["x-amz-request-id"] != reply.headers["x-amz-request-id"]


def test_snapshots_come_and_go(server: Serving, client: Client, snapshot_file: Path) -> None:
    server.catalog.add("later", str(snapshot_file))
    assert client.ask("HEAD", "/later/disk").status == 200
    server.catalog.remove("later")
    assert error_of(client.ask("GET", "/later/disk"))["Code"] == "NoSuchBucket"


DOCUMENTS = [
    ("/snap?location", "LocationConstraint"),
    ("/snap/?location=", "LocationConstraint"),
    ("/snap?versioning", "VersioningConfiguration"),
    ("/snap?acl", "AccessControlPolicy"),
    ("/snap?logging", "BucketLoggingStatus"),
    ("/snap?notification", "NotificationConfiguration"),
    ("/snap?requestPayment", "RequestPaymentConfiguration"),
    ("/snap?accelerate", "AccelerateConfiguration"),
    ("/snap?uploads", "ListMultipartUploadsResult"),
    ("/snap/disk?acl", "AccessControlPolicy"),
    ("/snap/disk?tagging", "Tagging"),
    ("/snap?x-id=ListObjects", "ListBucketResult"),
]


@pytest.mark.parametrize(("target", "root"), DOCUMENTS)
def test_small_reads(client: Client, target: str, root: str) -> None:
    reply = client.ask("GET", target)
    assert reply.status == 200
    assert ElementTree.fromstring(reply.body).tag == NAMESPACE + root


REFUSED = [
    ("GET", "/nothing", 404, "NoSuchBucket"),
    ("GET", "/nothing/disk", 404, "NoSuchBucket"),
    ("GET", "/snap/nothing", 404, "NoSuchKey"),
    ("GET", "/snap/files/a", 404, "NoSuchKey"),
    ("GET", "/snap/disk/", 404, "NoSuchKey"),
    ("GET", "/snap//disk", 404, "NoSuchKey"),
    ("GET", "/snap/../names/disk", 404, "NoSuchKey"),
    ("GET", "//disk", 400, "InvalidURI"),
    ("GET", "/snap/%ff", 400, "InvalidURI"),
    ("GET", f"/snap/{'k' * 1025}", 400, "InvalidURI"),
    ("GET", "/snap?policy", 404, "NoSuchBucketPolicy"),
    ("GET", "/snap?cors", 404, "NoSuchCORSConfiguration"),
    ("GET", "/snap?tagging", 404, "NoSuchTagSet"),
    ("GET", "/snap?encryption", 404, "ServerSideEncryptionConfigurationNotFoundError"),
    ("GET", "/snap?object-lock", 404, "ObjectLockConfigurationNotFoundError"),
    ("GET", "/snap?lifecycle", 404, "NoSuchLifecycleConfiguration"),
    ("GET", "/snap?website", 404, "NoSuchWebsiteConfiguration"),
    ("GET", "/snap?replication", 404, "ReplicationConfigurationNotFoundError"),
    ("GET", "/snap?publicAccessBlock", 404, "NoSuchPublicAccessBlockConfiguration"),
    ("GET", "/snap?ownershipControls", 404, "OwnershipControlsNotFoundError"),
    ("GET", "/snap?versions", 501, "NotImplemented"),
    ("GET", "/snap?inventory", 501, "NotImplemented"),
    ("GET", "/snap/disk?torrent", 501, "NotImplemented"),
    ("GET", "/snap/disk?retention", 404, "NoSuchObjectLockConfiguration"),
    ("GET", "/snap/disk?uploadId=x", 404, "NoSuchUpload"),
    ("GET", "/snap/disk?versionId=x", 404, "NoSuchVersion"),
    ("GET", "/snap?max-keys=-1", 400, "InvalidArgument"),
    ("GET", "/snap?max-keys=x", 400, "InvalidArgument"),
    ("GET", "/snap?max-keys=99999999999", 400, "InvalidArgument"),
    ("GET", "/snap?encoding-type=x", 400, "InvalidArgument"),
    ("GET", "/snap?list-type=3", 400, "InvalidArgument"),
    ("GET", "/snap?prefix=%ff", 400, "InvalidArgument"),
    ("GET", "/snap?list-type=2&continuation-token=%21", 400, "InvalidArgument"),
    ("GET", "/snap?list-type=2&continuation-token=Mg==", 400, "InvalidArgument"),
    ("GET", f"/snap?list-type=2&continuation-token={'Q' * 8000}", 400, "InvalidArgument"),
    ("GET", "/snap/disk?partNumber=2", 416, "InvalidPartNumber"),
    ("GET", "/snap/disk?partNumber=0", 400, "InvalidArgument"),
    ("GET", "/snap/disk?partNumber=x", 400, "InvalidArgument"),
    ("GET", "/snap/disk?attributes", 400, "InvalidArgument"),
    ("GET", "/snap/disk?response-content-type=text/plain", 400, "InvalidRequest"),
    ("PUT", "/snap/disk", 405, "MethodNotAllowed"),
    ("PUT", "/new", 405, "MethodNotAllowed"),
    ("DELETE", "/snap/disk", 405, "MethodNotAllowed"),
    ("DELETE", "/snap", 405, "MethodNotAllowed"),
    ("POST", "/snap?delete", 405, "MethodNotAllowed"),
    ("POST", "/snap/disk?uploads", 405, "MethodNotAllowed"),
]


def test_refusals(client: Client) -> None:
    for method, target, status, code in REFUSED:
        reply = client.ask(method, target)
        error = error_of(reply)
        assert (reply.status, error["Code"]) == (status, code), target
        assert error["Resource"] == target.partition("?")[0]
        if status == 405:
            assert reply.headers["allow"] == "GET, HEAD" and "read-only" in error["Message"]
        if method == "GET" and "?" not in target:
            head = client.ask("HEAD", target)  # without a body, and the connection goes on
            assert (head.status, head.body) == (status, b"")


def test_ranges(client: Client, disk: bytes) -> None:
    size = len(disk)
    table = {
        "bytes=0-0": (206, 0, 1),
        "bytes=4095-70000": (206, 4095, 65906),
        f"bytes={size - 1}-": (206, size - 1, 1),
        "bytes=-5": (206, size - 5, 5),
        f"bytes=0-{size + 10}": (206, 0, size),
        "bytes=0-1,5-6": (200, 0, size),  # several ranges count as none
        "bytes=5-1": (200, 0, size),
        "lines=1-2": (200, 0, size),
    }
    for value, (status, start, length) in table.items():
        for method in ("GET", "HEAD"):
            reply = client.ask(method, "/snap/disk", {"Range": value})
            assert (reply.status, reply.headers["content-length"]) == (status, str(length)), value
            if status == 206:
                assert reply.headers["content-range"] == f"bytes {start}-{start + length - 1}/{size}"
            assert reply.body == (disk[start : start + length] if method == "GET" else b"")
    assert error_of(client.ask("GET", "/names/files/empty", {"Range": "bytes=0-"}))["Code"] == "InvalidRange"
    reply = client.ask("GET", "/snap/disk", {"Range": f"bytes={size}-"})
    error = error_of(reply)
    assert (reply.status, error["Code"], error["ActualObjectSize"]) == (416, "InvalidRange", str(size))
    assert error["RangeRequested"] == f"bytes={size}-"
    assert reply.headers["content-range"] == f"bytes */{size}"


def test_a_head_is_no_answer_to_a_head_with_another_range(client: Client, disk: bytes) -> None:
    """The connection remembers what it answered, to answer it again quickly."""
    for method, start in (("HEAD", 0), ("HEAD", 5), ("GET", 7), ("GET", 9), ("HEAD", 9), ("GET", 11), ("GET", 12)):
        reply = client.ask(method, "/snap/disk", {"Range": f"bytes={start}-{start + 99}"})
        assert (reply.status, reply.headers["content-length"]) == (206, "100")
        assert reply.body == (disk[start : start + 100] if method == "GET" else b"")


def test_conditions(client: Client) -> None:
    head = client.ask("HEAD", "/snap/disk").headers
    etag, modified = head["etag"], head["last-modified"]
    assert etag.endswith('-1"')  # nobody takes it for an MD5
    long_ago = "Sat, 01 Jan 2000 00:00:00 GMT"
    table: list[tuple[dict[str, str], int]] = [
        ({"If-Match": etag}, 200),
        ({"If-Match": etag.strip('"')}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": etag.strip('"')}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": long_ago}, 200),
        ({"If-Unmodified-Since": modified}, 200),
        ({"If-Unmodified-Since": long_ago}, 412),
        ({"If-Match": etag, "If-Unmodified-Since": long_ago}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": modified}, 200),
        ({"If-None-Match": etag, "If-Modified-Since": long_ago}, 304),
    ]
    for headers, status in table:
        for method in ("HEAD", "GET"):
            reply = client.ask(method, "/snap/disk", headers)
            assert reply.status == status, headers
            if status == 304:
                assert reply.headers["etag"] == etag
            if status == 412 and method == "GET":
                error = error_of(reply)
                assert error["Code"] == "PreconditionFailed"
                assert error["Condition"] in headers


def test_parts_attributes_overrides(client: Client, disk: bytes) -> None:
    whole = client.ask("GET", "/snap/disk?partNumber=1")
    assert (whole.status, whole.headers["x-amz-mp-parts-count"], whole.body == disk) == (206, "1", True)
    assert client.ask("GET", "/names/files/empty?partNumber=1").status == 200
    both = client.ask("GET", "/snap/disk?partNumber=1", {"Range": "bytes=0-1"})
    assert error_of(both)["Code"] == "InvalidRequest"
    wanted = {"X-Amz-Object-Attributes": "ETag,ObjectSize,Checksum"}
    told = client.ask("GET", "/snap/disk?attributes", wanted)
    assert told.headers["last-modified"] == whole.headers["last-modified"]
    root = ElementTree.fromstring(told.body)
    tags = {element.tag.removeprefix(NAMESPACE): element.text for element in root}
    assert tags == {"ETag": whole.headers["etag"].strip('"'), "ObjectSize": str(len(disk))}
    # Here nobody has keys, so a signature cannot be wrong.
    signed = {"Authorization": "AWS4-HMAC-SHA256 anything"}
    query = "response-content-type=text/plain&response-content-disposition=attachment%3B%20filename%3D%22x%22"
    headers = client.ask("HEAD", f"/snap/info.json?{query}&response-expires=never", signed).headers
    assert [headers[name] for name in ("content-type", "content-disposition", "expires")] == [
        "text/plain", 'attachment; filename="x"', "never"
    ]  # fmt: skip
    for value in ("a%0d%0aX-Injected:%201", "%e6%97%a5", "%00"):
        reply = client.ask("GET", f"/snap/disk?response-content-language={value}", signed)
        assert error_of(reply)["Code"] == "InvalidArgument"


def test_facts(client: Client, snapshot_file: Path) -> None:
    reply = client.ask("GET", "/snap/info.json")
    facts = json.loads(reply.body)
    assert facts["name"] == "snap"
    assert str(snapshot_file.parent) not in reply.body.decode()
    again = client.ask("GET", "/snap/info.json", {"If-None-Match": reply.headers["etag"]})
    assert again.status == 304


def test_virtual_hosts(client: Client, disk: bytes) -> None:
    for host in ("snap.s3.example", "snap.s3.example:9000", "SNAP.S3.Example"):
        reply = client.ask("GET", "/disk", {"Host": host, "Range": "bytes=3-9"})
        assert reply.body == disk[3:10]
        assert client.ask("HEAD", "/", {"Host": host}).headers["x-amz-bucket-region"]
    assert client.ask("GET", "/snap/disk", {"Host": "s3.example", "Range": "bytes=3-9"}).body == disk[3:10]
    assert client.ask("GET", "/snap/disk", {"Host": "snap.other.example"}).status == 200
    assert error_of(client.ask("GET", "/disk", {"Host": "no.s3.example"}))["Code"] == "NoSuchBucket"


def test_bodies_of_refused_writes(server: Serving) -> None:
    with server.client() as client:
        body = bytes(600_000)
        reply = client.ask("PUT", "/snap/disk", {"Content-Length": str(len(body))}, body)
        assert error_of(reply)["Code"] == "MethodNotAllowed"
        assert client.ask("HEAD", "/snap/disk").status == 200  # the connection goes on behind the body
        chunked = b"5\r\nhello\r\n0\r\n\r\n"
        assert client.ask("POST", "/snap", {"Transfer-Encoding": "chunked"}, chunked).status == 405
        assert client.ask("HEAD", "/snap/disk").status == 200
    with server.client() as client:  # who waits to be told to go on is told at once that it is in vain
        client.send(request("PUT", "/snap/disk", {"Content-Length": "1000000000", "Expect": "100-continue"}))
        assert client.receive().status == 405
        assert client.ended()
    with server.client() as client:
        read_with_body = client.ask("GET", "/snap/disk", {"Content-Length": "3"}, b"abc")
        assert error_of(read_with_body)["Code"] == "InvalidRequest"
        digest = client.ask("GET", "/snap/disk", {"x-amz-content-sha256": "0" * 64})
        assert error_of(digest)["Code"] == "XAmzContentSHA256Mismatch"


def test_requests_that_are_none(server: Serving) -> None:
    for raw, status, code in (
        (b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 501, "NotImplemented"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "InvalidRequest"),
        (b"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidRequest"),
        (b"GET /" + b"k" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, "InvalidURI"),
        (b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400, "InvalidRequest"),
    ):
        with server.client() as client:
            client.send(raw)
            reply = client.receive()
            assert (reply.status, error_of(reply)["Code"]) == (status, code)


def test_pages_may_ask(snapshot_file: Path) -> None:
    asks = {"Origin": "http://page.example", "Access-Control-Request-Method": "GET"}
    with serving_s3({"snap": snapshot_file}, cors="*") as server, server.client() as client:
        before = client.ask("OPTIONS", "/snap/disk", {**asks, "Access-Control-Request-Headers": "x-amz-date"})
        assert before.status == 204
        accepted = {name.strip().lower() for name in before.headers["access-control-allow-headers"].split(",")}
        assert accepted >= {"authorization", "range", "x-amz-content-sha256", "x-amz-date", "amz-sdk-request"}
        reply = client.ask("HEAD", "/snap/disk", {"Origin": "http://page.example"})
        assert reply.headers["access-control-allow-origin"] == "*"


def test_rate_limit(snapshot_file: Path) -> None:
    with serving_s3({"snap": snapshot_file}, limit="2") as server, server.client() as client:
        replies: list[Reply] = [client.ask("GET", "/snap/info.json") for _ in range(12)]
        slow = next(reply for reply in replies if reply.status != 200)
        assert (slow.status, error_of(slow)["Code"]) == (503, "SlowDown")
        assert int(slow.headers["retry-after"]) >= 1


def test_damage_is_an_error_and_nothing_else(snapshot_file: Path, tmp_path: Path) -> None:
    data = bytearray(snapshot_file.read_bytes())
    data[5000] ^= 1
    broken = tmp_path / "broken.hxz"
    broken.write_bytes(data)
    with serving_s3({"broken": broken}) as server, server.client() as client:
        assert client.ask("GET", "/broken?list-type=2").status == 200
        error = error_of(client.ask("GET", "/broken/disk"))
        assert (error["Code"], error["Message"]) == ("InternalError", "the disk block at 0 is damaged")
        assert client.ask("GET", "/broken/broken.hxz").body == bytes(data)


def test_streams_need_no_list_of_files(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"x" * 100)
    craft.page()
    craft.metadata_place = 4096, MAX_METADATA + 1
    path = craft.write(tmp_path / "many.hxz")
    os.truncate(path, 1 << 32)
    with serving_s3({"many": path}) as server, server.client() as client:
        assert client.ask("GET", "/many/disk").body == b"x" * 100
        assert client.ask("HEAD", "/many/many.hxz").status == 200
        assert client.ask("GET", "/many/info.json").status == 200
        assert client.ask("GET", "/many/nothing").status == 404
        assert error_of(client.ask("GET", "/many/files/a"))["Code"] == "InternalError"
