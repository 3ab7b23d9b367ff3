"""What both command lines have in common: errors in one line, a guess at what was meant, short help, and sizes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

from hexz.errors import UnitError, UsageError
from hexz.installation import versions
from hexz.units import parse_size

__all__ = ["HelpAction", "Parser", "VersionAction", "size"]

ALL = "all"
"""What --help takes to show every option."""
_UNKNOWN = re.compile(r"unrecognized arguments: (.*)")


class Parser(argparse.ArgumentParser):
    """Says what is wrong by an exception, and which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError."""
        found = _UNKNOWN.fullmatch(message)
        guess = self._guess(found[1].split(" ")) if found else ""
        short = any(isinstance(action, HelpAction) for action in self._actions)
        raise UsageError(f"{message}{guess} (see {self.prog} --help{f' {ALL}' if short else ''})")

    def _guess(self, words: list[str]) -> str:
        import difflib

        known = sorted(set(_options(self)))
        for word in words:
            if word.startswith("-"):
                close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
                if close:
                    return f": did you mean {close[0]}?"
        return ""


class HelpAction(argparse.Action):
    """--help of a program with many options: it shows the common ones, and ``--help all`` every one."""

    def __init__(self, option_strings: Sequence[str], dest: str, common: Collection[str], help: str) -> None:
        """`common` are the long options that the short help shows, as they are written."""
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, metavar=ALL, help=help
        )
        self.common = common

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        """Print and end the program with status 0."""
        if values != ALL:
            for action in parser._actions:
                if action is not self and action.option_strings and action.option_strings[-1] not in self.common:
                    action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


class VersionAction(argparse.Action):
    """--version: the packages are looked for only when somebody asks, because it takes time and they may be missing."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        """`help` is its line in --help."""
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        """Print and end the program with status 0."""
        print(versions(), flush=True)
        parser.exit()


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
