"""S3: reads of the service, of buckets and of objects, signed, presigned and not."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

from tests.corpus.daemons import ACCESS_KEY, LIMITED_KEY, LIMITED_SECRET, SECRET
from tests.corpus.http_cases import HOST, probed, request
from tests.corpus.talk import END, Case, Step

EMPTY = hashlib.sha256().hexdigest()
REGION = "us-east-1"
BUCKET_QUERIES = [
    "location",
    "versioning",
    "acl",
    "logging",
    "notification",
    "requestPayment",
    "accelerate",
    "uploads",
    "policy",
    "policyStatus",
    "cors",
    "tagging",
    "encryption",
    "object-lock",
    "lifecycle",
    "website",
    "replication",
    "publicAccessBlock",
    "ownershipControls",
    "versions",
    "analytics",
    "list-type=2",
    "list-type=1",
    "list-type=2&max-keys=1",
    "list-type=2&max-keys=0",
    "list-type=2&max-keys=-1",
    "list-type=2&max-keys=x",
    "list-type=2&prefix=d",
    "list-type=2&prefix=files/",
    "list-type=2&delimiter=/",
    "list-type=2&delimiter=/&prefix=files/",
    "list-type=2&start-after=disk",
    "list-type=2&continuation-token=junk",
    "list-type=2&encoding-type=url",
    "list-type=2&encoding-type=x",
    "list-type=2&fetch-owner=true",
    "marker=disk",
    "max-keys=1",
    "delimiter=/",
    "prefix=%ff",
    "unknown=1",
]
OBJECT_QUERIES = [
    "acl",
    "tagging",
    "retention",
    "legal-hold",
    "uploadId=1",
    "torrent",
    "attributes",
    "versionId=null",
    "versionId=x",
    "partNumber=1",
    "partNumber=2",
    "partNumber=0",
    "partNumber=x",
    "response-content-type=text/plain",
    "response-expires=x",
    "select",
]
PATHS = [
    "/",
    "/snap",
    "/snap/",
    "/nothing",
    "/nothing/",
    "/snap/disk",
    "/snap/memory",
    "/snap/nothing",
    "/snap/snap.hxz",
    "/archive/",
    "/archive/disk",
    "/memonly/",
    "/memonly/disk",
    "/thin/disk",
    "/thin/",
    "/pages/disk",
    "/damaged/disk",
    "/snap//disk",
    "/snap/%64isk",
    "/snap/disk/",
    "/Snap/disk",
    "/s",
    "/healthz",
    "/metrics",
    "/readyz",
]
RANGES = [
    "bytes=0-9",
    "bytes=-5",
    "bytes=89990-",
    "bytes=90001-",
    "bytes=5-4",
    "bytes=0-1,5-6",
    "bytes=x",
    "bytes=-0",
    "pages=1-2",
]
CONDITIONS = [
    'If-None-Match: "x"',
    "If-None-Match: *",
    'If-Match: "x"',
    "If-Match: *",
    "If-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT",
    "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    "x-amz-object-attributes: ETag,ObjectSize",
    "Content-Length: 3",
    f"x-amz-content-sha256: {'0' * 64}",
    f"x-amz-content-sha256: {EMPTY}",
    "Origin: https://evil.example",
    "Expect: 100-continue",
]
HOSTS = [
    "snap.s3.example",
    "archive.s3.example",
    "nothing.s3.example",
    "s3.example",
    "a.b.s3.example",
    "evil.example",
    "snap.localhost",
]


def signed(
    path: str = "/snap/disk",
    query: str = "",
    key: str = ACCESS_KEY,
    secret: str = SECRET,
    *,
    method: str = "GET",
    host: str = "localhost",
    age: int = 0,
    presigned: int | None = None,
    spoil: tuple[str, str] = ("", ""),
    fields: tuple[str, ...] = (),
) -> Callable[[], bytes]:
    """Makes a request that is signed when it is sent (SigV4), `age` seconds ago; `spoil` changes it afterwards."""

    def make() -> bytes:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - age))
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        headers = (
            {"host": host}
            if presigned is not None
            else {"host": host, "x-amz-content-sha256": EMPTY, "x-amz-date": now}
        )
        names = ";".join(headers)
        pairs = [pair if "=" in pair else f"{pair}=" for pair in query.split("&") if pair]
        if presigned is not None:
            pairs += [
                "X-Amz-Algorithm=AWS4-HMAC-SHA256",
                f"X-Amz-Credential={quote(f'{key}/{scope}', '')}",
                f"X-Amz-Date={now}",
                f"X-Amz-Expires={presigned}",
                f"X-Amz-SignedHeaders={names}",
            ]
        content = "UNSIGNED-PAYLOAD" if presigned is not None else EMPTY
        lines = [
            method,
            path,
            "&".join(sorted(pairs)),
            *(f"{name}:{value}" for name, value in headers.items()),
            "",
            names,
            content,
        ]
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
        derived = f"AWS4{secret}".encode()
        for part in scope.split("/"):
            derived = hmac.new(derived, part.encode(), "sha256").digest()
        signature = hmac.new(derived, to_sign.encode(), "sha256").hexdigest()
        shown = [f"{name}: {value}" for name, value in headers.items()]
        if presigned is not None:
            pairs.append(f"X-Amz-Signature={signature}")
        else:
            credential = f"Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
            shown.append(f"Authorization: AWS4-HMAC-SHA256 {credential}")
        target = path + ("?" + "&".join(pairs) if pairs else "")
        return request(method, target, *shown, *fields).replace(
            spoil[0].encode(), spoil[1].encode(), 1 if spoil[0] else 0
        )

    return make


def cases() -> Iterator[Case]:
    """Every conversation."""
    for path in PATHS:
        for method in ("GET", "HEAD"):
            yield probed(f"s3 {method} {path}", request(method, path, HOST), "open.s3")
        yield probed(f"s3 unsigned where keys are wanted {path}", request("GET", path, HOST), "guarded.s3")
        one = signed(path)
        yield Case(f"s3 signed {path}", "guarded.s3", (Step(one), Step(one), Step(b"", END)))
    for query in BUCKET_QUERIES:
        yield probed(f"s3 bucket ?{query}", request("GET", f"/archive?{query}", HOST), "open.s3")
    for query in OBJECT_QUERIES:
        yield probed(f"s3 object ?{query}", request("GET", f"/snap/disk?{query}", HOST), "open.s3")
        yield Case(f"s3 object signed ?{query}", "guarded.s3", (Step(signed(query=query)),))
    for query in ("max-buckets=2", "prefix=s", "max-buckets=0", "max-buckets=x", "continuation-token=x"):
        yield probed(f"s3 service ?{query}", request("GET", f"/?{query}", HOST), "open.s3")
    for spec in RANGES:
        for method in ("GET", "HEAD"):
            yield probed(f"s3 {method} {spec}", request(method, "/snap/disk", HOST, f"Range: {spec}"), "open.s3")
    for field in CONDITIONS:
        yield (
            probed(f"s3 {field}", request("GET", "/snap/disk", HOST, field), "open.s3")
            if "Length" not in field
            else Case(f"s3 {field}", "open.s3", (Step(request("GET", "/snap/disk", HOST, field) + b"abc", END),))
        )
    for method in ["PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"]:
        for path in ("/", "/snap", "/snap/disk"):
            yield probed(f"s3 {method} {path}", request(method, path, HOST), "open.s3")
    for host in HOSTS:
        for path in ("/", "/disk", "/snap/disk"):
            yield probed(f"s3 {host} {path}", request("GET", path, f"Host: {host}"), "open.s3")
        yield Case(f"s3 signed {host}", "guarded.s3", (Step(signed("/disk", host=host)),))
    yield from signatures()
    again = [Step(request("GET", "/snap/disk", HOST, f"Range: bytes={at}-{at + 9}")) for at in range(20)]
    yield Case("s3 ranges again", "open.s3", (*again, Step(request("GET", "/snap/nothing", HOST)), Step(b"", END)))
    for number, data in enumerate(
        (b"junk\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 9)
    ):
        yield Case(f"s3 raw {number}", "open.s3", (Step(data, END),))


def signatures() -> Iterator[Case]:
    """Good, bad and presigned ones."""
    made = {
        "right": signed(),
        "another query": signed(query="acl"),
        "a HEAD": signed(method="HEAD"),
        "a PUT": signed(method="PUT"),
        "wrong secret": signed(secret="wrong-secret-of-length"),
        "unknown key": signed(key="NOBODY"),
        "old": signed(age=7200),
        "early": signed(age=-7200),
        "changed path": signed(spoil=("/snap/disk", "/snap/memory")),
        "no date": signed(spoil=("x-amz-date", "x-else")),
        "other service": signed(spoil=("/s3/", "/ec2/")),
        "no signature": signed(spoil=(", Signature=", ", Sig=")),
        "other scheme": signed(spoil=("AWS4-HMAC-SHA256 ", "AWS ")),
        "other region": signed(spoil=(f"/{REGION}/", "/mars/")),
        "junk": signed(spoil=("Credential=", "Junk=")),
        "with a range": signed(fields=("Range: bytes=0-9",)),
        "of a bucket": signed("/snap", "list-type=2"),
        "limited, its bucket": signed("/archive", "list-type=2", LIMITED_KEY, LIMITED_SECRET),
        "limited, all": signed("/", "", LIMITED_KEY, LIMITED_SECRET),
        "limited, another": signed("/snap/disk", "", LIMITED_KEY, LIMITED_SECRET),
        "evil host": signed(host="evil.example"),
        "presigned": signed(presigned=60),
        "presigned, expired": signed(presigned=60, age=120),
        "presigned for ever": signed(presigned=604801),
        "presigned, changed": signed(presigned=60, spoil=("/snap/disk", "/snap/memory")),
        "presigned for nothing": signed(presigned=0, age=5),
        "presigned, wrong secret": signed(presigned=60, secret="wrong-secret-of-length"),
        "presigned, negative": signed(presigned=-1),
        "presigned with overrides": signed(query="response-content-type=text%2Fplain", presigned=60),
        "presigned, HEAD": signed(presigned=60, method="HEAD"),
        "presigned, without its end": signed(presigned=60, spoil=("X-Amz-Expires", "X-Amz-Else")),
    }
    for name, data in made.items():
        yield Case(f"s3 signature {name}", "guarded.s3", (Step(data), Step(data), Step(b"", END)))
