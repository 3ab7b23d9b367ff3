"""Lists of what is read first: what is written is read back, and what is wrong is said with its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.format.errors import DamagedList
from hexz.format.prefetch import PrefetchList, format_prefetch, parse_prefetch

PRINT = "0123456789abcdef" * 2
HEAD = f"hexz-prefetch 1\nfile 1000 {PRINT}\n"


@st.composite
def lists(draw: st.DrawFn) -> PrefetchList:
    size = draw(st.integers(1, 10**12))
    spans = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, size)), max_size=20))
    print_ = draw(st.text("0123456789abcdef", min_size=32, max_size=32))
    return PrefetchList(size, print_, [(start, min(start + length, size)) for start, length in spans])


@given(st.lists(lists(), max_size=4))
def test_what_is_written_is_read_back(wanted: list[PrefetchList]) -> None:
    assert parse_prefetch(format_prefetch(wanted)) == wanted


def test_people_may_edit_it() -> None:
    text = f"hexz-prefetch 1\r\n# a boot\n\nfile 1000 {PRINT}\n  10 20  \n# the rest\n30 970\n"
    assert parse_prefetch(text) == [PrefetchList(1000, PRINT, [(10, 30), (30, 1000)])]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1"),
        ("hexz-prefetch 2\n", "line 1"),
        ("hexz-prefetch 1\n1 2\n", "line 2: neither"),
        (f"{HEAD}10\n", "line 3: neither"),
        (f"{HEAD}10 -1\n", "line 3: neither"),
        (f"{HEAD}10 0\n", "line 3: 0 bytes at 10"),
        (f"{HEAD}990 11\n", "line 3: 11 bytes at 990 are not in a file of 1000"),
        (f"{HEAD}{'9' * 19} 1\n", "line 3: neither"),
        (f"hexz-prefetch 1\nfile 10 {PRINT[:-1]}\n", "line 2: neither"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(DamagedList, match=said):
        parse_prefetch(text)


def test_a_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hexz.format.prefetch.MAX_SPANS", 3)
    assert parse_prefetch(HEAD + "1 1\n" * 3)
    with pytest.raises(DamagedList, match="more than 3 spans"):
        parse_prefetch(HEAD + "1 1\n" * 4)
    monkeypatch.setattr("hexz.format.prefetch.MAX_LIST", 50)
    with pytest.raises(DamagedList, match="more than 50 characters"):
        parse_prefetch(HEAD)


@given(st.text(max_size=200))
def test_no_text_is_more_than_refused(text: str) -> None:
    try:
        parse_prefetch("hexz-prefetch 1\n" + text)
    except DamagedList:
        assert text.strip()
