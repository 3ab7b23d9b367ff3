"""Every block of a file has one place in it: pages are numbered through, and streams end where their blocks do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hexz.errors import CorruptSnapshot
from hexz.snapshot import new_context, open_snapshot
from tests.crafted import Craft

PASSWORD = b"secret"


def listed(craft: Craft, *numbers: int) -> None:
    """List of the disk's pages just these, in this order, as if they were the whole disk."""
    pages = [craft.pages["main"][number] for number in numbers]
    craft.pages["main"] = [page._replace(position=100 * at) for at, page in enumerate(pages)]
    craft.sizes["main"] = 100 * len(pages)


def moved(craft: Craft) -> None:
    """The disk's second page becomes the memory's."""
    page = craft.pages["main"].pop(1)
    listed(craft, 0, 1)
    craft.pages["aux"].append(page._replace(position=100))
    craft.sizes["aux"] = 200


def renumbered(craft: Craft) -> None:
    craft.pages["main"][2] = craft.pages["main"][2]._replace(first_block=3)


EDITS: dict[str, Callable[[Craft], None]] = {
    "two pages swapped": lambda craft: listed(craft, 1, 0, 2),
    "reversed": lambda craft: listed(craft, 2, 1, 0),
    "the first cut off": lambda craft: listed(craft, 1, 2),
    "the middle cut out": lambda craft: listed(craft, 0, 2),
    "moved to the other stream": moved,
    "numbered wrongly": renumbered,
}


def made(layout: str, encrypted: bool) -> Craft:
    """A disk of three pages of one block and a memory of one."""
    craft = Craft(layout)
    if encrypted:
        craft.encrypt(PASSWORD)
    for letter in (b"a", b"b", b"c", b"m"):
        craft.data(letter * 100)
        craft.page("aux" if letter == b"m" else "main")
    return craft


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("layout", ["A20", "C52"])
def test_pages_listed_otherwise_are_refused(tmp_path: Path, layout: str, encrypted: bool, edit: str) -> None:
    craft = made(layout, encrypted)
    whole = craft.write(tmp_path / "whole.hxz")
    context = new_context(1 << 20, PASSWORD, workers=0)
    with open_snapshot(str(whole), context) as snapshot:
        assert b"".join(snapshot.streams["disk"].read(0, 300)) == b"a" * 100 + b"b" * 100 + b"c" * 100
    EDITS[edit](craft)
    with pytest.raises(CorruptSnapshot, match="do not number the blocks"):
        open_snapshot(str(craft.write(tmp_path / "edited.hxz")), context)


def test_streams_may_take_turns(tmp_path: Path) -> None:
    craft = Craft()
    for at, stream in enumerate(("aux", "main", "main", "aux", "main")):
        craft.data(bytes([65 + at]) * 10)
        craft.page(stream)
    with open_snapshot(str(craft.write(tmp_path / "t.hxz")), new_context(1 << 20, workers=0)) as snapshot:
        found = {name: b"".join(stream.read(0, stream.size)) for name, stream in snapshot.streams.items()}
    assert found == {"disk": b"B" * 10 + b"C" * 10 + b"E" * 10, "memory": b"A" * 10 + b"D" * 10}


def test_a_page_that_holds_more_blocks_than_its_numbers(tmp_path: Path) -> None:
    """A page of 5 entries of 52 bytes has the length of one with 13 of 20: the next page's number says which."""
    craft = Craft("C52")
    for _ in range(5):
        craft.data(b"x" * 20)
    first = craft.page()
    craft.data(b"y" * 100)
    craft.page()
    craft.body[first.offset - 4096] = 13
    with open_snapshot(str(craft.write(tmp_path / "t.hxz")), new_context(1 << 20, workers=0)) as snapshot:
        with pytest.raises(CorruptSnapshot, match="fits no entry size"):
            snapshot.streams["disk"].read(0, 1)


@pytest.mark.parametrize("stream", ["main", "aux"])
@pytest.mark.parametrize("by", [-1, 1, 1 << 40])
def test_a_size_that_the_blocks_do_not_have(tmp_path: Path, stream: str, by: int) -> None:
    craft = made("B52", False)
    craft.sizes[stream] += by
    with pytest.raises(CorruptSnapshot, match="size is said to be"):
        open_snapshot(str(craft.write(tmp_path / "t.hxz")), new_context(1 << 20, workers=0))


def test_a_damaged_last_page_is_told_to_its_readers_alone(tmp_path: Path) -> None:
    craft = made("B52", False)
    craft.body[craft.pages["main"][2].offset - 4096] = 2
    with open_snapshot(str(craft.write(tmp_path / "t.hxz")), new_context(1 << 20, workers=0)) as snapshot:
        assert b"".join(snapshot.streams["disk"].read(0, 200)) == b"a" * 100 + b"b" * 100
        with pytest.raises(CorruptSnapshot):
            snapshot.streams["disk"].read(200, 100)
