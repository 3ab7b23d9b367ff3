"""Requests that we sign, as S3's servers and the SDK see them; and what is read from a store's refusals."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import string
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.head import parse_head
from hexz.protocol.s3.client import MAX_DOCUMENT, MAX_SAID, Keys, Signer, is_region, region_wanted, said
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.sigv4 import check_signature, check_time, parse_claim, seconds_of, signing_key
from hexz.protocol.s3.xml import error_document
from hexz.servers.s3.access import KeyFile
from tests.peers import need_module, need_rclone
from tests.s3.serving import ACCESS_KEY, REGION, SECRET, serving_s3, write_keys
from tests.waiting import until

KEYS = Keys(ACCESS_KEY, SECRET)
NOW = 1369353600.0  # 2013-05-24 00:00:00 UTC


def test_an_example_of_the_documentation() -> None:
    """ "Signature Calculations for the Authorization Header", GET Object: the only one whose headers are ours alone."""
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    host = "examplebucket.s3.amazonaws.com"
    added = Signer("us-east-1").headers("GET", host, "/test.txt", "", {"Range": "bytes=0-9"}, keys, NOW)
    assert added == {
        "x-amz-date": "20130524T000000Z",
        "x-amz-content-sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    }


def test_the_key_of_the_day_is_kept_for_its_secret_and_day_alone() -> None:
    kept = Signer("us-east-1")
    for keys in (KEYS, Keys("OTHER", "another-secret"), KEYS):
        for now in (NOW, NOW + 1, NOW + 86400, NOW):
            asked = ("GET", "h", "/b/k", "", {}, keys, now)
            assert kept.headers(*asked) == Signer("us-east-1").headers(*asked)


def test_keys_are_shown_without_what_is_secret() -> None:
    keys = Keys("AKID", "the-secret", "the-token", 5.0)
    for shown in (repr(keys), str(keys), f"{keys}", repr([keys])):
        assert "AKID" in shown and "the-secret" not in shown and "the-token" not in shown


# --- the same as the SDK signs

NAMES = st.text(
    string.ascii_letters + string.digits + " !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~äß€\u1234\U0001f600", max_size=20
)
VALUES = st.text("".join(map(chr, range(33, 127))), min_size=1, max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Range", "If-Match", "x-amz-request-payer", "X-Amz-Expected-Bucket-Owner", "Accept-Encoding", "User-Agent"]
    ),
    VALUES,
)


@given(
    st.sampled_from(["GET", "HEAD"]),
    NAMES,
    st.lists(st.tuples(NAMES, NAMES), max_size=4),
    HEADERS,
    st.one_of(st.none(), VALUES),
    st.integers(0, 1 << 32),
)
def test_what_is_sent_passes_our_own_server(
    method: str, key: str, query: list[tuple[str, str]], headers: dict[str, str], token: str | None, now: int
) -> None:
    path = f"/{quote(key)}"
    parameters = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
    target = f"{path}?{parameters}" if parameters else path
    signed = Signer("eu-west-3")
    added = signed.headers(method, "h:90", path, parameters, headers, Keys("A/K", "s", token), now)
    assert added.pop("x-amz-security-token", None) == token
    if token is not None:  # keys of our server have none
        added = signed.headers(method, "h:90", path, parameters, headers, Keys("A/K", "s"), now)
    lines = [f"{name}: {value}" for name, value in [*headers.items(), *added.items()]]
    head = parse_head("\r\n".join([f"{method} {target} HTTP/1.1", "Host: h:90", *lines]).encode())
    claim = parse_claim(head)
    assert claim is not None and (claim.access_key, claim.scope.region) == ("A/K", "eu-west-3")
    assert {"range", "if-match"} & {name.lower() for name in headers} == {"range", "if-match"} & set(claim.signed)
    check_time(claim, now)
    check_signature(head, claim, signing_key("s", claim.scope))
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        check_signature(head._replace(path=f"{path}x"), claim, signing_key("s", claim.scope))


@given(NAMES, st.lists(st.tuples(NAMES, NAMES), max_size=4), HEADERS, st.one_of(st.none(), VALUES))
def test_the_signature_is_that_of_the_sdk(
    key: str, query: list[tuple[str, str]], headers: dict[str, str], token: str | None
) -> None:
    auth = need_module("botocore.auth")
    awsrequest = need_module("botocore.awsrequest")
    credentials = need_module("botocore.credentials")
    path = f"/bucket/{quote(key)}"
    parameters = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
    url = f"http://store.example:9000{path}" + (f"?{parameters}" if parameters else "")
    # It signs all but a few; we sign what decides about the answer.
    sent = {name: value for name, value in headers.items() if name not in ("Accept-Encoding", "User-Agent")}
    request = awsrequest.AWSRequest(method="GET", url=url, headers=sent)
    signer = auth.S3SigV4Auth(credentials.Credentials(ACCESS_KEY, SECRET, token), "s3", "us-west-2")
    signer.add_auth(request)
    now = seconds_of(request.context["timestamp"])
    assert now is not None
    keys = Keys(ACCESS_KEY, SECRET, token)
    added = Signer("us-west-2").headers("GET", "store.example:9000", path, parameters, headers, keys, now)
    assert added["x-amz-content-sha256"] == request.headers["X-Amz-Content-SHA256"]
    assert added.get("x-amz-security-token") == request.headers.get("X-Amz-Security-Token")
    assert fields(added["authorization"]) == fields(request.headers["Authorization"])


def fields(authorization: str) -> list[str]:
    return [part.strip() for part in authorization.split(",")]


# --- real servers


class Store:
    """A server of S3 in path style, on loopback."""

    def __init__(self, port: int, keys: Keys, region: str = REGION) -> None:
        self.port, self.keys, self.signer = port, keys, Signer(region)

    def ask(
        self, path: str, query: str = "", headers: dict[str, str] | None = None, method: str = "GET", now: float = 0
    ) -> tuple[int, dict[str, str], bytes]:
        host = f"127.0.0.1:{self.port}"
        sent = dict(headers or {})
        sent.update(self.signer.headers(method, host, path, query, sent, self.keys, now or time.time()))
        connection = http.client.HTTPConnection(host, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, f"{path}?{query}" if query else path, headers=sent)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()


def test_our_own_server(tmp_path: Path, snapshot_file: Path) -> None:
    with serving_s3({"snap": snapshot_file}, KeyFile(str(write_keys(tmp_path))), anonymous=False) as server:
        store = Store(server.address[1], KEYS)
        status, headers, whole = store.ask("/snap/snap.hxz")
        assert (status, whole) == (200, snapshot_file.read_bytes())
        part = {"Range": "bytes=3-9", "If-Match": headers["etag"]}
        status, headers, body = store.ask("/snap/snap.hxz", headers=part)
        assert (status, body) == (206, whole[3:10])
        assert store.ask("/snap/snap%2Ehxz", headers={"Range": "bytes=0-0"})[0] == 206
        assert store.ask("/snap", "list-type=2&prefix=snap%2E")[0] == 200
        # What is said when it is refused
        for keys, code in ((Keys("NOBODY", SECRET), "InvalidAccessKeyId"), (Keys(ACCESS_KEY, "x"), "SignatureDoesNot")):
            status, _, body = Store(server.address[1], keys).ask("/snap/snap.hxz")
            assert (status, said(body)[0][: len(code)]) == (403, code)
        status, _, body = store.ask("/snap/snap.hxz", now=NOW)
        assert (status, said(body)[0]) == (403, "RequestTimeTooSkewed")
        status, _, body = Store(server.address[1], Keys(ACCESS_KEY, SECRET, "token")).ask("/snap/snap.hxz")
        assert (status, said(body)[0]) == (400, "InvalidToken")


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[int]:
    """``rclone serve s3``, which checks signatures with code of its own; its port."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [need_rclone(), "serve", "s3", folder, "--addr", f"127.0.0.1:{port}", "--auth-key"]
    nowhere = {**os.environ, "RCLONE_CONFIG": "/dev/null"}
    process = subprocess.Popen([*map(str, command), f"{ACCESS_KEY},{SECRET}"], stderr=subprocess.DEVNULL, env=nowhere)
    try:
        until(lambda: answers(port))
        yield port
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


def test_a_server_of_others(tmp_path: Path) -> None:
    names = ["plain.hxz", "with blank + plus.hxz", "a/deep/er.hxz", "sch\u00f6n (1)~=&@!$'*.hxz"]
    for name in names:
        path = tmp_path / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"what is in {name}".encode())
    with rclone(tmp_path) as port:
        store = Store(port, KEYS)
        for name in names:
            content = f"what is in {name}".encode()
            path = f"/bucket/{quote(name)}"
            status, headers, body = store.ask(path)
            assert (status, body) == (200, content), name
            _, headers, body = store.ask(path, headers={"Range": "bytes=1-4", "If-Match": headers["etag"]})
            # Its status stays 200 for a part.
            assert (body, headers["content-range"]) == (content[1:5], f"bytes 1-4/{len(content)}"), name
            assert store.ask(path, method="HEAD")[0] == 200
        assert store.ask("/bucket", "list-type=2&prefix=a%2Fdeep%2F&delimiter=%2F")[0] == 200
        status, _, body = Store(port, Keys(ACCESS_KEY, "wrong")).ask("/bucket/plain.hxz")
        assert (status, said(body)[0]) == (403, "SignatureDoesNotMatch")


# --- what a store says

DOCUMENTS: list[tuple[bytes, str, str]] = [
    (b"<Error><Code>NoSuchKey</Code><Message>No.</Message></Error>", "NoSuchKey", "No."),
    (b'\xef\xbb\xbf<?xml version="1.0"?>\n<Error xmlns="x"><Message>M</Message>\n<Code>C</Code >', "C", "M"),
    (b"<Error><Code>A</Code><Code>B</Code></Error>", "A", ""),
    (b"<Error><Code>&lt;&amp;amp;&#65;&#x42;&apos;&quot;&gt;&other;</Code></Error>", "<&amp;AB'\">&other;", ""),
    (b"<Error><Code>&#xD800;&#9999999;&#xFFFFFF;</Code></Error>", "\ufffd\ufffd\ufffd", ""),
    (b"<Error><Code> a\nb&#27;[31m\x9b\xff\x00</Code></Error>", "a\\nb\\x1b[31m\ufffd\ufffd\\x00", ""),
    (b"<Error><Code><Code>x</Code></Code></Error>", "x", ""),
    (b'<!DOCTYPE x [<!ENTITY a "b">]><Error><Code>&a;</Code></Error>', "", ""),
    (b'<Error><Code>x</Code></Error><!DOCTYPE x [<!ENTITY a "b">]>', "", ""),
    (b"<html><Error><Code>x</Code></Error></html>", "", ""),
    (b"<ErrorX><Code>x</Code></ErrorX>", "", ""),
    (b"<Error><Code>never ends", "", ""),
    (b'{"Code": "x"}', "", ""),
    (b"", "", ""),
    (b"<Error>" + b" " * MAX_DOCUMENT + b"<Code>x</Code></Error>", "", ""),
]


@pytest.mark.parametrize(("body", "code", "message"), DOCUMENTS)
def test_what_a_document_says(body: bytes, code: str, message: str) -> None:
    assert said(body) == (code, message)


def test_what_is_said_is_bounded() -> None:
    body = b"<Error><Code>" + b"c" * 9000 + b"</Code><Message>" + b"&#7;" * 1000 + b"</Message></Error>"
    assert said(body) == ("c" * MAX_SAID, ("\\x07" * 1000)[:MAX_SAID])
    assert said(body, 10) == ("c" * 10, "\\x07\\x07\\x")


@given(st.text(), st.text())
def test_documents_of_our_own(message: str, resource: str) -> None:
    body = error_document(S3Error("NoSuchKey", message), resource, "", "")
    code, found = said(body, 10000)
    assert code == "NoSuchKey" and not controls(found)
    if message.isascii() and message.isprintable():
        assert found == (message.strip() or "The specified key does not exist." * (not message))


def controls(text: str) -> list[str]:
    return [character for character in text if (character < " " or "\x7f" <= character < "\xa0") and character != "\t"]


@given(st.one_of(st.binary(), st.text("<>/&;#x0CodeMsagRin!DTYP \n").map(str.encode)))
def test_any_bytes_say_something_or_nothing(body: bytes) -> None:
    for document in (body, b"<Error><Code>" + body, b"<Error>" + body + b"</Error>"):
        assert not controls("".join(said(document)))
        found = region_wanted({}, document)
        assert found is None or is_region(found)


ELSEWHERE = "<Error><Code>{}</Code><Region>{}</Region></Error>"
REGIONS: list[tuple[dict[str, str], str, str | None]] = [
    ({"x-amz-bucket-region": "eu-west-1"}, "", "eu-west-1"),
    ({"x-amz-bucket-region": "eu-west-1"}, ELSEWHERE.format("PermanentRedirect", "other"), "eu-west-1"),
    ({"x-amz-bucket-region": "a.evil.example"}, ELSEWHERE.format("PermanentRedirect", "other"), None),
    ({}, ELSEWHERE.format("AuthorizationHeaderMalformed", "Garage-2"), "Garage-2"),
    ({}, ELSEWHERE.format("PermanentRedirect", "us-gov-west-1"), "us-gov-west-1"),
    ({}, ELSEWHERE.format("AccessDenied", "eu-west-1"), None),
    ({}, ELSEWHERE.format("PermanentRedirect", ""), None),
    ({}, ELSEWHERE.format("PermanentRedirect", "a/b"), None),
    ({}, ELSEWHERE.format("PermanentRedirect", "-a"), None),
    ({}, ELSEWHERE.format("PermanentRedirect", "\u0663"), None),
    ({}, ELSEWHERE.format("PermanentRedirect", "a" * 64), "a" * 64),
    ({}, ELSEWHERE.format("PermanentRedirect", "a" * 65), None),
    ({}, "", None),
]


@pytest.mark.parametrize(("headers", "body", "region"), REGIONS)
def test_the_region_that_is_wanted(headers: dict[str, str], body: str, region: str | None) -> None:
    assert region_wanted(headers, body.encode()) == region
