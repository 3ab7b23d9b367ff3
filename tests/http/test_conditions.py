"""Conditional requests: every row of RFC 9110 section 13, and dates of all three forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.conditions import Validators, evaluate, range_applies
from hexz.protocol.http.dates import format_date, parse_date

NOW = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
OURS = Validators("abc-1", NOW + 0.9)
SAME = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        # 13.1.1 If-Match: strong comparison, * matches
        ({"if-match": '"abc-1"'}, None),
        ({"if-match": "*"}, None),
        ({"if-match": '"x", "abc-1"'}, None),
        ({"if-match": 'W/"abc-1"'}, 412),
        ({"if-match": '"x"'}, 412),
        ({"if-match": "abc-1"}, 412),
        # 13.1.2 If-None-Match: weak comparison, lists, *
        ({"if-none-match": '"abc-1"'}, 304),
        ({"if-none-match": 'W/"abc-1"'}, 304),
        ({"if-none-match": '"x", W/"y" ,"abc-1"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"x"'}, None),
        ({"if-none-match": '"a,b", "c"'}, None),
        ({"if-none-match": ' ,\t,"x",  ,\t ,, W/"abc-1" , '}, 304),
        ({"if-none-match": '"abc-1" "x"'}, None),
        # blanks and commas in any number take no time
        ({"if-none-match": '"abc-1"' + ",  " * 5000}, 304),
        ({"if-none-match": '"abc-1"' + ",  " * 5000 + "x"}, None),
        ({"if-match": '"abc-1"' + ", " * 8000 + "x"}, 412),
        ({"if-none-match": '"x,"abc-1"'}, None),
        ({"if-none-match": "abc-1"}, None),
        # 13.1.3 If-Modified-Since: not later than the date; an invalid date is ignored
        ({"if-modified-since": SAME}, 304),
        ({"if-modified-since": AFTER}, 304),
        ({"if-modified-since": BEFORE}, None),
        ({"if-modified-since": "yesterday"}, None),
        ({"if-modified-since": "784111777"}, None),
        ({"if-none-match": '"x"', "if-modified-since": SAME}, None),
        # 13.1.4 If-Unmodified-Since: ignored beside If-Match, or when it is no date
        ({"if-unmodified-since": SAME}, None),
        ({"if-unmodified-since": AFTER}, None),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-unmodified-since": "tomorrow"}, None),
        ({"if-match": '"abc-1"', "if-unmodified-since": BEFORE}, None),
        # 13.2.2 precedence: 412 before 304
        ({"if-match": '"x"', "if-none-match": '"abc-1"'}, 412),
        ({"if-unmodified-since": BEFORE, "if-none-match": '"abc-1"'}, 412),
        ({"if-match": '"abc-1"', "if-none-match": '"abc-1"'}, 304),
    ],
)
def test_preconditions(headers: dict[str, str], expected: int | None) -> None:
    assert evaluate(headers, OURS, reading=True) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"if-none-match": "*"}, 412),
        ({"if-none-match": '"abc-1"'}, 412),
        ({"if-modified-since": SAME}, None),
        ({"if-match": "*"}, None),
    ],
)
def test_preconditions_of_a_method_that_changes_something(headers: dict[str, str], expected: int | None) -> None:
    """13.1.2: 412 where a read gives 304; 13.1.3: If-Modified-Since is for reading only."""
    assert evaluate(headers, OURS, reading=False) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True),
        ('"abc-1"', True),
        ('W/"abc-1"', False),
        ('"x"', False),
        ('"abc-1", "x"', False),
        ("*", False),
        (SAME, True),
        (AFTER, False),
        (BEFORE, False),
        ("whenever", False),
        ("", False),
    ],
)
def test_if_range(value: str | None, expected: bool) -> None:
    """13.1.5: strong comparison, or the very same date; anything else means the whole representation."""
    assert range_applies({} if value is None else {"if-range": value}, OURS) is expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", NOW),
        ("Sunday, 06-Nov-94 08:49:37 GMT", NOW),
        ("Sun Nov  6 08:49:37 1994", NOW),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800),
        ("Sun, 06 Nov 1994 08:49:37 UTC", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 00 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:49:37 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("sun, 06 nov 1994 08:49:37 gmt", None),
        ("Sun, \u0660\u0666 Nov 1994 08:49:37 GMT", None),
        ("", None),
    ],
)
def test_dates(text: str, seconds: int | None) -> None:
    """5.6.7: three forms are read, names in the case given there; leap seconds exist."""
    assert parse_date(text) == seconds


@given(st.integers(0, 253402300799))
def test_a_date_survives_being_written(seconds: int) -> None:
    assert parse_date(format_date(seconds)) == seconds


@given(st.dictionaries(st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]),
                       st.text(alphabet='W/"*, abc-1\t\xff', max_size=30)), st.booleans())  # fmt: skip
def test_any_conditions_have_an_outcome(headers: dict[str, str], reading: bool) -> None:
    assert evaluate(headers, OURS, reading) in (None, 304, 412)
    assert range_applies({"if-range": headers.get("if-match", "")}, OURS) in (True, False)


@given(st.text(max_size=40))
def test_any_text_is_a_date_or_none(text: str) -> None:
    assert isinstance(parse_date(text), (int, type(None)))
