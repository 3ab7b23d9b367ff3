"""The shape of the project: what lies where, and that dependencies point one way."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import hexz
from hexz import __version__
from tests.peers import ROOT, run

MAX_LINES = 500
TOP = {
    "hexz_serve.py",
    "hexz",
    "systemd",
    "tests",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "LICENSE",
}

# From the ground up: a module imports from its own floor and those before it.
FLOORS = [
    (
        "hexz.errors",
        "hexz.units",
        "hexz.jsontext",
        "hexz.installation",
        "hexz.printable",
        "hexz.logfile",
        "hexz.secretfile",
        "hexz.__init__",
    ),
    ("hexz.metrics",),
    ("hexz.format",),
    ("hexz.protocol",),
    ("hexz.storage",),
    ("hexz.cache",),
    ("hexz.snapshot",),
    ("hexz.catalog",),
    ("hexz.rights",),
    ("hexz.images", "hexz.control"),
    ("hexz.servers",),
    ("hexz.options",),
    ("hexz.tools",),
    ("hexz.daemon",),
    ("hexz.assembly",),
    ("hexz.cli", "hexz.__main__"),
]
NO_IO = {
    "hexz.format": {"os", "socket", "http", "threading.Thread", "hexz.storage"},
    "hexz.protocol": {
        "os",
        "socket",
        "http.server",
        "selectors",
        "threading",
        "hexz.snapshot",
        "hexz.catalog",
        "hexz.metrics",
    },
}


def floor_of(module: str) -> int:
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return 0 if module == "hexz" else len(FLOORS)


def modules() -> Iterator[tuple[str, Path, list[str]]]:
    for path in sorted((ROOT / "hexz").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        imported = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.append(node.module)
        yield name, path, imported


def test_dependencies_point_down() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, _, imported in modules()
        for other in imported
        if other.startswith("hexz") and floor_of(other) > floor_of(name)
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a floor neither, nor for the types' sake alone."""
    known = {name for name, _, _ in modules()}
    imports: dict[str, set[str]] = {name: set() for name in known}
    for name, path, _ in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
                imports[name] |= inner or {node.module}
    tuple(TopologicalSorter({name: found & known for name, found in imports.items()}).static_order())


def test_format_and_protocol_do_no_io() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, _, imported in modules()
        for package, banned in NO_IO.items()
        if name.startswith(package)
        for other in imported
        if any(other == bad or other.startswith(f"{bad}.") for bad in banned)
    ]
    assert not wrong


def test_modules_are_small_and_swallow_nothing() -> None:
    for name, path, _ in modules():
        text = path.read_text()
        assert text.count("\n") <= MAX_LINES, name
        assert not re.search(r"except[^\n]*:\s*\n?\s*pass\b", text), name
        assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text), name


def test_top_level_is_as_documented() -> None:
    listed = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    found = {line.split("/")[0] for line in listed}
    assert {name for name in found if not name.startswith(".")} <= TOP


def test_the_version_stands_once() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in settings and 'path = "hexz/__init__.py"' in settings
    assert not re.search(r"^version\b", settings, re.MULTILINE)
    sources = [ROOT / "hexz_serve.py", *(path for _, path, _ in modules()), *(ROOT / "systemd").rglob("*.*")]
    holding = [str(path.relative_to(ROOT)) for path in sources if path.is_file() and __version__ in path.read_text()]
    assert holding == ["hexz/__init__.py"]


def test_the_newest_changes_are_those_of_this_version() -> None:
    titles = re.findall(r"^## (\S+)(?: \((.*)\))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0][0] == __version__
    assert [title for title, _ in titles[-2:]] == ["0.1.0", "Compatibility"]
    for _, date in titles[1:-1]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_the_map_of_the_house_is_true() -> None:
    text = hexz.__doc__ or ""
    named = re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.md)`", text)
    assert len(named) > 20 and not [path for path in named if not (ROOT / path).exists()]
    rooms = re.findall(r"^    (\w+)/  ", text, re.MULTILINE)
    assert set(rooms) == {path.parent.name for path in (ROOT / "hexz").glob("*/__init__.py")}
    floors = [floor_of(f"hexz.{room}") for room in rooms]
    assert floors == sorted(floors), "from the ground up"
    known = {
        node.name for _, path, _ in modules() for node in ast.walk(ast.parse(path.read_text())) if named_node(node)
    }
    assert {"parse_arguments", "header_candidates", "_layout", "nbd_site"} <= known & set(
        re.findall(r"``(\w+)``", text)
    )


def named_node(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for name, path, _ in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield name, node


def test_a_public_class_has_its_name_for_itself() -> None:
    where: dict[str, list[str]] = {}
    for module, node in classes():
        if not node.name.startswith("_"):
            where.setdefault(node.name, []).append(module)
    assert {name: found for name, found in where.items() if len(found) > 1} == {}


def test_every_kind_of_trouble_is_in_a_module_of_errors() -> None:
    found = list(classes())
    bases = {node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases] for _, node in found}

    def is_trouble(name: str) -> bool:
        built_in = getattr(builtins, name, None)
        if isinstance(built_in, type):
            return issubclass(built_in, BaseException)
        return any(is_trouble(base) for base in bases.get(name, []))

    elsewhere = {(module, node.name) for module, node in found if is_trouble(node.name)}
    assert {(module, name) for module, name in elsewhere if module.rpartition(".")[2] != "errors"} == set()


WAITS = re.compile(
    r"\.acquire\(\)|\.wait\(\)|\.join\(\)|(tasks|queue|idle|ends)\.get\(\)"
    r"|poll\((None|.* else None\))|settimeout\(None\)|\.poll\(\)$|\.select\(\)"
)
"""Calls that may wait for ever."""


def test_what_waits_has_a_bound_or_says_why_it_needs_none() -> None:
    for _, path, _ in modules():
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if WAITS.search(line) and "select.poll()" not in line and ".process.poll()" not in line:
                said = "\n".join(lines[max(number - 1, 0) : number + 1]).lower()
                assert "no time-out" in said, f"{path}:{number + 1}: {line.strip()}"
