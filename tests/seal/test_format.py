"""The bytes of a seal: as documented, at every size, and never believed before they are checked."""

from __future__ import annotations

import hashlib
import random
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexz.errors import HexzError, SealDamaged, SealMismatch, StorageError
from hexz.format.errors import DamagedSeal
from hexz.format.seal import FANOUT, HASH_SIZE, SealHeader, SealTree, parse_seal_header, seal_key
from hexz.storage import Storage
from hexz.storage.sealed import NO_POLICY, SealCache, SealPolicy, open_local
from tests.seal.making import seal_bytes

LEAF = 4096


def documented(data: bytes, leaf_size: int, key: bytes = b"") -> bytes:
    """A seal made straight from its description, with none of the package's code."""

    def digest(message: bytes, depth: int, number: int, last: bool = False) -> bytes:
        return hashlib.blake2b(
            message, digest_size=32, key=key, person=b"hexz seal 1", fanout=128, depth=255, leaf_size=leaf_size,
            inner_size=32, node_depth=depth, node_offset=number, last_node=last,
        ).digest()  # fmt: skip

    leaves = [data[at : at + leaf_size] for at in range(0, len(data), leaf_size)]
    levels = [[digest(leaf, 0, number) for number, leaf in enumerate(leaves)]]
    while len(levels[-1]) > 128:
        below = levels[-1]
        nodes = [b"".join(below[at : at + 128]) for at in range(0, len(below), 128)]
        levels.append([digest(node, len(levels), number) for number, node in enumerate(nodes)])
    fields = struct.pack("<8sIIIIQ", b"HEXZSUM\0", 1, 1 if key else 0, leaf_size, 32, len(data))
    root = digest(fields + b"".join(levels[-1]), len(levels), 0, last=True)
    return fields + root + b"".join(b"".join(level) for level in levels)


@pytest.mark.parametrize("key", [b"", b"k" * 64])
@pytest.mark.parametrize(
    "size", [0, 1, LEAF - 1, LEAF, LEAF + 1, 127 * LEAF, 128 * LEAF, 128 * LEAF + 1, 200 * LEAF + 5, 256 * LEAF]
)
def test_a_seal_is_what_its_description_says(size: int, key: bytes) -> None:
    data = random.Random(size).randbytes(size)
    assert seal_bytes(data, key or None, LEAF) == documented(data, LEAF, key)


def test_the_shape_of_a_terabyte() -> None:
    tree = SealTree(1 << 40, 16 << 10, None)
    assert tree.counts == (1 << 26, 1 << 19, 1 << 12, 1 << 5)
    assert tree.size == 64 + sum(tree.counts) * HASH_SIZE < (1 << 40) // 500
    place, length = tree.node_place(1, 4095)
    assert (place, length) == (64 + (1 << 26) * 32 + 4095 * 4096, 4096)


def test_three_levels_agree_with_each_other() -> None:
    """More leaves than are made of bytes in a test: every node's hash stands in the node above."""
    count = FANOUT * FANOUT * 2 + 3
    tree = SealTree(count * LEAF, LEAF, b"k" * 64)
    from hexz.format.seal import SealBuilder

    builder, seal = SealBuilder(tree), bytearray(tree.size)
    for number in range(count):
        for offset, data in builder.add(number.to_bytes(HASH_SIZE, "little")):
            seal[offset : offset + len(data)] = data
    header, rest = builder.finish()
    for offset, data in rest:
        seal[offset : offset + len(data)] = data
    assert len(tree.counts) == 3
    for level in range(2):
        for number in range(-(-tree.counts[level] // FANOUT)):
            place, length = tree.node_place(level, number)
            above, at = divmod(number, FANOUT)
            start = tree.node_place(level + 1, above)[0] + at * HASH_SIZE
            node = bytes(seal[place : place + length])
            assert seal[start : start + HASH_SIZE] == tree.node(level, number, node)
    top_place, top_length = tree.node_place(2, 0)
    assert parse_seal_header(bytes(seal)).root == header.root == tree.root(bytes(seal[top_place:][:top_length]))


@pytest.mark.parametrize(
    ("offset", "form", "value", "says"),
    [
        (0, "<8s", b"HEXZSUM\1", "no seal"),
        (0, "<8s", b"PK\3\4\0\0\0\0", "no seal"),
        (8, "<I", 0, "version 0"),
        (8, "<I", 2, "version 2"),
        (12, "<I", 2, "header is damaged"),
        (12, "<I", 0x80000001, "header is damaged"),
        (16, "<I", 0, "leaves of 0 bytes"),
        (16, "<I", 2048, "leaves of 2048 bytes"),
        (16, "<I", 5000, "leaves of 5000 bytes"),
        (16, "<I", 1 << 21, "leaves of 2097152 bytes"),
        (16, "<I", (1 << 32) - 1, "leaves of 4294967295 bytes"),
        (20, "<I", 16, "header is damaged"),
    ],
)
def test_a_header_that_cannot_be_right(offset: int, form: str, value: object, says: str) -> None:
    data = bytearray(SealHeader(LEAF, 100, False, bytes(32)).pack())
    struct.pack_into(form, data, offset, value)
    with pytest.raises(DamagedSeal, match=says):
        parse_seal_header(bytes(data))


@pytest.mark.parametrize("length", [0, 1, 31, 63])
def test_a_header_that_is_cut_off(length: int) -> None:
    with pytest.raises(DamagedSeal, match=f"only {length} bytes"):
        parse_seal_header(SealHeader(LEAF, 100, False, bytes(32)).pack()[:length])


def opened(
    path: Path, data: bytes, leaf: int = LEAF, seal: bytes | None = None, cache: SealCache | None = None
) -> Storage:
    path.write_bytes(data)
    Path(f"{path}.sum").write_bytes(seal_bytes(data, None, leaf) if seal is None else seal)
    return open_local(str(path), NO_POLICY, cache or SealCache())


@given(st.data())
def test_any_spans_are_the_files_bytes(tmp_path: Path, data: st.DataObject) -> None:
    leaf = data.draw(st.sampled_from([4096, 16384, 1 << 20]))
    size = data.draw(st.one_of(st.integers(1, 5 * leaf), st.integers(128 * 4096, 300 * 4096)))
    content = random.Random(size).randbytes(size)
    budget = data.draw(st.sampled_from([1, 3 * leaf, 4 << 20]))
    cache = SealCache(budget)
    storage = opened(tmp_path / "file", content, leaf, cache=cache)
    try:
        for _ in range(30):
            offset = data.draw(st.one_of(st.integers(0, size), st.integers(0, size // leaf).map(lambda n: n * leaf)))
            length = data.draw(st.integers(0, min(size - offset, 7 * leaf)))
            read = storage.view if data.draw(st.booleans()) else storage.read
            assert read(offset, length) == content[offset : offset + length]
            assert cache.held <= max(budget, leaf)
        with pytest.raises(StorageError):
            storage.read(size - 1, 2)
    finally:
        storage.close()


def test_one_leaf_in_the_memory_that_all_share_is_forgotten_with_its_file(tmp_path: Path) -> None:
    cache = SealCache()
    storage = opened(tmp_path / "file", bytes(300 * LEAF), cache=cache)
    storage.read(10, 10)
    assert cache.held == 2 * 4096  # the leaf, and the node that has its hash
    storage.close()
    assert cache.held == 0


def test_every_bit_of_a_small_seal_counts(tmp_path: Path) -> None:
    """No bit of a seal may be another: it is found at opening, or when what it covers is read."""
    content = random.Random(1).randbytes(2 * LEAF + 10)
    whole = seal_bytes(content, None, LEAF)
    for at in range(len(whole)):
        for bit in range(8):
            hurt = bytearray(whole)
            hurt[at] ^= 1 << bit
            with pytest.raises(HexzError) as caught:
                opened(tmp_path / "file", content, seal=bytes(hurt))
            assert "file.sum: " in str(caught.value)
            assert "\n" not in str(caught.value)


def test_damage_in_a_lower_level_of_the_seal_hurts_what_lies_below_alone(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(300 * LEAF)
    hurt = bytearray(seal_bytes(content, None, LEAF))
    hurt[64 + 200 * HASH_SIZE] ^= 1  # the hash of leaf 200, in the second node
    storage = opened(tmp_path / "file", content, seal=bytes(hurt))
    assert storage.read(0, 128 * LEAF) == content[: 128 * LEAF]
    assert storage.read(256 * LEAF, 44 * LEAF) == content[256 * LEAF :]
    for leaf in (128, 200, 255):
        with pytest.raises(SealMismatch, match="the seal is damaged"):
            storage.read(leaf * LEAF, 1)
    storage.close()


@pytest.mark.parametrize("change", [-1, -HASH_SIZE, -4096, 1, 32])
def test_a_seal_of_another_length(tmp_path: Path, change: int) -> None:
    content = bytes(300 * LEAF)
    whole = seal_bytes(content, None, LEAF)
    with pytest.raises(SealDamaged, match=f"has {len(whole) + change} bytes instead of {len(whole)}"):
        opened(tmp_path / "file", content, seal=(whole + bytes(max(change, 0)))[: len(whole) + change])


def test_leaves_do_not_fit_in_another_place(tmp_path: Path) -> None:
    """Two equal files but for the order of two leaves have no hash in common that fits the other."""
    one = b"a" * LEAF + b"b" * LEAF
    tree = SealTree(len(one), LEAF, None)
    assert tree.leaf(0, one[:LEAF]) != tree.leaf(1, one[:LEAF])
    storage = opened(tmp_path / "file", one[LEAF:] + one[:LEAF], seal=seal_bytes(one, None, LEAF))
    for offset in (0, LEAF):
        with pytest.raises(SealMismatch):
            storage.read(offset, 1)
    storage.close()


def test_a_key_is_more_than_a_flag(tmp_path: Path) -> None:
    content, path = bytes(5 * LEAF), tmp_path / "file"
    path.write_bytes(content)
    key, other = seal_key(b"the secret behind it"), seal_key(b"another one")
    plain, keyed = seal_bytes(content, None, LEAF), bytearray(seal_bytes(content, key, LEAF))
    tampered = {
        "keyed by flag alone": plain[:12] + b"\1" + plain[13:],
        "made with another key": seal_bytes(content, other, LEAF),
        "root changed": bytes(keyed[:40]) + bytes([keyed[40] ^ 1]) + bytes(keyed[41:]),
    }
    for story, seal in tampered.items():
        Path(f"{path}.sum").write_bytes(seal)
        with pytest.raises(SealDamaged, match="another key"):
            open_local(str(path), SealPolicy(key), SealCache())
            pytest.fail(story)
    Path(f"{path}.sum").write_bytes(keyed)
    open_local(str(path), SealPolicy(key, True), SealCache()).close()


def test_many_threads_read_one_sealed_file(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(400 * LEAF + 7)
    storage = opened(tmp_path / "file", content, cache=SealCache(20 * LEAF))
    wrong: list[int] = []

    def read(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(300):
            offset = source.randrange(len(content))
            length = min(source.randrange(8 * LEAF), len(content) - offset)
            if storage.read(offset, length) != content[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    storage.close()
