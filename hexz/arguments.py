"""What both command lines have in common: errors in one line, a guess at what was meant, and sizes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NoReturn

from hexz.errors import UnitError, UsageError
from hexz.units import parse_size

__all__ = ["Parser", "size"]

_UNKNOWN = re.compile(r"unrecognized arguments: (.*)")


class Parser(argparse.ArgumentParser):
    """Says what is wrong by an exception, and which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError."""
        found = _UNKNOWN.fullmatch(message)
        guess = self._guess(found[1].split(" ")) if found else ""
        raise UsageError(f"{message}{guess} (see {self.prog} --help)")

    def _guess(self, words: list[str]) -> str:
        import difflib

        known = sorted(set(_options(self)))
        for word in words:
            if word.startswith("-"):
                close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
                if close:
                    return f": did you mean {close[0]}?"
        return ""


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of its commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)


def size(text: str) -> int:
    """Bytes from text such as ``64K``, for `add_argument`.

    Raises: ArgumentTypeError.
    """
    try:
        return parse_size(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
