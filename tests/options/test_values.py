"""The options as a typed value: a field for each, whose type is that of every value that the parser gives."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from hexz.errors import UsageError
from hexz.options.parser import option_parser
from hexz.options.values import Options
from hexz.tools.command_line import COMMANDS, command_parser, parse_command

IN_NO_FIELD = {"version", "help", argparse.SUPPRESS}


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest not in IN_NO_FIELD}


def commands() -> dict[str, argparse.ArgumentParser]:
    (choice,) = (action for action in command_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choice.choices)


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


def words_for(action: argparse.Action) -> list[list[str]]:
    """Command lines that give this one, of which at least one is right."""
    if not action.option_strings:
        return [[]]
    (name,) = action.option_strings
    return [[name]] if action.nargs == 0 else [[f"{name}={sample}"] for sample in (*(action.choices or ()), *SAMPLES)]


def given(parse: Callable[[list[str]], Any], action: argparse.Action) -> Any:
    for words in words_for(action):
        try:
            return parse(words)
        except UsageError as error:
            refused = error
    raise refused


def check_types(parse: Callable[[list[str]], Any], actions: dict[str, argparse.Action]) -> None:
    for name, action in actions.items():
        for options in (parse([]), given(parse, action)):
            kind = type(options).__annotations__[name]
            value = getattr(options, name)
            assert fits(value, getattr(kind, "__forward_arg__", kind)), (name, kind, value)


def test_every_option_has_its_field_and_every_field_its_option() -> None:
    assert set(actions_of(option_parser())) == set(Options._fields)
    with pytest.raises(TypeError):
        Options.of(argparse.Namespace(unknown=1))


def test_a_field_has_the_type_that_it_says() -> None:
    def parse(words: list[str]) -> Options:
        return Options.of(option_parser().parse_args(["snap.hxz", *words]))

    check_types(parse, actions_of(option_parser()))


def test_a_field_of_another_type_is_found() -> None:
    assert not fits("1", "int | None") and not fits(None, "str") and not fits(("a",), "tuple[int, ...]")
    assert not fits(["a"], "tuple[str, ...]") and not fits(1, "float")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_of_the_toolbox_has_its_fields(command: str) -> None:
    actions = actions_of(commands()[command])
    assert set(actions) == set(COMMANDS[command]._fields)
    assert set(commands()) == set(COMMANDS)
    places = ["word" for action in actions.values() if not action.option_strings]

    def parse(words: list[str]) -> Any:
        made = parse_command([command, *places, *words])
        assert type(made) is COMMANDS[command]
        return made

    check_types(parse, actions)
