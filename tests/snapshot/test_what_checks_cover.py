"""What an edit of a file comes to: noticed or not, in plain files, in encrypted ones, and beside a seal.

An edit is one that fits with everything that it touches, as somebody makes it who knows the format and not the
password; the manual has this table.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lz4.block
import pytest
import zstandard

from hexz.errors import HexzError
from hexz.snapshot import new_context, open_snapshot
from tests.crafted import Craft
from tests.seal.making import write_seal

PASSWORD = b"secret"
SIZE = 2000
SALTS = (b"0123456789abcdef", b"fedcba9876543210")


class Edit(NamedTuple):
    """What somebody does: to the file before its last page is made, to the whole of it, or to its bytes.

    `plain` and `encrypted` say whether it is noticed without a seal.
    """

    plain: bool
    encrypted: bool
    entries: Callable[[Craft], None] | None = None
    whole: Callable[[Craft], None] | None = None
    stored: Callable[[bytes], bytes] | None = None


def swapped(craft: Craft) -> None:
    craft.entries[0], craft.entries[1] = craft.entries[1], craft.entries[0]


def repeated(craft: Craft) -> None:
    craft.entries[1] = craft.entries[0]


def zeroed(craft: Craft) -> None:
    craft.entries.pop()
    craft.zero(SIZE)


def rewritten(craft: Craft) -> None:
    craft.entries.pop()
    craft.raw(lz4.block.compress(b"forged".ljust(SIZE), store_size=True), SIZE)


def cut_off(craft: Craft) -> None:
    craft.pages["main"].pop()
    craft.sizes["main"] -= 3 * SIZE


def listed_otherwise(craft: Craft) -> None:
    craft.pages["main"].reverse()


def listed_and_numbered_otherwise(craft: Craft) -> None:
    first, second = craft.pages["main"]
    craft.pages["main"] = [
        second._replace(first_block=0, position=0),
        first._replace(first_block=3, position=3 * SIZE),
    ]


def another_parent(craft: Craft) -> None:
    craft.parents = ["other.hxz"]


def a_bit_of_a_block(data: bytes) -> bytes:
    return data[:4200] + bytes([data[4200] ^ 1]) + data[4201:]


EDITS = {
    "a bit of a stored block": Edit(True, True, stored=a_bit_of_a_block),
    "a block rewritten with its CRC": Edit(False, True, entries=rewritten),
    "entries swapped": Edit(False, True, entries=swapped),
    "an entry repeated": Edit(False, True, entries=repeated),
    "an entry made zeros": Edit(False, False, entries=zeroed),
    "the last page cut off": Edit(False, False, whole=cut_off),
    "pages listed in another order": Edit(True, True, whole=listed_otherwise),
    "pages listed and numbered in another order": Edit(False, True, whole=listed_and_numbered_otherwise),
    "another parent in the header": Edit(False, False, whole=another_parent),
}


def build(path: Path, encrypted: bool, edit: Edit | None = None) -> Path:
    """A disk of two pages with three blocks each, of which one is a parent's."""
    craft = Craft("A20")
    craft.parents = ["base.hxz"]
    if encrypted:
        craft.encrypt(PASSWORD, SALTS[0])
    for letter in (b"a", b"b", b"c"):
        craft.data(letter * SIZE)
    if edit is not None and edit.entries is not None:
        edit.entries(craft)
    craft.page()
    for letter in (b"d", b"e"):
        craft.data(letter * SIZE)
    craft.parent(SIZE)
    craft.page()
    if edit is not None and edit.whole is not None:
        edit.whole(craft)
    data = craft.finish()
    path.write_bytes(data if edit is None or edit.stored is None else edit.stored(data))
    return path


def parents(folder: Path, encrypted: bool) -> None:
    for name in ("base", "other"):
        craft = Craft("A20")
        if encrypted:
            craft.encrypt(PASSWORD, SALTS[1])
        for _ in range(6):
            craft.data(name.encode().ljust(SIZE))
        craft.page()
        craft.write(folder / f"{name}.hxz")


def read(path: Path) -> bytes:
    with open_snapshot(str(path), new_context(1 << 20, PASSWORD, workers=0)) as snapshot:
        disk = snapshot.streams["disk"]
        return b"".join(bytes(view) for view in disk.read(0, disk.size))


def noticed(path: Path, right: bytes) -> bool:
    try:
        assert read(path) != right, "the edit changed nothing"
    except HexzError:
        return True
    return False


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("what", EDITS)
def test_edits_of_index_and_blocks(tmp_path: Path, what: str, encrypted: bool) -> None:
    edit, path = EDITS[what], tmp_path / "snap.hxz"
    parents(tmp_path, encrypted)
    right = read(build(path, encrypted))
    build(path, encrypted, edit)
    assert noticed(path, right) is (edit.encrypted if encrypted else edit.plain)
    write_seal(build(path, encrypted))
    assert read(path) == right
    build(path, encrypted, edit)
    with pytest.raises(HexzError):
        read(path)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_an_edit_of_the_dictionary(tmp_path: Path, encrypted: bool) -> None:
    """It is in clear, and nothing of an encrypted file covers it; the frames' own checksums do where there are any."""
    source = random.Random(3)
    texts = [b"".join(b"field %d of a record; " % source.randrange(40) for _ in range(60)) for _ in range(200)]
    craft, path = Craft("A20", "zstd"), tmp_path / "snap.hxz"
    craft.train(zstandard.train_dictionary(4096, texts).as_bytes())
    if encrypted:
        craft.encrypt(PASSWORD)
    craft.data(texts[0])
    craft.page()
    write_seal(craft.write(path))
    assert read(path) == texts[0]
    place = 4096, 4096 + 4096
    data = path.read_bytes()
    path.write_bytes(data[: place[0]] + data[slice(*place)].replace(b"record", b"RECORD") + data[place[1] :])
    with pytest.raises(HexzError):
        read(path)
    Path(f"{path}.sum").unlink()
    assert read(path) == texts[0].replace(b"record", b"RECORD")
