"""Conditional requests: is the client's copy still good, and does its range fit it (RFC 9110 section 13)."""

from __future__ import annotations

import re
from typing import NamedTuple

from hexz.protocol.http.dates import parse_date

__all__ = ["Validators", "evaluate", "range_applies"]

_TAG = re.compile(r'(W/)?"([!#-~\x80-\xff]*)"')
# Between two commas the blanks belong to one place alone: two that could share them would be tried in all ways.
_TAG_LIST = re.compile(r'[ \t,]*(?:W/)?"[!#-~\x80-\xff]*"(?:[ \t]*,(?:[ \t]*(?:W/)?"[!#-~\x80-\xff]*")?)*[ \t]*')


class Validators(NamedTuple):
    """What identifies a representation: its strong entity tag without quotes, and its time in seconds."""

    etag: str
    modified: float


def evaluate(headers: dict[str, str], validators: Validators, reading: bool) -> int | None:
    """The status that the preconditions decide on (304 or 412), or None to go on.

    `reading` says that the method is GET or HEAD.
    Spec: RFC 9110 section 13.2.2, the order of precedence.
    """
    modified = int(validators.modified)
    if_match = headers.get("if-match")
    if if_match is not None:
        if not _lists(if_match, validators.etag, weak=False):
            return 412
    elif "if-unmodified-since" in headers:
        date = parse_date(headers["if-unmodified-since"])
        if date is not None and modified > date:
            return 412
    if_none_match = headers.get("if-none-match")
    if if_none_match is not None:
        if _lists(if_none_match, validators.etag, weak=True):
            return 304 if reading else 412
    elif reading and "if-modified-since" in headers:
        date = parse_date(headers["if-modified-since"])
        if date is not None and modified <= date:
            return 304
    return None


def range_applies(headers: dict[str, str], validators: Validators) -> bool:
    """Whether If-Range, if there is one, still fits, so that the range may be answered (section 13.1.5)."""
    value = headers.get("if-range")
    if value is None:
        return True
    tag = _TAG.fullmatch(value)
    if tag is not None:
        return tag[1] is None and tag[2] == validators.etag
    date = parse_date(value)
    return date is not None and date == int(validators.modified)


def _lists(value: str, etag: str, weak: bool) -> bool:
    """Whether a list of tags (or ``*``) has this one; weak tags count only in a weak comparison."""
    if value.strip(" \t") == "*":
        return True
    if _TAG_LIST.fullmatch(value) is None:
        return False
    return any(tag == etag and (weak or not prefix) for prefix, tag in _TAG.findall(value))
