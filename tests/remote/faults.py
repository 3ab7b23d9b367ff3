"""What can go wrong between a reader and a store, by name: `Proxy.use` takes any of `FAULTS`, or one made here.

A fault acts on a `Turn` of the proxy at one of three moments: when a connection is there, when a request is there and
the origin has not seen it, and when the origin has answered. The answers that are not as they should be are made from
what the origin really said, so that all else about them is right.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.remote.proxy import Turn

NOTHING, RETRY, REOPEN, MEND = "nothing needed", "another try", "another opening", "mending"
CONNECT, REQUEST, ANSWER = "connect", "request", "answer"
HTML = b"<!doctype html><title>Sign in</title><p>Your session has ended. <a href='/login'>Sign in</a>"
S3_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"
BOUNDARY = "THIS_STRING_SEPARATES"
ENDLESS_BYTES = 256 << 20
"""How much is sent where no end comes: more than any reader should take, and an end for one that does."""


class Fault(NamedTuple):
    """Something that goes wrong."""

    name: str
    stage: str
    """When `act` runs: "connect", "request" or "answer"."""
    act: Callable[[Turn], object]
    cure: str = RETRY
    """What gets right bytes although it strikes.

    "nothing needed": they are right even if every answer is so.
    "another try": an answer that it does not strike.
    "another opening": who has opened the file before it struck has another file there now, for good.
    "mending": somebody has to do something about the store, the credentials or what lies between.
    """


# Time


def latency(seconds: float) -> Fault:
    """So long each way; a new connection takes a round trip more, as a handshake does."""
    return Fault(f"latency {seconds:g} s", REQUEST, lambda turn: _slow(turn, seconds), NOTHING)


def _slow(turn: Turn, seconds: float) -> None:
    first = turn.connection.turns == 1
    turn.connection.wait(seconds * (3 if first else 1))
    turn.delay_s += seconds


def drip(piece: int, pause_s: float) -> Fault:
    """So many bytes of head and body at a time, and a pause after each."""

    def act(turn: Turn) -> None:
        turn.piece, turn.pause_s = piece, pause_s

    return Fault(f"drip {piece} B / {pause_s:g} s", ANSWER, act, NOTHING)


def _freeze_in_the_body(turn: Turn) -> None:
    turn.body_stop, turn.then = len(turn.body) // 2, lambda turn: turn.hang()


def _freeze_in_the_head(turn: Turn) -> None:
    turn.head_stop, turn.then = 30, lambda turn: turn.hang()


# Connections that end


def _reset_in_the_head(turn: Turn) -> None:
    turn.head_stop, turn.then = 30, lambda turn: turn.reset()


def _reset_in_the_body(turn: Turn) -> None:
    turn.body_stop, turn.then = len(turn.body) // 2, lambda turn: turn.reset()


def _close_in_the_body(turn: Turn) -> None:
    turn.body_stop, turn.then = len(turn.body) // 2, lambda turn: turn.close()


def _close_before_the_last_byte(turn: Turn) -> None:
    turn.body_stop, turn.then = len(turn.body) - 1, lambda turn: turn.close()


def _close_after(turn: Turn) -> None:
    turn.then = lambda turn: turn.close()


def _reset_after(turn: Turn) -> None:
    turn.then = lambda turn: turn.reset()


def _say_close(turn: Turn) -> None:
    turn.set("Connection", "close")
    turn.then = lambda turn: turn.close()


def close_when_idle(seconds: float) -> Fault:
    """A connection over which nothing came for so long is closed, without a word."""

    def act(turn: Turn) -> None:
        turn.connection.idle_s = seconds

    return Fault(f"closed after {seconds:g} s idle", ANSWER, act, NOTHING)


# Statuses


def status(
    code: int, error: str = "", message: str = "said by a fault", cure: str = RETRY, at: str = REQUEST, **fields: str
) -> Fault:
    """An answer with this status, and an S3 error's document, in the origin's place; `retry_after="1"` is a field."""
    body = S3_ERROR.format(error, message).encode() if error else b"said by a fault\n"
    content_type = "application/xml" if error else "text/plain"

    def act(turn: Turn) -> None:
        turn.reply(code, body, content_type=content_type, **fields)

    return Fault(f"status {code}", at, act, cure)


def page(code: int, body: bytes = HTML) -> Fault:
    """An HTML page with any status, as portals and proxies send it."""
    return Fault(f"HTML with {code}", REQUEST, lambda turn: turn.reply(code, body, content_type="text/html"), MEND)


def _refuse_suffixes(turn: Turn) -> None:
    asked = turn.asked.range
    if asked is not None and asked[0] is None:
        turn.reply(500, S3_ERROR.format("InternalError", "no suffixes").encode(), content_type="application/xml")


def _refuse_head(turn: Turn) -> None:
    if turn.is_head:
        turn.reply(403)


# Bodies that are not what their head says


def _cut_body(turn: Turn) -> None:
    turn.body_stop, turn.then = len(turn.body) * 3 // 4, lambda turn: turn.close()


def _stretch(turn: Turn) -> None:
    extra = turn.body[-16:] or bytes(16)
    turn.more, turn.then = lambda: iter([extra]), lambda turn: turn.close()


def _flip(turn: Turn) -> None:
    body = bytearray(turn.body)
    for at in range(len(body) // 2, len(body), 4096):
        body[at] ^= 0x55
    turn.body = bytes(body)


def _zeros(turn: Turn) -> None:
    turn.body = bytes(len(turn.body))


def _shift_bytes(turn: Turn) -> None:
    span = turn.span
    if span is not None and span[0]:
        before = turn.headers, turn.body
        turn.fetch(range=f"bytes={span[0] - 1}-{span[1] - 2}")
        turn.headers = before[0]


# Ranges that are not those asked for


def _shift_range(turn: Turn) -> None:
    if turn.span is not None:
        first, stop, total = turn.span
        turn.span = (first + 1, stop + 1, total)


def _another_range(turn: Turn) -> None:
    span = turn.span
    if span is not None:
        turn.fetch(range=f"bytes=0-{span[1] - span[0] - 1}" if span[0] else f"bytes=1-{span[1]}")


def _less(turn: Turn) -> None:
    if turn.span is not None and len(turn.body) > 1:
        first, _, total = turn.span
        turn.body = turn.body[: (len(turn.body) + 1) // 2]
        turn.span = (first, first + len(turn.body), total)


def _more_than_asked(turn: Turn) -> None:
    span = turn.span
    if span is not None and span[1] < span[2]:
        turn.fetch(range=f"bytes={span[0]}-{span[1]}")


def total(change: Callable[[int], object]) -> Fault:
    """Another total in Content-Range."""

    def act(turn: Turn) -> None:
        if turn.span is not None:
            first, stop, whole = turn.span
            turn.set("Content-Range", f"bytes {first}-{stop - 1}/{change(whole)}")

    return Fault("another total", ANSWER, act, REOPEN)


def field(name: str, value: str | Callable[[Turn], str | None] | None, cure: str = RETRY) -> Fault:
    """A header of the answer is another one, or (None) is not there."""

    def act(turn: Turn) -> None:
        if turn.status in (200, 206):
            turn.set(name, value(turn) if callable(value) else value)

    return Fault(f"another {name}", ANSWER, act, cure)


def _weak(turn: Turn) -> str | None:
    etag = turn.header("etag")
    return etag if etag is None or etag.startswith("W/") else f"W/{etag}"


def _unquoted(turn: Turn) -> str | None:
    etag = turn.header("etag")
    return None if etag is None else etag.strip('"')


# Whole, encoded, framed otherwise


def _whole(turn: Turn) -> None:
    turn.fetch(range=None)


def _say_200(turn: Turn) -> None:
    if turn.status == 206:
        turn.status, turn.reason = 200, "OK"


def _encoded(turn: Turn) -> None:
    turn.body = gzip.compress(turn.body, 1)
    turn.set("Content-Encoding", "gzip")


def _chunk(turn: Turn, ends: bool = True) -> None:
    if turn.is_head:
        return
    middle = len(turn.body) // 2
    parts = [part for part in (turn.body[:middle], turn.body[middle:]) if part]
    turn.framed = False
    turn.set("Content-Length", None)
    turn.set("Transfer-Encoding", "chunked")
    turn.body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if ends else b"")
    if not ends:
        turn.then = lambda turn: turn.close()


def _without_length(turn: Turn) -> None:
    turn.framed = False
    turn.set("Content-Length", None)
    turn.set("Connection", "close")
    turn.then = lambda turn: turn.close()


def _cut_without_length(turn: Turn) -> None:
    _without_length(turn)
    turn.body_stop = len(turn.body) // 2


def _multipart(turn: Turn) -> None:
    if turn.span is not None:
        head = (
            f"--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: {turn.header('content-range')}"
        )
        turn.body = f"{head}\r\n\r\n".encode() + turn.body + f"\r\n--{BOUNDARY}--\r\n".encode()
        turn.set("Content-Range", None)
        turn.set("Content-Type", f"multipart/byteranges; boundary={BOUNDARY}")


def _boast(turn: Turn) -> None:
    turn.framed = False
    turn.set("Content-Length", str(1 << 60))
    turn.more = _endless


def _odd_length(value: str) -> Callable[[Turn], None]:
    def act(turn: Turn) -> None:
        turn.framed = False
        turn.set("Content-Length", value)
        turn.then = lambda turn: turn.close()

    return act


def _two_lengths(turn: Turn) -> None:
    turn.framed = False
    turn.headers.append(("Content-Length", str(len(turn.body) + 1)))


def _without_end(turn: Turn) -> None:
    _without_length(turn)
    turn.more = _endless


def _endless() -> Iterator[bytes]:
    data = random.Random(1).randbytes(1 << 20)
    for _ in range(ENDLESS_BYTES >> 20):
        yield data


def _large_head(turn: Turn) -> None:
    turn.headers += [(f"X-Padding-{n}", "x" * 1000) for n in range(4000)]


def interim(code: int, count: int = 1) -> Fault:
    """So many answers with a status below 200 before the answer (RFC 9110 15.2)."""

    def act(turn: Turn) -> None:
        turn.interim = f"HTTP/1.1 {code} Wait\r\nX: y\r\n\r\n".encode() * count

    return Fault(f"{count} times {code}", ANSWER, act, NOTHING)


def _no_http(turn: Turn) -> None:
    turn.raw_head, turn.then = b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(range(256)), lambda turn: turn.close()
    turn.body = b""


# Redirects


def redirect(where: str | Callable[[Turn], str] | None, code: int = 302, cure: str = MEND) -> Fault:
    """To another URL; None says no place. A request with the query ``there`` is not struck."""

    def act(turn: Turn) -> None:
        if turn.asked.target.endswith("?there"):
            return
        turn.reply(code)
        if where is not None:
            turn.set("Location", where(turn) if callable(where) else where)

    return Fault(f"redirect {code}", REQUEST, act, cure)


def _there(turn: Turn) -> str:
    return f"{turn.asked.path}?there"


def _at_the_origin(turn: Turn) -> str:
    return f"{turn.origin}{turn.asked.target}"


def doing(action: Callable[[], object]) -> Fault:
    """Something else happens before the origin is asked: an object is replaced, a server killed."""
    return Fault("something happens", REQUEST, lambda turn: action(), NOTHING)


FAULTS: dict[str, Fault] = {
    fault_name: fault._replace(name=fault_name)
    for fault_name, fault in {
        "latency": latency(0.02),
        "drip": drip(997, 0.001),
        "slow drip": drip(1, 0.25)._replace(cure=RETRY),
        "hang at connect": Fault("", CONNECT, lambda turn: turn.hang()),
        "hang": Fault("", REQUEST, lambda turn: turn.hang()),
        "hang in the head": Fault("", ANSWER, _freeze_in_the_head),
        "hang in the body": Fault("", ANSWER, _freeze_in_the_body),
        "reset at connect": Fault("", CONNECT, lambda turn: turn.reset()),
        "close at connect": Fault("", CONNECT, lambda turn: turn.close()),
        "reset": Fault("", REQUEST, lambda turn: turn.reset()),
        "close": Fault("", REQUEST, lambda turn: turn.close()),
        "reset in the head": Fault("", ANSWER, _reset_in_the_head),
        "reset in the body": Fault("", ANSWER, _reset_in_the_body),
        "close in the body": Fault("", ANSWER, _close_in_the_body),
        "close before the last byte": Fault("", ANSWER, _close_before_the_last_byte),
        "close after each answer": Fault("", ANSWER, _close_after, NOTHING),
        "reset after each answer": Fault("", ANSWER, _reset_after),
        "connection: close": Fault("", ANSWER, _say_close, NOTHING),
        "close when idle": close_when_idle(0.05),
        "500": status(500, "InternalError"),
        "500 after reading": status(500, "InternalError", at=ANSWER),
        "502": page(502)._replace(cure=RETRY),
        "503": status(503, "SlowDown"),
        "503 retry-after": status(503, "SlowDown", retry_after="1"),
        "503 retry-after date": status(503, "SlowDown", retry_after="Sun, 06 Nov 1994 08:49:37 GMT"),
        "503 retry-after for ever": status(503, "SlowDown", retry_after="99999999999"),
        "503 retry-after nonsense": status(503, "SlowDown", retry_after="soon, \x00-1e9"),
        "504": page(504)._replace(cure=RETRY),
        "429": status(429, "TooManyRequests"),
        "429 retry-after": status(429, "TooManyRequests", retry_after="1"),
        "408": status(408, "RequestTimeout"),
        "400": status(400, "InvalidRequest", cure=MEND),
        "400 expired": status(400, "ExpiredToken", "The provided token has expired.", MEND),
        "401": status(401, cure=MEND, www_authenticate='Bearer realm="x"'),
        "403": status(403, "AccessDenied", cure=MEND),
        "403 expired": status(403, "ExpiredToken", "The provided token has expired.", MEND),
        "403 skew": status(403, "RequestTimeTooSkewed", cure=MEND),
        "404": status(404, "NoSuchKey", cure=MEND),
        "410": status(410, cure=MEND),
        "412": status(412, "PreconditionFailed", cure=REOPEN),
        "416": status(416, "InvalidRange", cure=MEND),
        "304": status(304, cure=MEND),
        "204": status(204, cure=MEND),
        "599": status(599),
        "no suffix ranges": Fault("", REQUEST, _refuse_suffixes, NOTHING),
        "no HEAD": Fault("", REQUEST, _refuse_head, NOTHING),
        "truncated": Fault("", ANSWER, _cut_body),
        "stretched": Fault("", ANSWER, _stretch, NOTHING),
        "flipped bits": Fault("", ANSWER, _flip),
        "zeros": Fault("", ANSWER, _zeros),
        "bytes of another range": Fault("", ANSWER, _shift_bytes),
        "range mislabelled": Fault("", ANSWER, _shift_range),
        "another range": Fault("", ANSWER, _another_range),
        "less than asked": Fault("", ANSWER, _less),
        "more than asked": Fault("", ANSWER, _more_than_asked),
        "larger total": total(lambda whole: whole + 1),
        "smaller total": total(lambda whole: whole - 1),
        "unknown total": total(lambda _: "*")._replace(cure=RETRY),
        "total of many digits": total(lambda _: "9" * 5000)._replace(cure=RETRY),
        "no content-range": field("Content-Range", None),
        "odd content-range": field("Content-Range", "bytes 5-1/x"),
        "other unit": field("Content-Range", "lines 1-2/3"),
        "another etag": field("ETag", '"another"', REOPEN),
        "no etag": field("ETag", None),
        "weak etag": field("ETag", _weak),
        "unquoted etag": field("ETag", _unquoted, NOTHING),
        "another etag each time": field("ETag", lambda turn: f'"{turn.asked.number}"', REOPEN),
        "another last-modified": field("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT", REOPEN),
        "200 whole": Fault("", REQUEST, _whole),
        "200 with content-range": Fault("", ANSWER, _say_200),
        "200 HTML": page(200),
        "200 empty": Fault("", REQUEST, lambda turn: turn.reply(200), MEND),
        "206 HTML": page(206),
        "gzip": Fault("", ANSWER, _encoded),
        "gzip said": field("Content-Encoding", "gzip"),
        "chunked": Fault("", ANSWER, _chunk, NOTHING),
        "chunked, no end": Fault("", ANSWER, lambda turn: _chunk(turn, ends=False)),
        "without length": Fault("", ANSWER, _without_length, NOTHING),
        "without length, cut": Fault("", ANSWER, _cut_without_length),
        "multipart": Fault("", ANSWER, _multipart),
        "huge length": Fault("", ANSWER, _boast),
        "negative length": Fault("", ANSWER, _odd_length("-1")),
        "length no number": Fault("", ANSWER, _odd_length("0x10")),
        "two lengths": Fault("", ANSWER, _two_lengths),
        "no end": Fault("", ANSWER, _without_end),
        "large head": Fault("", ANSWER, _large_head),
        "interim 100": interim(100),
        "interim 103": interim(103)._replace(cure=RETRY),
        "100,000 interim answers": interim(100, 100_000)._replace(cure=RETRY),
        "not HTTP": Fault("", ANSWER, _no_http),
        "redirect 301": redirect(_there, 301, NOTHING),
        "redirect 302": redirect(_there, 302, NOTHING),
        "redirect 303": redirect(_there, 303, NOTHING),
        "redirect 307": redirect(_there, 307, NOTHING),
        "redirect 308": redirect(_there, 308, NOTHING),
        "redirect to another port": redirect(_at_the_origin, 307, NOTHING),
        "redirect loop": redirect(lambda turn: turn.asked.target),
        "redirect to metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "redirect to a file": redirect("file:///etc/passwd"),
        "redirect to ftp": redirect("ftp://127.0.0.1/"),
        "redirect nowhere": redirect(None),
        "redirect with a line break": redirect("http://127.0.0.1/\x0bx y"),
    }.items()
}
"""Every one of them, ready for `Proxy.use`."""


def those(cure: str) -> list[str]:
    """Names of the faults of a kind, to parametrize with."""
    return [name for name, fault in FAULTS.items() if fault.cure == cure]
