"""What varies between two runs of the same daemon, each with the reason, and how bytes are shown in a diff."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from urllib.parse import quote

SHOWN_WHOLE = 6000
"""Longest run of bytes that a recording keeps as it is; of a longer one its beginning, its length and its SHA-256."""
BEGINNING = 3000
WHEN = rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:\d\d(?::\d\d)?)?"

# What: pattern, replacement, why it varies.
VARIES: list[tuple[bytes, bytes, str]] = [
    (rb"(?m)^Date: [^\r\n]*", b"Date: <now>", "the clock"),
    (rb"(x-amz-request-id: |x-amz-id-2: )[^\r\n]+", rb"\1<id>", "drawn anew for each answer"),
    (rb"(<RequestId>|<HostId>)[^<]+", rb"\1<id>", "the same, in a document"),
    (rb"(Sig(?:nature)?=)[0-9a-f]{64}", rb"\1<signature>", "signed over the time"),
    (rb"\d{8}T\d{6}Z", b"<time>", "a signature's time, which has to be now"),
    (rb"\b20\d{6}(?=(?:/|%2F)(?:us-east-1|mars))", b"<day>", "a signature's day"),
    (rb"(aws4_request&#10;)[0-9a-f]{64}", rb"\1<digest>", "of the request, which has the time in it"),
    (rb"(<SignatureProvided>|<CanonicalRequestHash>)[^<]+", rb"\1<signature>", "signed over the time"),
    (rb"(<(?:StringToSignBytes|CanonicalRequestBytes|ServerTime|RequestTime)>)[^<]+", rb"\1<time>", "the clock"),
    (rb"(?<=127\.0\.0\.1:)\d+", b"<port>", "the system gives out free ports"),
    (rb'(?<="pid": )\d+|(?<="pid":)\d+|(?<=pid )\d+', b"<pid>", "the system numbers processes"),
    (rb"(multipart/byteranges; boundary=)\S+", rb"\1<boundary>", "drawn anew for each answer"),
    (rb"(?m)^--[0-9a-zA-Z_'+./:=?-]{16,}(?=(?:--)?\r$)", b"--<boundary>", "the same, in the body"),
    (rb'("(?:duration|seconds|uptime|time|ts)[a-z_]*": ?)[0-9.e+-]+', rb"\1<seconds>", "the clock"),
    (rb'("(?:timestamp_)?[a-z_]*(?:_secs|_millis|_ms|_us|time)": ?)[0-9.e+-]+', rb"\1<seconds>", "the clock"),
    (rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT(?= - )", b"<when>", "the clock, in a list of what happened"),
    (rb'("path": "/metrics".*"bytes": )\d+', rb"\1<n>", "figures have any count of digits"),
    (rb"[0-9.]+ ms each", b"<n> ms each", "how long reads took"),
    (WHEN, b"<when>", "the clock, in log lines and events"),
    (rb"(?<=up )\d+[smhd .\d]*", b"<uptime>", "the clock"),
]
_VARIES = [(re.compile(pattern), replacement) for pattern, replacement, _ in VARIES]
# Process numbers have any count of digits, and times drop zeros at their end: so does the length of what has them.
_OF_ANY_LENGTH = re.compile(
    rb'"pid": ?<pid>|<n> ms each|"mounted_time"|"time": ?<seconds>|"(?:[a-z_]*_secs|[a-z_]*time)": ?<seconds>'
)
_LENGTH = re.compile(rb"(?m)^Content-Length: \d+\r$")
_FIGURE = re.compile(rb"(?m)^([a-z_]+(?:\{[^\n]*\})?) [0-9.e+-]+$")


def normal(data: bytes, places: dict[str, str]) -> bytes:
    """`data` without what varies; `places` are the run's own paths, each with what stands for it."""
    for path, stands_for in places.items():
        for form in (path, quote(path, safe="")):
            data = data.replace(form.encode(), stands_for.encode())
    for pattern, replacement in _VARIES:
        data = pattern.sub(replacement, data)
    return _LENGTH.sub(b"Content-Length: <n>\r", data) if _OF_ANY_LENGTH.search(data) else data


def without_figures(data: bytes) -> bytes:
    """A Prometheus exposition's shape: figures of time and memory differ, families, labels and order do not."""
    return re.sub(rb"Content-Length: \d+", b"Content-Length: <n>", _FIGURE.sub(rb"\1 <n>", data))


def log_lines(data: bytes) -> Iterator[bytes]:
    """A log's lines, sorted: a line is written after its answer was sent, so those of two connections change places.

    Loggers that left lines out ("more like this") did so by the clock: of those only the kinds of lines are kept.
    """
    lines = data.splitlines(keepends=True)
    source = re.compile(rb"<when> (\w+ [\w.]+): ")
    limited = {found[1] for line in lines if b" more like this in the last " in line and (found := source.match(line))}
    kept = set()
    for line in sorted(lines):
        found = source.match(line)
        if found is None or found[1] not in limited:
            yield line
        elif found[1] not in kept:
            kept.add(found[1])
            yield found[0] + b"...\n"


def shown(data: bytes) -> list[str]:
    """`data` as lines for people, every byte of it in them or in a digest."""
    tail = []
    if len(data) > SHOWN_WHOLE:
        tail = [f"... {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"]
        data = data[:BEGINNING]
    text = data.decode("latin-1").encode("unicode_escape").decode()
    lines = text.replace("\\r\\n", "\\r\\n\n").replace("\\n", "\\n\n").replace("\\r\\n\n\n", "\\r\\n\n").split("\n")
    # Runs without a line's end, such as blocks, are cut, so that a difference shows where it is.
    cut = [line[at : at + 110] for line in lines for at in range(0, max(len(line), 1), 110)]
    return [line for line in cut if line] + tail
