"""Bodies in chunks: read the same however they come, and refused within bounds (RFC 9112 section 7.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.chunks import MAX_CHUNK_LINE, MAX_TRAILERS, Chunks
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import MAX_HEAD

REST = b"GET / HTTP/1.1\r\n"
CHUNK = st.tuples(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"%x", b"%X", b"%08x"]),
    st.sampled_from([b"", b";a=b", b' ; c="\x7e"', b"\t;" + b"x" * 200]),
)
TRAILERS = st.lists(
    st.sampled_from([b"A: b\r\n", b"Content-Length: 5\r\n", b"X: " + b"y" * 3000 + b"\r\n"]), max_size=4
)


@given(st.lists(CHUNK, max_size=8), TRAILERS, st.data())
def test_any_pieces_make_the_same_body(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: list[bytes], draw: st.DataObject
) -> None:
    """And not a byte of what follows is taken."""
    sent = b"".join(form % len(data) + more + b"\r\n" + data + b"\r\n" for data, form, more in chunks)
    sent += b"0\r\n" + b"".join(trailers) + b"\r\n"
    stream = sent + REST
    decoder = Chunks()
    body = buffer = b""
    came = taken = 0
    while not decoder.finished:
        most = draw.draw(st.integers(1, 30))
        data, used = decoder.decode(buffer, most)
        assert len(data) <= most and used <= len(buffer)
        body += data
        taken += used
        buffer = buffer[used:]
        if not data and not decoder.finished:
            assert came < len(stream)
            more = draw.draw(st.integers(1, 2000))
            buffer += stream[came : came + more]
            came += more
    assert body == b"".join(data for data, _, _ in chunks)
    assert taken == len(sent)


@given(st.lists(st.sampled_from([b"1", b"0", b"a", b"\r\n", b"\r", b"\n", b";", b" ", b"\x00", b"x"]), max_size=60))
def test_anything_is_a_body_or_is_refused(parts: list[bytes]) -> None:
    """Whole or byte by byte: to the same end."""
    sent = b"".join(parts)

    def outcome(step: int) -> tuple[bytes, bool, bool]:
        decoder = Chunks()
        body = buffer = b""
        for at in range(0, len(sent), step):
            buffer += sent[at : at + step]
            try:
                while True:
                    data, used = decoder.decode(buffer, 7)
                    buffer = buffer[used:]
                    body += data
                    if not data:
                        break
            except RequestError as error:
                assert error.status == 400
                return body, False, True
        return body, decoder.finished, False

    whole, by_byte = outcome(len(sent) or 1), outcome(1)
    assert whole[1:] == by_byte[1:]
    assert by_byte[0].startswith(whole[0])


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b"1;" + b"x" * (MAX_CHUNK_LINE - 2) + b"\r\na\r\n0\r\n\r\n", True),
        (b"1;" + b"x" * (MAX_CHUNK_LINE - 1) + b"\r\na\r\n0\r\n\r\n", False),
        (b"1;" + b"x" * MAX_CHUNK_LINE, False),  # and no more need come
        (b"0\r\nX: " + b"y" * (MAX_HEAD - 3) + b"\r\n\r\n", True),
        (b"0\r\nX: " + b"y" * (MAX_HEAD - 1), False),
        (b"0\r\n" + b"X: y\r\n" * (MAX_TRAILERS - 1) + b"\r\n", True),
        (b"0\r\n" + b"X: y\r\n" * MAX_TRAILERS, False),
        (b"F" * 15 + b"\r\n", True),
        (b"F" * 16 + b"\r\n", False),
        (b"1\r\naXY", False),
    ],
)
def test_lines_are_bounded(body: bytes, good: bool) -> None:
    decoder = Chunks()
    try:
        data = b"more"
        while data:
            data, used = decoder.decode(body, 1 << 20)
            body = body[used:]
        assert good
    except RequestError:
        assert not good
