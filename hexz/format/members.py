"""A long JSON text taken apart member by member: nothing of it becomes values but what somebody asks for.

Parsed whole, 16 MiB of JSON may become a gigabyte of lists, while no other thread
gets on.  Here the text is walked bracket by bracket; what is not asked for is only
passed over, and need not be JSON inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from hexz.errors import JsonError
from hexz.jsontext import load_json

__all__ = ["MAX_VALUE", "JsonText", "MemberSpan"]

MAX_VALUE = 64 << 10
"""Longest value that is parsed, bytes of its text."""
_MARK = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"[^"]*"')
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]+")
_FLAT = re.compile(rb'\{[^][{}"]*(?:"[^"]*"[^][{}"]*)*\}')
_STEP = re.compile(rb'"[^"]*"|[][{}]')
_OPENING, _QUOTE = b"[{", ord('"')


class MemberSpan(NamedTuple):
    """Where a value lies in the text: first byte, and the one after the last."""

    start: int
    end: int


class JsonText:
    """A text in UTF-8; every method raises JsonError where it is no JSON."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # Without escapes a string ends at the next quote; every byte stays where it is.
        self._plain = data.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in data else data

        self._ends: dict[int, int] = {}  # of the lists and objects that were walked

    @property
    def start(self) -> int:
        """Where the one value that the text is begins."""
        return self._after_blanks(len(_MARK) if self._data.startswith(_MARK) else 0)

    def check_end(self) -> None:
        """See that nothing follows that value."""
        if self._after_blanks(self._end_of(self.start)) != len(self._data):
            raise JsonError("something comes after the value")

    def begins_with(self, start: int, bracket: bytes) -> bool:
        """Whether the value at `start` is a list (``[``) or an object (``{``)."""
        return self._plain.startswith(bracket, start)

    def members(self, start: int) -> Iterator[tuple[str, int]]:
        """The keys of the object that begins at `start`, and where each one's value begins."""
        at = self._after_blanks(start + 1)
        while not self._plain.startswith(b"}", at):
            key = _STRING.match(self._plain, at)
            at = self._after_blanks(key.end()) if key is not None else at
            if key is None or key.end() - key.start() > MAX_VALUE or not self._plain.startswith(b":", at):
                raise JsonError("a key is missing")
            at = self._after_blanks(at + 1)
            yield str(load_json(self._data[key.start() : key.end()])), at
            at = self._next(self._end_of(at), b"}")
        self._ends[start] = at + 1

    def items(self, start: int) -> Iterator[MemberSpan]:
        """The values in the list that begins at `start`."""
        at = self._after_blanks(start + 1)
        while not self._plain.startswith(b"]", at):
            end = self._end_of(at)
            yield MemberSpan(at, end)
            at = self._next(end, b"]")
        self._ends[start] = at + 1

    def value(self, span: MemberSpan) -> Any:
        """The value at `span`; None when it is longer than `MAX_VALUE`."""
        return load_json(self._data[span.start : span.end]) if span.end - span.start <= MAX_VALUE else None

    def value_at(self, start: int) -> Any:
        """The value that begins at `start`; None when it is longer than `MAX_VALUE`."""
        return self.value(MemberSpan(start, self._end_of(start)))

    def _next(self, end: int, closing: bytes) -> int:
        """Where the next value begins behind one that ends at `end`, or where the closing bracket is."""
        at = self._after_blanks(end)
        if self._plain.startswith(closing, at):
            return at
        if not self._plain.startswith(b",", at):
            raise JsonError("a comma is missing")
        following = self._after_blanks(at + 1)
        if self._plain.startswith(closing, following):
            raise JsonError("nothing follows a comma")
        return following

    def _after_blanks(self, at: int) -> int:
        found = _BLANK.match(self._plain, at)
        return found.end() if found is not None else at

    def _end_of(self, start: int) -> int:
        known = self._ends.get(start)
        if known is not None:
            return known
        first = self._plain[start : start + 1]
        if first == b"{":
            flat = _FLAT.match(self._plain, start, start + MAX_VALUE)
            if flat is not None:
                return flat.end()
        if first and first in _OPENING:
            return self._end_of_brackets(start)
        simple = (_STRING if first == b'"' else _SCALAR).match(self._plain, start)
        if simple is None:
            raise JsonError("a value is missing")
        return simple.end()

    def _end_of_brackets(self, start: int) -> int:
        depth = 0
        for step in _STEP.finditer(self._plain, start):
            sign = self._plain[step.start()]
            if sign == _QUOTE:
                continue
            depth += 1 if sign in _OPENING else -1
            if not depth:
                return step.end()
        raise JsonError("a bracket is not closed")
