"""The documents of the images API: what is taken, what is refused, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hexz.errors import BadRequest, ConfigError
from hexz.protocol.images import (
    MAX_OPERATION,
    FlushRequest,
    Registration,
    Zero,
    extents_json,
    flag,
    is_image_id,
    number,
    parse_content_range,
    parse_operation,
    parse_query,
    parse_registration,
    span_of,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("backend", "file", "socket", "host", "port", "export", "export_bitmap", "snapshot", "stream", "mode", "token",
        "quota", "idle_timeout_seconds", "max_readers", "max_writers", "op", "offset", "size", "flush")  # fmt: skip
WORDS = st.sampled_from(["nbd", "file", "hexz", "overlay", "/a", "ro", "rw", "disk", "zero", "flush"]) | JSON


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(KEYS), WORDS).map(lambda d: json.dumps(d).encode()))
@example(b"[" * 4000)
@example(b'{"size":' + b"9" * 4000 + b"}")
@example(b'{"\\ud800":1}')
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    try:
        found = parse_registration(data)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert found.backend in ("nbd", "file", "hexz", "overlay") and 1 <= found.max_readers <= 1024
    try:
        operation = parse_operation(data)
    except BadRequest as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(operation, FlushRequest) or (operation.offset >= 0 and operation.size > 0)


@given(st.text(max_size=60) | st.from_regex(r"bytes \d{1,22}-\d{1,22}/(\*|\d{1,22})", fullmatch=True))
def test_a_content_range_is_sound_or_refused(text: str) -> None:
    try:
        found = parse_content_range(text)
    except BadRequest:
        return
    assert found.start >= 0 and found.length > 0
    assert found.size is None or found.start + found.length <= found.size


@given(st.text(max_size=80), st.integers(0, 1 << 63))
def test_a_span_lies_in_the_image_or_is_refused(text: str, size: int) -> None:
    try:
        start, length = span_of(parse_query(text, ("start", "length")), size)
    except BadRequest:
        return
    assert 0 <= start <= size and 0 <= length <= size - start


def test_what_a_registration_says() -> None:
    assert parse_registration(b'{"socket":"/s","export":null,"export_bitmap":"b"}') == Registration(
        "nbd", socket="/s", export_bitmap="b"
    )
    assert parse_registration(b'{"backend":"NBD","host":"h","port":1,"later":2}').unknown == ("later",)
    full = parse_registration(
        b'{"backend":"overlay","snapshot":"s","stream":"memory","file":"/f","quota":9,"mode":"ro","token":"0123456789abcdef",'
        b'"idle_timeout_seconds":5,"max_readers":2,"max_writers":3}'
    )
    assert full == Registration("overlay", "/f", snapshot="s", stream="memory", quota=9, read_only=True,
                                token="0123456789abcdef",
                                idle_timeout_seconds=5, max_readers=2, max_writers=3)  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "zero"}, {"op": "zero", "size": 0}, {"op": "zero", "size": -1}, {"op": "zero", "size": "1"},
        {"op": "zero", "size": 1.0}, {"op": "zero", "size": True}, {"op": "zero", "size": 1, "offset": "0"},
        {"op": "zero", "size": 1, "offset": -1}, {"op": "zero", "size": 1, "flush": "false"}, {"op": "trim"}, {}, [], 5,
    ],
)  # fmt: skip
def test_types_of_operations_are_strict(fields: Any) -> None:
    with pytest.raises(BadRequest):
        parse_operation(json.dumps(fields).encode())


def test_operations() -> None:
    assert parse_operation(b'{"op":"flush","size":"x"}') == FlushRequest()
    assert parse_operation(b'{"op":"zero","size":5}') == Zero(0, 5, False)
    assert parse_operation(b'{"op":"zero","size":5,"offset":7,"flush":true}') == Zero(7, 5, True)
    for data in (b"", b" " * (MAX_OPERATION + 1)):
        with pytest.raises(BadRequest, match="1 to 65536 bytes"):
            parse_operation(data)


def test_queries() -> None:
    assert parse_query("a=1&b=2&&c", ("a", "c")) == {"a": "1", "c": ""}
    assert flag({"flush": "y"}, "flush", False) and not flag({}, "flush", False)
    for call in (
        lambda: parse_query("a=1&a=1", ("a",)),
        lambda: parse_query("&".join(f"x{n}=1" for n in range(40)), ()),
        lambda: flag({"flush": "yes"}, "flush", False),
        lambda: number({"n": "-1"}, "n", 0),
        lambda: number({"n": "٣"}, "n", 0),
        lambda: number({"n": "9" * 20}, "n", 0),
    ):
        with pytest.raises(BadRequest):
            call()


@pytest.mark.parametrize("text", ["a", "A-b_c.9", "x" * 128, "74ca180f-77e5-44be-9196-e3226104e406", "a.jso"])
def test_ids(text: str) -> None:
    assert is_image_id(text)
    for bad in (
        "",
        ".",
        "..",
        "." + text,
        "-" + text,
        text + "/",
        text + "\n",
        text + "\0",
        text + "é",
        "x" * 129,
        text[:120] + ".json",
    ):
        assert not is_image_id(bad)


@given(st.lists(st.tuples(st.integers(0), st.integers(1), st.booleans(), st.booleans(), st.booleans()), max_size=900))
def test_long_lists_are_written_in_parts_that_are_one_json_list(
    extents: list[tuple[int, int, bool, bool, bool]],
) -> None:
    for dirty in (False, True):
        parts = list(extents_json(extents, dirty))
        assert max(map(len, parts)) < 40 << 10
        names = ("dirty", "zero") if dirty else ("zero", "hole")
        values = [dict(zip(names, (changed, zero) if dirty else (zero, hole))) for _, _, zero, hole, changed in extents]
        assert json.loads(b"".join(parts)) == [
            {"start": extent[0], "length": extent[1], **value} for extent, value in zip(extents, values)
        ]
