"""The Range header against the rules of RFC 9110 section 14, and against a model that knows no cleverness."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.protocol.http.errors import Unsatisfiable
from hexz.protocol.http.ranges import MAX_RANGES, PART_OVERHEAD, ByteRange, parse_range

SIZE = 10_000
IGNORED = None
UNSATISFIABLE = "unsatisfiable"


def outcome(value: str, size: int = SIZE) -> object:
    try:
        return parse_range(value, size)
    except Unsatisfiable:
        return UNSATISFIABLE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # 14.1.2 int-range, both ends inclusive
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-499", [(0, 500)]),
        ("bytes=500-", [(500, 9500)]),
        ("bytes=9999-", [(9999, 1)]),
        ("bytes=9999-9999", [(9999, 1)]),
        # 14.1.2 a last position at or past the end means the end
        ("bytes=9500-10000", [(9500, 500)]),
        ("bytes=0-9223372036854775807", [(0, 10000)]),
        ("bytes=0-" + "9" * 5000, [(0, 10000)]),
        ("bytes=" + "0" * 4999 + "7-8", [(7, 2)]),
        # 14.1.2 suffix-range; one longer than the representation is all of it
        ("bytes=-1", [(9999, 1)]),
        ("bytes=-500", [(9500, 500)]),
        ("bytes=-20000", [(0, 10000)]),
        ("bytes=-" + "9" * 5000, [(0, 10000)]),
        # 14.1 range units are case-insensitive; 5.6.1 lists may have empty elements and blanks
        ("Bytes=0-1", [(0, 2)]),
        ("BYTES=0-1", [(0, 2)]),
        ("bytes= 0-1 , 5000-5001 ,", [(0, 2), (5000, 2)]),
        ("bytes=,,0-1,,\t,", [(0, 2)]),
        # 15.5.17 nothing that overlaps the representation
        ("bytes=10000-", UNSATISFIABLE),
        ("bytes=10000-10001", UNSATISFIABLE),
        ("bytes=" + "9" * 5000 + "-", UNSATISFIABLE),
        ("bytes=-0", UNSATISFIABLE),
        ("bytes=10000-10001,20000-", UNSATISFIABLE),
        ("bytes=10000-10001,0-0", [(0, 1)]),
        # 14.2 what is no valid Range is ignored
        ("bytes=1-0", IGNORED),
        ("bytes=0-0,5-4", IGNORED),
        ("bytes=", IGNORED),
        ("bytes=-", IGNORED),
        ("bytes=,", IGNORED),
        ("bytes", IGNORED),
        ("bytes 0-1", IGNORED),
        ("bytes=0", IGNORED),
        ("bytes=0-1-2", IGNORED),
        ("bytes=+0-1", IGNORED),
        ("bytes=0 -1", IGNORED),
        ("bytes=0- 1", IGNORED),
        ("bytes=0x0-0x1", IGNORED),
        ("bytes=1_0-2_0", IGNORED),
        ("bytes=\u0660-\u0661", IGNORED),
        ("bytes=a-b", IGNORED),
        ("bytes=0-1;q=1", IGNORED),
        ("bytes=0-1 5-6", IGNORED),
        # 14.2 another unit is ignored
        ("seconds=0-1", IGNORED),
        ("items=0-1", IGNORED),
        ("=0-1", IGNORED),
        ("", IGNORED),
        # 15.3.7.2 neighbours may be joined, but not what lies far apart; the order stays
        ("bytes=0-99,100-199", [(0, 200)]),
        (f"bytes=0-99,{100 + PART_OVERHEAD}-999", [(0, 1000)]),
        (f"bytes=0-99,{101 + PART_OVERHEAD}-999", [(0, 100), (101 + PART_OVERHEAD, 899 - PART_OVERHEAD)]),
        ("bytes=5000-5999,0-99", [(5000, 1000), (0, 100)]),
        ("bytes=0-0,-1", [(0, 1), (9999, 1)]),
        # 14.2 and 17.15 many small, or overlapping, ranges look like an attack
        ("bytes=0-,0-,0-,0-", IGNORED),
        ("bytes=" + ",".join(f"{n * 7 % 9973}-{n * 7 % 9973}" for n in range(MAX_RANGES + 1)), IGNORED),
        ("bytes=0-8999,1000-9999,0-8999", [(0, 10000)]),
        ("bytes=5000-9999,0-5999,4000-9999,0-5999", IGNORED),
    ],
)
def test_a_range_means_what_the_standard_says(value: str, expected: object) -> None:
    assert outcome(value) == expected


@pytest.mark.parametrize(("value", "expected"), [("bytes=0-", UNSATISFIABLE), ("bytes=-0", UNSATISFIABLE),
                                                 ("bytes=-5", IGNORED)])  # fmt: skip
def test_nothing_of_an_empty_representation_can_be_had(value: str, expected: object) -> None:
    """A suffix of it is satisfiable by 14.1.2, but no Content-Range can say so: the header is ignored."""
    assert outcome(value, 0) == expected


@given(st.text(alphabet="bytes=0123456789-, \tBx+", max_size=40), st.integers(0, 200))
def test_any_text_gives_spans_inside_or_none_or_unsatisfiable(value: str, size: int) -> None:
    spans = outcome(value, size)
    if isinstance(spans, list):
        assert spans
        for span in spans:
            assert 0 <= span.start < span.end <= size


RANGE_SPEC = st.one_of(
    st.tuples(st.integers(0, 120), st.integers(0, 120)).map(lambda pair: (min(pair), max(pair))),
    st.tuples(st.integers(0, 120), st.none()),
    st.tuples(st.none(), st.integers(0, 120)),
)


@given(st.lists(RANGE_SPEC, min_size=1, max_size=3), st.integers(1, 100))
def test_spans_cover_what_was_asked_and_little_else(specs: list[tuple[int | None, int | None]], size: int) -> None:
    value = "bytes=" + ",".join(f"{'' if a is None else a}-{'' if b is None else b}" for a, b in specs)
    wanted: set[int] = set()
    for first, last in specs:
        low = max(size - last, 0) if first is None and last is not None else first
        high = size if first is None or last is None else last + 1
        wanted |= set(range(low or 0, min(high, size)))
    spans = outcome(value, size)
    if not wanted:
        assert spans == UNSATISFIABLE
    elif spans is not None:
        assert isinstance(spans, list)
        got = {at for span in spans for at in range(span.start, span.end)}
        assert wanted <= got
        assert sum(span.length for span in spans) <= max(size, len(wanted)) or len(spans) == 1


@pytest.mark.parametrize("value", ["bytes=" + " ," * 8000, "bytes=" + "0-," * 5000 + "x", "bytes=" + " " * 16000 + "x",
                                   "bytes=" + "1" * 16000, "bytes=" + "1-" * 8000, "bytes=0-0" + ", " * 8000 + "x",
                                   "bytes=0-0," + "\t" * 16000 + "x"])  # fmt: skip
def test_hostile_headers_are_dealt_with_at_once(value: str) -> None:
    began = time.process_time()
    assert parse_range(value, SIZE) is None
    assert time.process_time() - began < 1.0  # linear work takes milliseconds; a quadratic pattern takes minutes


def test_span_arithmetic() -> None:
    assert ByteRange(3, 4).end == 7
