"""Which parents a thin snapshot may have its bytes from: whoever writes one into a folder names any file in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hexz.errors import ParentMissing, ParentRefused
from hexz.snapshot import Opener, new_context, open_snapshot, opening
from tests.crafted import Craft
from tests.peers import ROOT, Server, run

PLAIN = b"what is encrypted at rest".ljust(4096)
PASSWORD = b"secret"
OTHER_SALT = b"fedcba9876543210"


def encrypted_base(folder: Path) -> Path:
    craft = Craft()
    craft.encrypt(PASSWORD)
    craft.data(PLAIN)
    craft.page()
    folder.mkdir(exist_ok=True)
    return craft.write(folder / "base.hxz")


def child(path: Path, encrypt: bool = False, own: bool = False, parent: str = "base.hxz") -> Path:
    """A thin snapshot whose first block is its parent's; with `own` a block of its own behind it."""
    craft = Craft()
    craft.parents = [parent]
    if encrypt:
        craft.encrypt(PASSWORD, OTHER_SALT)
    craft.parent(4096)
    if own:
        craft.data(b"o" * 4096)
    craft.page()
    return craft.write(path)


def first_block(path: Path, *dirs: Path, password: bytes = PASSWORD) -> bytes:
    context = new_context(1 << 20, password, tuple(map(str, dirs)), workers=0)
    with open_snapshot(str(path), context) as snapshot:
        return b"".join(snapshot.streams["disk"].read(0, 4096))


@pytest.mark.parametrize(
    ("encrypt", "own", "allowed"),
    [
        (False, False, False),
        (False, True, False),
        (True, False, False),  # anybody can write a header that says encrypted
        (True, True, True),  # and only who knows the password a block that it opens
    ],
)
def test_an_encrypted_parent_is_read_for_who_knows_the_password(
    tmp_path: Path, encrypt: bool, own: bool, allowed: bool
) -> None:
    encrypted_base(tmp_path)
    path = child(tmp_path / "child.hxz", encrypt, own)
    if allowed:
        assert first_block(path) == PLAIN
    else:
        with pytest.raises(ParentRefused, match=f"--parent-dir {tmp_path}$"):
            first_block(path)
    assert first_block(path, tmp_path) == PLAIN


def test_an_encrypted_ancestor_needs_its_folder_named_too(tmp_path: Path) -> None:
    encrypted_base(tmp_path)
    child(tmp_path / "middle.hxz")
    path = child(tmp_path / "child.hxz", parent="middle.hxz", encrypt=True, own=True)
    with pytest.raises(ParentRefused, match=r"middle\.hxz: its parent .*base\.hxz is encrypted"):
        first_block(path)
    assert first_block(path, tmp_path) == PLAIN


def test_a_parent_that_is_open_already_is_no_exception(tmp_path: Path) -> None:
    base = encrypted_base(tmp_path)
    path = child(tmp_path / "child.hxz")
    opener = Opener(new_context(1 << 20, PASSWORD, workers=0))
    with opener.open(str(base)):
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ParentRefused):
            opener.open(str(path))
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_named_folder_is_the_parents_not_another(tmp_path: Path) -> None:
    encrypted_base(tmp_path / "vault")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "vault")
    path = child(tmp_path / "vault" / "child.hxz")
    with pytest.raises(ParentRefused):
        first_block(path, tmp_path / "other")
    assert first_block(path, tmp_path / "link") == PLAIN
    assert first_block(path, tmp_path) == PLAIN  # and what is below it


def test_no_parents(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(PLAIN)
    craft.page()
    base = craft.write(tmp_path / "base.hxz")
    path = child(tmp_path / "child.hxz")
    daemon = sys.executable, ROOT / "hexz_serve.py"
    with Server("--no-parents", "--http-port", 0, base) as server:
        assert server.http
    done = run(*daemon, "--no-parents", "--http-port", 0, path, check=False)
    assert done.returncode == 77
    assert "--no-parents was given" in done.stderr and "'base.hxz'" in done.stderr
    done = run(*daemon, "--no-parents", "--parent-dir", tmp_path, path, check=False)
    assert done.returncode == 2
    assert "contradict" in done.stderr


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_parent_that_becomes_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """Between the look at where a parent lies and its opening, somebody puts a link to a secret there."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
        craft = Craft()
        craft.data((b"s" if folder == outside else b"p") * 4096)
        craft.page()
        craft.write(folder / "base.hxz")
    path = child(inside / "child.hxz", parent="sub/base.hxz")
    assert first_block(path) == b"p" * 4096
    looked = opening.lies_in

    def look_and_swap(place: str, folder: str) -> bool:
        found = looked(place, folder)
        sub = inside / "sub"
        if place == str(sub / "base.hxz") and not (sub / "base.hxz").is_symlink() and not sub.is_symlink():
            if swapped == "file":
                (sub / "base.hxz").unlink()
                (sub / "base.hxz").symlink_to(outside / "base.hxz")
            else:
                sub.rename(inside / "away")
                sub.symlink_to(outside)
        return found

    monkeypatch.setattr(opening, "lies_in", look_and_swap)
    with pytest.raises(ParentMissing):
        first_block(path)
