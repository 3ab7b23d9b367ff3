"""The options as a typed value: a field for each, whose type is that of every value that the parser gives."""

from __future__ import annotations

import argparse

import pytest

from hexz.config import option_parser
from hexz.errors import UsageError
from hexz.options import Options

ACTIONS = {
    action.dest: action for action in option_parser()._actions if action.dest not in ("version", argparse.SUPPRESS)
}
SAMPLES = ("600", "word")
"""What is given to an option that takes a value: the first that it takes."""


def fits(value: object, kind: str) -> bool:
    """Whether the value is of the type that the field's annotation names."""
    for one in kind.split(" | "):
        if one == "None" and value is None:
            return True
        if one.startswith("tuple[") and isinstance(value, tuple):
            return all(fits(member, one[len("tuple[") : -len(", ...]")]) for member in value)
        if type(value).__name__ == one:
            return True
    return False


def parsed(words: list[str]) -> Options:
    return Options.of(option_parser().parse_args(words))


def given(action: argparse.Action) -> Options:
    """The options of a command line that has this one, with a value if it takes one."""
    if not action.option_strings:
        return parsed(["word", "word"])
    (name,) = action.option_strings
    if action.nargs == 0:
        return parsed([name])
    for sample in [*(action.choices or ()), *SAMPLES]:
        try:
            return parsed([f"{name}={sample}"])
        except UsageError as error:
            refused = error
    raise refused


def test_every_option_has_its_field_and_every_field_its_option() -> None:
    assert set(ACTIONS) == set(Options._fields)
    with pytest.raises(TypeError):
        Options.of(argparse.Namespace(unknown=1))


@pytest.mark.parametrize("name", Options._fields)
def test_a_field_has_the_type_that_it_says(name: str) -> None:
    kind = Options.__annotations__[name]
    kind = getattr(kind, "__forward_arg__", kind)
    default, value = (getattr(options, name) for options in (parsed([]), given(ACTIONS[name])))
    assert fits(default, kind) and fits(value, kind), (default, value, kind)
