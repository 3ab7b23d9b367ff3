"""Addresses: what may be written, what is made of it, and that nothing leads out of a folder."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hexz.errors import UsageError
from hexz.storage.remote.places import (
    MAX_URL,
    StoreNames,
    below,
    folder_of,
    is_inside,
    is_remote,
    parse_place,
    public_name,
    redirected,
)

OWN = StoreNames("http://store:9000", "eu-west-1")


class Leads(NamedTuple):
    """An address, and where it leads: scheme, host, port, target as sent, name for people."""

    address: str
    scheme: str
    host: str
    port: int
    target: str
    name: str


@pytest.mark.parametrize(
    "leads",
    [
        Leads("http://h", "http", "h", 80, "/", "http://h"),
        Leads("HTTPS://H:8443/a", "https", "h", 8443, "/a", "HTTPS://H:8443/a"),
        Leads("http://h/a%20b?x=y%2Fz&t=", "http", "h", 80, "/a%20b?x=y%2Fz&t=", "http://h/a%20b"),
        Leads("http://h/ä?ö", "http", "h", 80, "/%C3%A4?%C3%B6", "http://h/ä"),
        Leads("http://h/\udcff", "http", "h", 80, "/%FF", "http://h/\udcff"),
        Leads("http://[::1]:81/a", "http", "::1", 81, "/a", "http://[::1]:81/a"),
        Leads("http://bücher.example/a", "http", "xn--bcher-kva.example", 80, "/a", "http://bücher.example/a"),
        Leads("s3://bucket/a b?c#d%", "http", "store", 9000, "/bucket/a%20b%3Fc%23d%25", "s3://bucket/a b?c#d%"),
        Leads("S3://bucket/a", "http", "store", 9000, "/bucket/a", "s3://bucket/a"),
    ],
)
def test_where_an_address_leads(leads: Leads) -> None:
    place = parse_place(leads.address, OWN)
    assert (*place.origin, place.target, place.name) == leads[1:]
    assert place.signed == (leads.address[:2].lower() == "s3")


@pytest.mark.parametrize(
    ("names", "address", "url"),
    [
        (StoreNames(), "s3://bucket/k", "https://bucket.s3.us-east-1.amazonaws.com/k"),
        (StoreNames("", "eu-west-1"), "s3://bucket/k", "https://bucket.s3.eu-west-1.amazonaws.com/k"),
        # No certificate for *.s3... covers these.
        (StoreNames(), "s3://a.b/k", "https://s3.us-east-1.amazonaws.com/a.b/k"),
        (StoreNames(), "s3://Bucket/k", "https://s3.us-east-1.amazonaws.com/Bucket/k"),
        (StoreNames("http://h:1/root/"), "s3://bucket/k", "http://h:1/root/bucket/k"),
        (StoreNames("http://h:1", "", False), "s3://bucket/k", "http://bucket.h:1/k"),
        (StoreNames("", "", True), "s3://bucket/k", "https://s3.us-east-1.amazonaws.com/bucket/k"),
    ],
)
def test_where_an_object_is(names: StoreNames, address: str, url: str) -> None:
    assert parse_place(address, names).url == url


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("http://", "names no host"),
        ("http:///a", "names no host"),
        ("http://h/a b", "write %20"),
        ("http://h/a\nb", "no control characters"),
        ("s3://bucket/a\x7f", "no control characters"),
        ("http://h/a#b", "write %23"),
        ("http://user:pass@h/a", "--remote-token-file"),
        ("http://h:99999/", "no address"),
        ("http://h:0/", "port 0"),
        ("http://[::1/a", "no address"),
        ("http://user:pa/ss@h/", "no number"),
        ("ftp://h/a", "http://, https:// or s3://"),
        (f"http://{'a' * 64}/", "no host's name"),
        ("http://a..b\u00e4/", "no host's name"),
        ("http://h%2f/", "no host's name"),
        ("http://h\\x/", "no host's name"),
        ("http://h/" + "a" * MAX_URL, f"at most {MAX_URL}"),
        ("s3://bucket", "s3://BUCKET/KEY"),
        ("s3://bucket/", "s3://BUCKET/KEY"),
        ("s3:///key", "no bucket's name"),
        ("s3://b/key", "no bucket's name"),
    ],
)
def test_what_is_no_address(address: str, remedy: str) -> None:
    with pytest.raises(UsageError) as told:
        parse_place(address)
    assert remedy in str(told.value)
    assert "pass" not in str(told.value).replace("password", "") and "pa/ss" not in str(told.value)


@given(st.one_of(st.text(max_size=60), st.text(alphabet="http:/s3@[]%.?#\\ \0é\udcff1a", max_size=40)))
def test_any_text_is_a_place_or_an_error_that_can_be_acted_on(text: str) -> None:
    for address in (text, f"http://{text}", f"https://h/{text}", f"s3://bucket/{text}"):
        try:
            place = parse_place(address, OWN)
        except UsageError:
            continue
        # What is sent is a line of its own, and the same place again when it is read back.
        assert place.url.isascii() and place.url.isprintable() and " " not in place.url
        if not place.signed:
            assert parse_place(place.url)[:2] == place[:2]


@given(st.text(alphabet="ab/?#@:%é", max_size=30))
def test_a_name_for_people_has_no_secrets(text: str) -> None:
    shown = public_name(f"https://user:secret@h/{text}?sig=secret")
    assert "secret" not in shown and "user" not in shown and shown.startswith("https://h/")
    assert public_name(f"s3://bucket/{text}") == f"s3://bucket/{text}"


# Folders

STEPS = st.lists(
    st.sampled_from(
        ["a", "b.hxz", "", ".", "..", "%2e%2e", "%2E.", "%252e%252e", "..;x", "%2f..", "..%2f", "\\..", "%5c..",
         "..%00", "c d", "é", "?", "#", "\0", "\udcff", "@", "h:", "169.254.169.254", "http:", "s3:"]
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip
FOLDERS = ["http://h/a/", "http://h/a", "http://h", "https://h:8443/a%20b/", "s3://bucket/a/", "s3://bucket"]


def decoded(path: str) -> str:
    for _ in range(5):
        path = unquote(path)
    return path


@given(st.sampled_from(FOLDERS), st.one_of(STEPS.map("/".join), st.text(max_size=40)))
@example("http://h/a/", "http://h/a/../x")
@example("http://h/a/", "http://h/a/%2e%2e/x")
@example("http://h/a/", "http://h.evil/a/x")
@example("http://h", "http://h@evil/x")
def test_nothing_leads_out_of_a_folder(folder: str, name: str) -> None:
    for asked in (name, f"{folder}{name}", f"{folder}/{name}"):
        address = below(folder, asked)
        if address is None:
            continue
        root = folder if folder.endswith("/") else f"{folder}/"
        assert address.startswith(root) and address != root
        steps = decoded(address[len(root) :]).replace("\\", "/").split("/")
        assert not {step.partition(";")[0] for step in steps} & {".", ".."}
        place, base = parse_place(address, OWN), parse_place(f"{root}x", OWN)
        assert place.origin == base.origin and place.target.startswith(base.target[:-1])
        if not place.signed:
            assert not urlsplit(place.url).query and not urlsplit(place.url).fragment


@pytest.mark.parametrize(
    ("folder", "name", "address"),
    [
        ("http://h/a/", "b.hxz", "http://h/a/b.hxz"),
        ("http://h/a", "/x/b c?.hxz", "http://h/a/x/b%20c%3F.hxz"),
        ("http://h/a", "%2e%2e/b.hxz", None),
        ("http://h/a/", "http://h/a/b/c.hxz", "http://h/a/b/c.hxz"),
        ("http://h/a/", "http://h/a/b.hxz?x=y", None),
        ("http://h/a/", "https://h/a/b.hxz", None),
        ("http://h/a/", "http://h/b.hxz", None),
        ("http://h/a/", "", None),
        ("http://h/a/", "/", None),
        ("s3://bucket/a/", "b c?.hxz", "s3://bucket/a/b c?.hxz"),
        ("s3://bucket/", "s3://bucket2/x", None),
        ("http://h/a/", "b" * MAX_URL, None),
    ],
)
def test_where_a_parent_may_be(folder: str, name: str, address: str | None) -> None:
    assert below(folder, name) == address


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("http://h/a/b.hxz", "http://h/a/"),
        ("http://h/b.hxz?sig=x/y", "http://h/"),
        ("http://h", "http://h/"),
        ("http://h?sig=x", "http://h/"),
        ("http://h/", "http://h/"),
        ("s3://bucket/b.hxz", "s3://bucket/"),
    ],
)
def test_the_folder_of_an_address(address: str, folder: str) -> None:
    assert folder_of(address) == folder


@given(st.text(max_size=30))
def test_what_is_remote(text: str) -> None:
    assert not is_remote(text.replace("://", ""))


# Redirects

HERE = "https://h/a/b?x"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("c?y", "https://h/a/c?y"),
        ("/c", "https://h/c"),
        ("//other/c", "https://other/c"),
        ("https://other:1/c#d", "https://other:1/c"),
        ("?z", "https://h/a/b?z"),
    ],
)
def test_where_a_redirect_leads(location: str, url: str) -> None:
    here = parse_place(HERE)._replace(signed=True)
    there = redirected(here, location)
    assert there.url == url and there.name == here.name
    assert there.signed == (there.origin == here.origin)


@pytest.mark.parametrize(
    "location",
    [
        "", "http://h/a", "file:///etc/passwd", "ftp://h/a", "s3://bucket/key", "https://[/", "https://h:x/",
        "https://user:pass@h/", "https://h/a b", "https://a" + "b" * 64 + "/", "gopher:x",
    ],
)  # fmt: skip
def test_what_redirects_are_not_followed(location: str) -> None:
    with pytest.raises(UsageError):
        redirected(parse_place(HERE), location)


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=40))
def test_any_location_is_followed_or_refused(location: str) -> None:
    try:
        there = redirected(parse_place(HERE), location)
    except UsageError:
        return
    assert there.origin.scheme == "https" and there.url.isascii()


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.1", True), ("172.16.0.1", True), ("169.254.169.254", True),
        ("0.0.0.0", True), ("100.64.0.1", True), ("224.0.0.1", True), ("::1", True), ("::", True),
        ("fe80::1%eth0", True), ("fd00::1", True), ("::ffff:127.0.0.1", True),
        ("2002:a9fe:a9fe::1", True), ("64:ff9b::a9fe:a9fe", True),
        ("8.8.8.8", False), ("::ffff:8.8.8.8", False), ("2606:4700::1111", False), ("64:ff9b::808:808", False),
    ],
)  # fmt: skip
def test_which_addresses_lie_inside(address: str, inside: bool) -> None:
    assert is_inside(address) == inside


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://h/a?x=1", "http://h/a?x=2", False),
        ("http://h/get?snap=1", "http://h/get?snap=2", False),
        ("http://h/a?X-Amz-Date=1&X-Amz-Signature=2", "http://h/a?X-Amz-Date=3&X-Amz-Signature=4", True),
        ("http://h/a?sv=1&sig=2", "http://h/a", True),
        ("http://h/a?x=1&Expires=1", "http://h/a?Expires=2&x=1", True),
        ("http://h/a", "http://h/b", False),
    ],
)
def test_a_query_that_is_no_signature_tells_objects_apart(one: str, other: str, same: bool) -> None:
    assert (parse_place(one).key == parse_place(other).key) is same
