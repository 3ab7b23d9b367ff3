"""JSON from outside: what is read, what is refused before it is parsed, and in what time."""

from __future__ import annotations

import ast
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.errors import HexzError, JsonError
from hexz.jsontext import MAX_DEPTH, load_json
from tests.peers import ROOT

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES, st.booleans())
def test_what_is_json_is_read(value: object, plain: bool) -> None:
    text = json.dumps(value, ensure_ascii=plain)
    assert load_json(text) == value
    if plain:
        assert load_json(text.encode()) == value


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ('[{"a\\\\\\"":', "}]"), (' [ "[{" , ', "]")])
def test_nesting_is_counted(opening: str, closing: str) -> None:
    per_turn = sum(map("".join(opening.split('"')[::2]).count, "[{"))
    turns = MAX_DEPTH // per_turn
    assert load_json(opening * turns + "1" + closing * turns)
    with pytest.raises(JsonError, match="nested deeper"):
        load_json(opening * (turns + 1) + "1" + closing * (turns + 1))
    with pytest.raises(JsonError, match="nested deeper"):
        load_json((opening * 100_000).encode())


def test_brackets_in_strings_and_side_by_side_are_no_nesting() -> None:
    value = ["[" * 1000, {"{" * 1000: '\\"[' * 500}, [[]] * 1000, "[\\"]
    assert load_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"[" * 65, b'"' * 99, b'{"a"', b"\xff", b"1" * 100_000, b"\xff\xfe[\0]\0", "[1]".encode("utf-16")],
)
def test_what_is_no_json_is_an_error_in_one_line(data: bytes) -> None:
    with pytest.raises(HexzError) as caught:
        load_json(data)
    assert isinstance(caught.value, JsonError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", '[]{}"\\a,')
@pytest.mark.parametrize("second", '[]{}"\\a,')
def test_any_two_characters_again_and_again_are_decided_at_once(first: str, second: str) -> None:
    for text in (
        (first + second) * 250_000,
        "[" * 65 + (first + second) * 250_000,
        '[["' * 65 + (second + first) * 9999,
    ):
        began = time.process_time()
        try:
            load_json(text)
        except JsonError:
            pass
        assert time.process_time() - began < 5


def test_nothing_else_in_the_package_parses_json() -> None:
    for path in sorted((ROOT / "hexz").rglob("*.py")):
        if path.name == "jsontext.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert used not in ("json.loads", "json.load", "json.JSONDecoder"), path
