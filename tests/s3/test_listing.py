"""Listings and names against plain definitions of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.pages import list_page
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.keys import Address, address_of, bucket_of
from hexz.protocol.s3.listing import continuation_token, parse_token

LETTERS = st.text(st.sampled_from("ab/-\u00e9\ud7ff\ue000\U0010ffff"), max_size=6)


def entries(keys: list[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """Everything there is to list behind `after`, by looking at each key."""
    found = set()
    for key in keys:
        if key.startswith(prefix):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
            found.add(prefix + head + cut)
    return sorted((entry for entry in found if entry > after), key=str.encode)


@given(st.lists(LETTERS, unique=True), LETTERS, st.sampled_from(["", "/", "a", "-/", "\U0010ffff"]), LETTERS)
def test_pages_are_slices_of_the_whole(keys: list[str], prefix: str, delimiter: str, after: str) -> None:
    keys = sorted(key for key in keys if key)
    expected = entries(keys, prefix, delimiter, after)
    for limit in (1, 2, 5):
        start, listed = after, []
        while True:
            page = list_page(keys, prefix, delimiter, start, limit)
            both = sorted(page.keys + page.prefixes)
            assert page.total == len(both) <= limit
            listed += both
            if not page.truncated:
                break
            assert page.total == limit
            assert page.last == both[-1]
            start = parse_token(continuation_token(page.last))
        assert listed == expected


def test_a_page_of_nothing() -> None:
    assert list_page(["a", "b"], "", "", "", 0) == ([], [], False, "")
    assert list_page([], "x", "/", "", 10) == ([], [], False, "")


def test_groups_are_skipped_not_walked() -> None:
    class Counted(list):  # type: ignore[type-arg]
        looks = 0

        def __getitem__(self, at: int) -> str:  # type: ignore[override]
            self.looks += 1
            return str(list.__getitem__(self, at))

    keys = Counted(sorted(f"{folder}/{number:05}" for folder in "abc" for number in range(20_000)))
    assert list_page(keys, "", "/", "", 1000).prefixes == ["a/", "b/", "c/"]
    assert keys.looks < 500


@given(st.text(max_size=80))
def test_bucket_names(name: str) -> None:
    bucket = bucket_of(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket)
    assert ".." not in bucket
    assert bucket_of(bucket) == bucket


def test_bucket_names_by_example() -> None:
    for name in ("snap", "a.b-c", "0ab", "x" * 63):
        assert bucket_of(name) == name
    assert bucket_of("My_Disk 1").startswith("my-disk-1-")
    assert bucket_of("127.0.0.1").startswith("127-0-0-1-")
    names = ["My_Disk", "my_disk", "MY_DISK", "my-disk", "ab", "AB", "", "\u65e5", "\u672c", "x" * 64, "x" * 65, "a..b"]
    assert len({bucket_of(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("host", "path", "address"),
    [
        ("h:9000", "/", ("", "")),
        ("h", "/b", ("b", "")),
        ("h", "/b/", ("b", "")),
        ("h", "/b/k/l%2Fm", ("b", "k/l/m")),
        ("h", "/b//k", ("b", "/k")),
        ("b.d.example:1", "/k", ("b", "k")),
        ("a.b.d.example", "/", ("a.b", "")),
        ("d.example", "/b/k", ("b", "k")),
        ("xd.example", "/b/k", ("b", "k")),
        ("[::1]:9000", "/b/k", ("b", "k")),
        ("[::1]", "/b/k", ("b", "k")),
    ],
)
def test_addresses(host: str, path: str, address: tuple[str, str]) -> None:
    assert address_of(host, path, ("d.example",)) == Address(*address)


@given(st.text(max_size=30))
def test_tokens(junk: str) -> None:
    try:
        assert continuation_token(parse_token(junk)).rstrip("=") == junk.rstrip("=") or not junk.isascii()
    except S3Error as error:
        assert error.code == "InvalidArgument"
