"""Every regular expression takes linear time: `re` holds the interpreter, so a slow one would stop all clients.

Each is tried, the way that the source uses it, on texts of a head's greatest length made of its own characters:
a beginning that it matches, a pair of characters over and over, and an end that fits or does not.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import hexz
from hexz.protocol.http.head import MAX_HEAD
from tests.peers import ROOT

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as grammar
else:
    import sre_constants as codes
    import sre_parse as grammar

METHODS = ("match", "fullmatch", "search", "findall", "finditer", "sub", "subn", "split")
MOST_CPU_S = 0.1
"""What one text may take; a linear expression takes some milliseconds, a quadratic one several times this."""
MOST_S = 300
"""What all may take, on a machine that is busy with other things."""
MOST_TEXTS = 12_000
"""Texts for one expression: of more, some beginnings are left out."""
FOREIGN = "\x00"
QUADRATIC = r"[ ,]* *;"
EXPONENTIAL = r"(?:a|a)*b"


class Use(NamedTuple):
    """An expression, where it is used, and how."""

    place: str
    pattern: Any
    method: str


def uses() -> list[Use]:
    found: dict[tuple[Any, str], Use] = {}
    for module in pkgutil.walk_packages(hexz.__path__, "hexz."):
        if not module.name.endswith("__main__"):
            for use in uses_in(importlib.import_module(module.name)):
                found.setdefault((use.pattern, use.method), use)
    return list(found.values())


def uses_in(module: ModuleType) -> Iterator[Use]:
    """Of the expressions that a module compiles, and of those that it gives to `re` as they are."""
    tree = ast.parse(inspect.getsource(module))
    methods: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value
        if not isinstance(owner, ast.Name) or node.func.attr not in METHODS:
            continue
        methods.setdefault(owner.id, set()).add(node.func.attr)
        if owner.id == "re" and isinstance(node.args[0], ast.Constant):
            yield Use(f"{module.__name__}:{node.lineno}", re.compile(node.args[0].value), node.func.attr)
    for name, value in vars(module).items():
        for pattern in value if isinstance(value, tuple) else (value,):
            if isinstance(pattern, re.Pattern):
                for method in sorted(methods.get(name, {"fullmatch"})):
                    yield Use(f"{module.__name__}.{name}", pattern, method)


def characters(parsed: Any) -> set[int]:
    """A few for each literal, range and class of an expression."""
    found: set[int] = set()
    for code, value in parsed:
        if code in (codes.LITERAL, codes.NOT_LITERAL):
            found.add(value)
        elif code is codes.RANGE:
            found.update(value)
        elif code is codes.IN:
            found |= characters(value)
        elif code is codes.CATEGORY:
            found.update({codes.CATEGORY_DIGIT: b"0", codes.CATEGORY_SPACE: b" "}.get(value, b"a"))
        elif code is codes.BRANCH:
            found.update(*(characters(branch) for branch in value[1]))
        elif code is codes.ANY:
            found.add(ord("a"))
        elif isinstance(value, tuple):
            for part in value:
                if isinstance(part, grammar.SubPattern):
                    found |= characters(part)
    return found


def example(parsed: Any, times: int) -> str:
    """A short text that the expression matches, with `times` rounds of whatever may be repeated."""
    text = ""
    for code, value in parsed:
        if code is codes.LITERAL:
            text += chr(value)
        elif code is codes.IN:
            text += chr(max(characters([(code, value)]), default=97))
        elif code is codes.ANY:
            text += "a"
        elif code is codes.BRANCH:
            text += example(value[1][0], times)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = value
            text += example(inner, times) * max(least, min(times, int(most)))
        elif code is codes.SUBPATTERN:
            text += example(value[-1], times)
    return text


def texts(pattern: Any) -> Iterator[str]:
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    parsed = grammar.parse(source, pattern.flags & ~re.UNICODE)
    own = [chr(code) for code in sorted(characters(parsed)) if code < 256] or ["a"]
    beginnings = sorted({example(parsed, times)[:end] for times in (0, 1) for end in range(64)})
    pairs = [one + other for one in own for other in own]
    beginnings = beginnings[:: -(-2 * len(pairs) * len(beginnings) // MOST_TEXTS)]
    for pair in pairs:
        repeated = pair * (MAX_HEAD // 2)
        for beginning in beginnings:
            for end in ("", FOREIGN):
                yield beginning + repeated + end


def apply(use: Use, text: Any) -> None:
    method = getattr(use.pattern, use.method)
    if use.method in ("sub", "subn"):
        method(text[:0], text)
    elif use.method == "finditer":
        list(method(text))
    else:
        method(text)


def try_all(listed: list[Use]) -> int:
    for use in listed:
        print(f"{use.place}.{use.method}: {use.pattern.pattern!r}", flush=True)
        for text in texts(use.pattern):
            began = time.process_time()
            apply(use, text if isinstance(use.pattern.pattern, str) else text.encode("latin-1"))
            took = time.process_time() - began
            if took > MOST_CPU_S:
                print(f"{took:.2f} s for {text[:40]!r}...", flush=True)
                return 1
    return 0


def in_a_child(*arguments: str, seconds: float = MOST_S) -> tuple[int | None, str]:
    """The child's status, None if it had to be ended, and what it was at last."""
    command = [sys.executable, "-m", "tests.test_expressions", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            return child.wait(seconds), "".join(child.stdout or [""])[-2000:]
        except subprocess.TimeoutExpired:
            child.kill()
            return None, "".join(child.stdout or [""])[-2000:]


def test_every_expression_is_linear() -> None:
    status, said = in_a_child()
    assert status == 0, said


def test_the_trial_knows_expressions_that_are_not_linear() -> None:
    status, said = in_a_child(QUADRATIC)
    assert status == 1, said
    status, said = in_a_child(EXPONENTIAL, seconds=5)
    assert status is None, said


def test_all_rooms_are_looked_through() -> None:
    places = {use.place for use in uses()}
    assert {"hexz.protocol.http.conditions._TAG", "hexz.servers.http.repeated._RANGE", "hexz.units._SIZE"} <= places
    assert any(place.startswith("hexz.protocol.s3.keys:") for place in places)


if __name__ == "__main__":
    given = [Use("given", re.compile(text), "fullmatch") for text in sys.argv[1:]]
    sys.exit(try_all(given or uses()))
