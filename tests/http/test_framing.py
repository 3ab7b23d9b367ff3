"""As many answers as requests: whatever comes over one connection, no body is ever taken for a request."""

from __future__ import annotations

import threading
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from hexz.servers.http.handler import STREAK
from tests.http.serving import Client, Reply, Serving, request
from tests.http.test_crowd import join_crowd

HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: hidden\r\n\r\n"
BODIES = [b"x", HIDDEN, HIDDEN * 3, b"\r\n\r\n", b"0\r\n\r\n", HIDDEN + b"x" * 40_000]


class Asked(NamedTuple):
    """A request as sent, and what is to come back: the method and the status tell one answer from another."""

    data: bytes
    method: str
    status: int
    body: bytes | None


def chunked(body: bytes, size: int, trailer: bool) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    coded = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
    return coded + b"0\r\n" + (b"X-Trailer: y\r\n" if trailer else b"") + b"\r\n"


@st.composite
def asked(draw: st.DrawFn, disk: bytes, etag: str) -> Asked:
    method, target = draw(
        st.sampled_from([("GET", "/disk")] * 6 + [("GET", "/memory"), ("HEAD", "/disk"), ("GET", "/healthz"),
                                                  ("PUT", "/disk"), ("OPTIONS", "/disk"), ("GET", "/none")])
    )  # fmt: skip
    headers: dict[str, str] = {}
    status = {"PUT": 405, "OPTIONS": 204}.get(method, 404 if target == "/none" else 200)
    body = None
    start = draw(st.integers(0, 1 << 19))
    if draw(st.integers(0, 9)):
        length = draw(st.sampled_from([1, 10, 5000]))
        headers["Range"] = f"bytes={start}-{start + length - 1}"
        if method == "GET" and target in ("/disk", "/memory"):
            status = 206
            body = disk[start : start + length] if target == "/disk" else None
    elif target in ("/disk", "/memory"):
        headers["Range"] = "bytes=99999999-"
        status = 416 if method == "GET" else status
    condition = draw(st.sampled_from(["", "", "", "match", "none", "changed"]))
    if condition and target == "/disk" and method in ("GET", "HEAD"):
        headers |= {
            "match": {"If-Match": etag},
            "none": {"If-None-Match": f'"x", ,{etag}'},
            "changed": {"If-Match": '"y"'},
        }[condition]
        status, body = {"match": (status, body), "none": (304, None), "changed": (412, None)}[condition]
    sent = draw(st.sampled_from([b"", b"", *BODIES]))
    framing = draw(st.sampled_from(["length", "chunked"]))
    if sent and framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
        sent = chunked(sent, draw(st.sampled_from([1000, 7 * len(sent)])), draw(st.booleans()))
    elif sent or draw(st.booleans()):
        headers["Content-Length"] = str(len(sent))
    return Asked(request(method, target, headers) + sent, method, status, body)


def check(client: Client, sequence: list[Asked]) -> None:
    """Each is sent while the answers to those before come; after the last answer there is none."""
    data = b"".join(one.data for one in sequence) + request("GET", "/no-more")
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    answers = [client.receive(one.method) for one in sequence]
    last = client.receive()
    sender.join()
    assert [answer.status for answer in answers] == [one.status for one in sequence]
    for one, answer in zip(sequence, answers):
        assert one.body is None or answer.body == one.body
    assert last.status == 404 and b"/no-more" in last.body and not client.rest


@given(st.data())
def test_as_many_answers_as_requests(server: Serving, disk: bytes, data: st.DataObject) -> None:
    etag = server.ask("HEAD", "/disk").headers["etag"]
    # Each comes several times over: the connection is quick with what it has seen before.
    drawn = data.draw(st.lists(st.tuples(asked(disk, etag), st.integers(1, 4)), min_size=1, max_size=8))
    with server.client() as client:
        check(client, [one for one, times in drawn for _ in range(times)])


def test_a_repeated_request_with_a_body(server: Serving, disk: bytes) -> None:
    """Also when the connection had been quick with the same request without one, alone and in company."""
    for framing in ({"Content-Length": str(len(HIDDEN))}, {"Transfer-Encoding": "chunked"}):
        body = HIDDEN if "Content-Length" in framing else chunked(HIDDEN, 100, trailer=False)
        for prepare in (lambda client: None, lambda client: join_crowd(client, server)):
            with server.client() as client:
                prepare(client)
                for start in range(STREAK * 3):
                    headers = {"Range": f"bytes={start}-{start + 9}", **framing}
                    answer: Reply = client.ask("GET", "/disk", headers, body)
                    assert (answer.status, answer.body) == (206, disk[start : start + 10])
                assert client.ask("GET", "/none").status == 404
