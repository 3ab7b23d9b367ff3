"""Whatever is asked, the answer is one of S3's, and a document of its own is well-formed."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hexz.catalog import Catalog
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import Framing, parse_head
from hexz.protocol.s3.requests import BUCKET_READS, OBJECT_READS
from hexz.servers.http.application import Body, Request
from hexz.servers.s3.application import S3Application
from hexz.snapshot import new_context
from tests.s3.serving import write_archive

PARAMETERS = [
    *BUCKET_READS, *OBJECT_READS, "prefix", "delimiter", "marker", "start-after", "max-keys", "max-buckets",
    "list-type", "continuation-token", "encoding-type", "fetch-owner", "partNumber", "versionId", "attributes",
    "response-content-type", "response-expires",
]  # fmt: skip
VALUES = [
    "",
    "0",
    "1",
    "2",
    "url",
    "true",
    "/",
    "%",
    "%ff",
    "%00",
    "%0d%0a",
    "%ed%a0%80",
    "%f0%9f%98%80",
    "MQ==",
    "9" * 40,
]
PATHS = [
    "/",
    "/names",
    "/names/",
    "/names/disk",
    "/names/files/a%20b",
    "/names/names.hxz",
    "/names/%ff",
    "/nothing/x",
    "//",
]
HEADERS = {
    "Range": ["bytes=0-0", "bytes=-1", "bytes=9999-", "bytes=0-1,3-4", "bytes=5-1", "x"],
    "If-Match": ["*", "abc", '"abc"', ",", '"'],
    "If-None-Match": ["*", "abc", '"abc"'],
    "If-Modified-Since": ["Sat, 01 Jan 2000 00:00:00 GMT", "yesterday"],
    "X-Amz-Object-Attributes": ["ETag", "ETag,ObjectSize", "x", ""],
    "Authorization": ["AWS4-HMAC-SHA256 x"],
    "X-Amz-Content-Sha256": ["UNSIGNED-PAYLOAD", "x", "0" * 64],
    "Host": ["names.d.example", ".d.example", "d.example:", "[::1]:1"],
}


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Application]:
    path: Path = tmp_path_factory.mktemp("archive") / "names.hxz"
    catalog = Catalog(new_context(8 << 20))
    catalog.add("names", str(write_archive(path, {"a b": b"x" * 50, "\u00fc": b"", "sub/c": b"y"})))
    yield S3Application(catalog, domains=("d.example",))
    catalog.close()


@example("GET", "/", [("prefix", "%ed%a0%80")], {})
@example("GET", "/names", [("marker", "%ed%a0%80")], {})
@example("GET", "/names/disk", [("response-expires", "%ff")], {"Authorization": 0})
@given(
    st.sampled_from(["GET", "HEAD", "PUT", "OPTIONS"]),
    st.one_of(st.sampled_from(PATHS), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)),
    st.lists(st.tuples(st.sampled_from(PARAMETERS), st.sampled_from(VALUES)), max_size=4),
    st.dictionaries(st.sampled_from(list(HEADERS)), st.integers(0, 9), max_size=3),
)
def test_answers(application: S3Application, method: str, path: str, query: list[Any], chosen: dict[str, int]) -> None:
    target = f"/{path.lstrip('/')}" if not path.startswith("//") else path
    target += "?" + "&".join(f"{name}={value}" for name, value in query)
    headers = {"Host": "h", **{name: HEADERS[name][at % len(HEADERS[name])] for name, at in chosen.items()}}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    try:
        head = parse_head("\r\n".join(lines).encode("latin-1"))
    except RequestError:
        return
    body = Body(types.SimpleNamespace(look=None), Framing(0, False))  # type: ignore[arg-type]
    response = application.respond(Request(head, body, "peer", False, None))
    assert response.status < 500 or response.status == 501
    assert dict(response.headers)["x-amz-request-id"]
    for name, value in response.headers:
        assert "\n" not in f"{name}{value}"
        assert "\r" not in f"{name}{value}"
        value.encode("latin-1")
    data = b"".join(
        part if isinstance(part, bytes) else b"".join(map(bytes, part.source.read(part.offset, part.length)))
        for part in response.body
    )
    assert len(data) == response.length
    if dict(response.headers).get("Content-Type") == "application/xml" and b"&#" not in data:
        ElementTree.fromstring(data)
    if response.done is not None:
        response.done()
