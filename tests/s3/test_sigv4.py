"""Signature Version 4: the published examples, and everything that has to be refused."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.head import RequestHead, parse_head
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.sigv4 import (
    EMPTY_SHA256,
    Scope,
    canonical_request,
    check_signature,
    check_time,
    parse_claim,
    query_pairs,
    seconds_of,
    sign,
    signing_key,
    string_to_sign,
)

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SUITE_SCOPE = Scope("20150830", "us-east-1", "service")
SUITE_QUERY = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request"
    "&X-Amz-Date=20150830T123600Z&X-Amz-SignedHeaders={}&X-Amz-Expires=3600"
)
TRIMMED = ["My-Header1: value1", 'My-Header2: "a   b   c"']

# The signing suite of the aws-c-auth repository, without the cases that normalise paths: name, target, further
# headers, signature. The date is a signed header, or in the query.
SUITE: list[tuple[str, str, list[str], str]] = [
    ("get-vanilla", "/", [], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    (
        "get-header-key-duplicate",
        "/",
        ["My-Header1:value2", "My-Header1:value2", "My-Header1:value1"],
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    (
        "get-header-value-order",
        "/",
        ["My-Header1:value4", "My-Header1:value1", "My-Header1:value3", "My-Header1:value2"],
        "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    ),
    ("get-header-value-trim", "/", TRIMMED, "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"),
    (
        "get-relative-relative-unnormalized",
        "/example1/example2/../..",
        [],
        "dc33e0856fd4baca4d7aa2146c38958283844764f38c74252a333df5e613003b",
    ),
    (
        "get-slash-dot-slash-unnormalized",
        "/./",
        [],
        "68714168e6557f8f2de0ef956fc24dc2593a4bd2961f8df51898d8a134695145",
    ),
    ("get-unreserved", f"/{UNRESERVED}", [], "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"),
    ("get-utf8", "/\u1234", [], "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
    (
        "get-vanilla-empty-query-key",
        "/?Param1=value1",
        [],
        "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
    ),
    (
        "get-vanilla-query-order-encoded",
        "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        [],
        "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    ),
    (
        "get-vanilla-query-order-key-case",
        "/?Param2=value2&Param1=value1",
        [],
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "get-vanilla-query-unreserved",
        f"/?{UNRESERVED}={UNRESERVED}",
        [],
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    ),
    ("get-vanilla-utf8-query", "/?\u1234=bar", [], "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"),
    (
        "get-vanilla-query (query)",
        "/?" + SUITE_QUERY.format("host"),
        [],
        "e93c787ed7f371d5c6b165c1b38ede9550f4dce4144713e844b25b7192d3865d",
    ),
    (
        "get-vanilla-query-order-key-case (query)",
        "/?Param2=value2&Param1=value1&" + SUITE_QUERY.format("host"),
        [],
        "86012e2c9ad4d77369f5d81c11f75158aae4f895a085212cc6d3f923d300bed5",
    ),
    (
        "get-vanilla-query-order-encoded (query)",
        "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1&" + SUITE_QUERY.format("host"),
        [],
        "c5f1848ceec943ac2ca68ee720460c23aaae30a2300586597ada94c4a65e4787",
    ),
    (
        "get-slashes-unnormalized (query)",
        "//example//?" + SUITE_QUERY.format("host"),
        [],
        "822a5a9ba28072c5ab2bb4a6307d0c88276d40e49fec6b724c03fb4d4ba60fc2",
    ),
    (
        "get-utf8 (query)",
        "/\u1234?" + SUITE_QUERY.format("host"),
        [],
        "10eae3f14a260bd3911cc6d008d3c576d143b05b62f09782a7a4b37f52178e44",
    ),
    (
        "get-header-value-trim (query)",
        "/?" + SUITE_QUERY.format("host%3Bmy-header1%3Bmy-header2"),
        TRIMMED,
        "e7bb0fd515e125e1aec2ecc4c0c17484fb06f6846b927c35e46005dd3df3acd4",
    ),
]


@pytest.mark.parametrize(("name", "target", "lines", "signature"), SUITE, ids=[case[0] for case in SUITE])
def test_signing_suite(name: str, target: str, lines: list[str], signature: str) -> None:
    in_query = "X-Amz-Signature" in target or "X-Amz-Algorithm" in target
    lines = ["Host:example.amazonaws.com", *lines, *([] if in_query else ["X-Amz-Date:20150830T123600Z"])]
    head = parse_head("\r\n".join(["GET / HTTP/1.1", *lines]).encode())
    path, _, query = target.partition("?")
    canonical = canonical_request("GET", path, query_pairs(query), sorted(head.headers.items()), EMPTY_SHA256)
    text = string_to_sign("20150830T123600Z", SUITE_SCOPE, canonical)
    assert sign(signing_key(SECRET, SUITE_SCOPE), text) == signature


# S3's own documentation, "Signature calculations for the Authorization header" and "Authenticating requests: query
# parameters".
S3_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
S3_HEADER = (
    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders={},Signature={}"
)
S3_DATE = [f"x-amz-content-sha256:{EMPTY_SHA256}", "x-amz-date:20130524T000000Z"]
S3_PRESIGNED = (
    "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
    "aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
    "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)
USUAL = "host;x-amz-content-sha256;x-amz-date"
EXAMPLES = [
    (
        "/test.txt",
        ["Range: bytes=0-9", *S3_DATE],
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    ("/?lifecycle", S3_DATE, USUAL, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
    ("/?max-keys=2&prefix=J", S3_DATE, USUAL, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    (S3_PRESIGNED, [], "", ""),
]


def head_of(target: str, *lines: str, method: str = "GET") -> RequestHead:
    fields = [f"{method} {target} HTTP/1.1", "Host: examplebucket.s3.amazonaws.com", *lines]
    return parse_head("\r\n".join(fields).encode("latin-1"))


def check(head: RequestHead, now: str = "20130524T000100Z") -> None:
    claim = parse_claim(head)
    assert claim is not None
    check_time(claim, seconds_of(now) or 0)
    check_signature(head, claim, signing_key(S3_SECRET, claim.scope))


@pytest.mark.parametrize(("target", "lines", "signed", "signature"), EXAMPLES)
def test_examples_of_the_documentation(target: str, lines: list[str], signed: str, signature: str) -> None:
    authorization = [f"Authorization: {S3_HEADER.format(signed, signature)}"] if signed else []
    check(head_of(target, *lines, *authorization))


GOOD = f"Authorization: {S3_HEADER.format(USUAL, EXAMPLES[1][3])}"
OLD = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."


def changed(old: str, new: str, text: str = GOOD) -> str:
    assert old in text
    return text.replace(old, new)


def presigned(pattern: str, new: str) -> str:
    assert re.search(pattern, S3_PRESIGNED)
    return re.sub(pattern, new, S3_PRESIGNED)


# What is sent, when, and the code and message of the refusal. The good ones are "/?lifecycle" and S3_PRESIGNED.
REFUSED: list[tuple[str, list[str], str, str, str]] = [
    # The clock, 15 minutes either way
    ("/?lifecycle", [GOOD, *S3_DATE], "20130524T001501Z", "RequestTimeTooSkewed", "too large"),
    ("/?lifecycle", [GOOD, *S3_DATE], "20130523T234459Z", "RequestTimeTooSkewed", "too large"),
    # Anything that was signed and has changed
    ("/?lifecycle=", [GOOD, S3_DATE[0], changed("000000Z", "000001Z", S3_DATE[1])], "", "SignatureDoesNotMatch", ""),
    ("/?lifecycle=x", [GOOD, *S3_DATE], "", "SignatureDoesNotMatch", ""),
    ("/?lifecycle&policy", [GOOD, *S3_DATE], "", "SignatureDoesNotMatch", ""),
    ("/?", [GOOD, *S3_DATE], "", "SignatureDoesNotMatch", ""),
    ("/x?lifecycle", [GOOD, *S3_DATE], "", "SignatureDoesNotMatch", ""),
    ("//?lifecycle", [GOOD, *S3_DATE], "", "SignatureDoesNotMatch", ""),
    ("/?lifecycle", [GOOD, "x-amz-content-sha256: UNSIGNED-PAYLOAD", S3_DATE[1]], "", "SignatureDoesNotMatch", ""),
    ("/?lifecycle", [changed("783543", "783544"), *S3_DATE], "", "SignatureDoesNotMatch", ""),
    ("/?lifecycle", [changed("us-east-1", "us-east-2"), *S3_DATE], "", "SignatureDoesNotMatch", ""),
    (
        "/?lifecycle",
        [changed("host;", "host;range;"), "Range: bytes=0-1", *S3_DATE],
        "",
        "SignatureDoesNotMatch",
        "",
    ),
    # A signed header that is not there
    ("/?lifecycle", [changed("host;", "host;range;"), *S3_DATE], "", "SignatureDoesNotMatch", ""),
    # What had to be signed
    ("/?lifecycle", [GOOD, *S3_DATE, "x-amz-expected-bucket-owner: me"], "", "AccessDenied", "not signed"),
    ("/?lifecycle", [changed("=host;", "="), *S3_DATE], "", "AccessDenied", "not signed"),
    # A header that is not one
    ("/?lifecycle", [changed("Credential=", ""), *S3_DATE], "", "AuthorizationHeaderMalformed", ""),
    ("/?lifecycle", [changed("SignedHeaders=", "Headers="), *S3_DATE], "", "AuthorizationHeaderMalformed", ""),
    ("/?lifecycle", [f"{GOOD},Signature=0", *S3_DATE], "", "AuthorizationHeaderMalformed", ""),
    ("/?lifecycle", ["Authorization: AWS4-HMAC-SHA256", *S3_DATE], "", "AuthorizationHeaderMalformed", ""),
    ("/?lifecycle", [changed("/s3/", "/ec2/"), *S3_DATE], "", "AuthorizationHeaderMalformed", "'s3'"),
    ("/?lifecycle", [changed("us-east-1", ""), *S3_DATE], "", "AuthorizationHeaderMalformed", "region"),
    ("/?lifecycle", [changed("aws4_request", "aws5"), *S3_DATE], "", "AuthorizationHeaderMalformed", ""),
    ("/?lifecycle", [changed("/20130524/", "/20130525/"), *S3_DATE], "", "AuthorizationHeaderMalformed", "date"),
    ("/?lifecycle", [changed("783543", "78354G"), *S3_DATE], "", "AuthorizationHeaderMalformed", "64"),
    ("/?lifecycle", [changed("host;", "x-amz-date;"), *S3_DATE], "", "AuthorizationHeaderMalformed", "sorted"),
    ("/?lifecycle", [changed("host;", "Host;"), *S3_DATE], "", "AuthorizationHeaderMalformed", "lower case"),
    # Dates
    ("/?lifecycle", [changed(";x-amz-date", ""), S3_DATE[0]], "", "AccessDenied", "valid Date"),
    ("/?lifecycle", [GOOD, S3_DATE[0], "x-amz-date: 20130524T250000Z"], "", "AccessDenied", "valid Date"),
    ("/?lifecycle", [GOOD, S3_DATE[0], "x-amz-date: 2013-05-24T00:00:00Z"], "", "AccessDenied", "valid Date"),
    # Payloads
    ("/?lifecycle", [GOOD, "x-amz-content-sha256: nonsense", S3_DATE[1]], "", "InvalidArgument", "sha256"),
    # Other ways to sign
    ("/", ["Authorization: AWS AKIAIOSFODNN7EXAMPLE:c2ln"], "", "InvalidRequest", OLD),
    ("/?AWSAccessKeyId=A&Signature=c2ln&Expires=99999999999", [], "", "InvalidRequest", OLD),
    ("/", ["Authorization: AWS4-ECDSA-P256-SHA256 Credential=A"], "", "InvalidRequest", OLD),
    ("/", ["Authorization: Bearer c2ln"], "", "InvalidArgument", "Unsupported Authorization Type"),
    (S3_PRESIGNED, [GOOD, *S3_DATE], "", "InvalidArgument", "Only one auth mechanism"),
    ("/?lifecycle", [GOOD, *S3_DATE, "x-amz-security-token: t"], "", "InvalidToken", ""),
    (f"{S3_PRESIGNED}&X-Amz-Security-Token=t", [], "", "InvalidToken", ""),
    # Presigned: time
    (S3_PRESIGNED, [], "20130525T000001Z", "AccessDenied", "Request has expired"),
    (S3_PRESIGNED, [], "20130523T234459Z", "AccessDenied", "not yet valid"),
    # Presigned: what has changed
    (presigned("86400", "86401"), [], "", "SignatureDoesNotMatch", ""),
    (presigned("test.txt", "other.txt"), [], "", "SignatureDoesNotMatch", ""),
    (f"{S3_PRESIGNED}&response-content-type=text/html", [], "", "SignatureDoesNotMatch", ""),
    (presigned("aeeed9", "aeeed8"), [], "", "SignatureDoesNotMatch", ""),
    (presigned("=host", "=host%3Brange"), ["Range: bytes=0-1"], "", "SignatureDoesNotMatch", ""),
    (presigned("=host", "=range"), ["Range: bytes=0-1"], "", "AccessDenied", "not signed"),
    (S3_PRESIGNED, ["x-amz-request-payer: requester"], "", "AccessDenied", "not signed"),
    # Presigned: what is no such query
    *(
        (presigned(f"X-Amz-{name}=[^&]*&?", ""), [], "", "AuthorizationQueryParametersError", "requires")
        for name in ("Credential", "Date", "Expires", "SignedHeaders", "Signature", "Algorithm")
    ),
    *(
        (presigned("86400", value), [], "", "AuthorizationQueryParametersError", "X-Amz-Expires")
        for value in ("0", "-1", "604801", "x", "9" * 30, "")
    ),
    (presigned("HMAC-SHA256", "HMAC-SHA1"), [], "", "AuthorizationQueryParametersError", "only supports"),
    (presigned("X-Amz-Date=2", "X-Amz-Date=x"), [], "", "AuthorizationQueryParametersError", "ISO8601"),
    (presigned("%2F20130524", "%2F20130525"), [], "", "AuthorizationQueryParametersError", "date"),
    (presigned("%2Fs3%2F", "%2Fec2%2F"), [], "", "AuthorizationQueryParametersError", "'s3'"),
    (f"{S3_PRESIGNED}&X-Amz-Expires=86400", [], "", "AuthorizationQueryParametersError", "more than once"),
]


@pytest.mark.parametrize(("target", "lines", "now", "code", "message"), REFUSED)
def test_refuses(target: str, lines: list[str], now: str, code: str, message: str) -> None:
    with pytest.raises(S3Error) as caught:
        check(head_of(target, *lines), now or "20130524T000100Z")
    assert caught.value.code == code
    assert message in caught.value.message


def test_the_edges_of_time() -> None:
    for now in ("20130524T001500Z", "20130523T234500Z"):
        check(head_of("/?lifecycle", GOOD, *S3_DATE), now)
    for now in ("20130525T000000Z", "20130523T234500Z"):
        check(head_of(S3_PRESIGNED), now)


def test_a_url_signed_for_get_is_not_for_head() -> None:
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        check(head_of(S3_PRESIGNED, method="HEAD"))


def test_a_date_header_will_do() -> None:
    """Clients that cannot set x-amz-date sign Date."""
    date, scope = "Fri, 24 May 2013 00:00:00 GMT", Scope("20130524", "eu-west-3", "s3")
    head = head_of("/b/k", f"Date: {date}")
    signed = [("date", date), ("host", head.headers["host"])]
    text = string_to_sign("20130524T000000Z", scope, canonical_request("GET", "/b/k", [], signed, EMPTY_SHA256))
    header = S3_HEADER.format("date;host", sign(signing_key(S3_SECRET, scope), text)).replace("us-east-1", "eu-west-3")
    check(head_of("/b/k", f"Date: {date}", f"Authorization: {header}"))


def test_the_refusal_says_what_was_expected() -> None:
    with pytest.raises(S3Error) as caught:
        check(head_of("/?policy", GOOD, *S3_DATE))
    details = dict(caught.value.details)
    assert details["CanonicalRequest"].startswith("GET\n/\npolicy=\nhost:examplebucket")
    assert details["StringToSign"].startswith("AWS4-HMAC-SHA256\n20130524T000000Z\n")
    assert S3_SECRET not in str(caught.value.details)


def test_queries_know_no_blanks() -> None:
    assert query_pairs("a=b+c&d&&e=%2B%20=") == [("a", "b+c"), ("d", ""), ("e", "+ =")]


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=60), st.booleans())
def test_any_claim_is_parsed_or_refused(junk: str, in_query: bool) -> None:
    target = f"/b?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={junk}" if in_query else "/b"
    lines: list[Any] = [] if in_query else [f"Authorization: AWS4-HMAC-SHA256 {junk}"]
    try:
        head = head_of(target, *lines)
    except RequestError:
        return
    with pytest.raises(S3Error):
        parse_claim(head)


@given(st.binary(max_size=40))
def test_what_is_decoded_comes_back(data: bytes) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in data)
    (pair,) = query_pairs(f"x={encoded}") or [("x", "")]
    canonical = canonical_request("GET", "/", [pair], [], "").split("\n")[2]
    assert unquote(canonical[2:], "latin-1") == data.decode("latin-1")
