"""HTTP dates (RFC 9110 section 5.6.7), whole seconds since 1970."""

from __future__ import annotations

import calendar
import re
import time

__all__ = ["format_date", "parse_date"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = "|".join(_MONTHS)
_TIME = r"(?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)"
_FORMS = (
    re.compile(rf"(?:{'|'.join(_DAYS)}), (?P<d>\d\d) (?P<b>{_MONTH}) (?P<Y>\d{{4}}) {_TIME} GMT", re.ASCII),
    re.compile(rf"\w{{6,9}}, (?P<d>\d\d)-(?P<b>{_MONTH})-(?P<y>\d\d) {_TIME} GMT", re.ASCII),
    re.compile(rf"(?:{'|'.join(_DAYS)}) (?P<b>{_MONTH}) (?P<d>[ \d]\d) {_TIME} (?P<Y>\d{{4}})", re.ASCII),
)


def format_date(seconds: float) -> str:
    """A time as ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    year, month, day, hour, minute, second, weekday = time.gmtime(seconds)[:7]
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"


def parse_date(text: str) -> int | None:
    """The time that any of the three forms names, None for anything else."""
    for form in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            break
    else:
        return None
    parts = match.groupdict()
    year = int(parts["Y"]) if "Y" in parts else _full_year(int(parts["y"]))
    month, day = _MONTHS.index(parts["b"]) + 1, int(parts["d"])
    hour, minute, second = int(parts["H"]), int(parts["M"]), int(parts["S"])
    if year < 1 or not 1 <= day <= calendar.monthrange(year, month)[1] or hour > 23 or minute > 59 or second > 60:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def _full_year(two_digits: int) -> int:
    # More than 50 years in the future means the past (RFC 9110 section 5.6.7); this century's rule will do.
    return 2000 + two_digits if two_digits < 70 else 1900 + two_digits
