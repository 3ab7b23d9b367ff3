"""Random damage anywhere in files of every layout: the right bytes or a HexzError, never anything else.

Some fields have no second copy and no checksum in the format, so that no reader
can notice a change; `unprotected` lists them, and the damage stays out of them (but not in
``tests/seal``: a seal beside the file protects all of it):

* an entry without stored bytes says by its offset alone whether it is zeros or the
  parent's, and by its hash alone what of the parent's it is;
* the size of a stream without pages stands nowhere else;
* a dictionary is checked by nothing but the frames' own checksums, which only our
  writer makes.
"""

from __future__ import annotations

import random
import struct
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexz.errors import HexzError
from hexz.snapshot import Snapshot, new_context, open_snapshot
from hexz.tools.pack import pack
from tests import samples
from tests.bounds import little_memory
from tests.conftest import CORPUS
from tests.crafted import Craft

PASSWORD = b"secret"
LONGEST_S = 10
"""More than reading any damaged file may take of the processors: a hundred times what it does."""
EXTREMES = (0, 1, 2, 4095, 4096, 4097, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1)

FAMILIES = [
    ("0.1.1-lz4-thin-child.hxz", "0.1.1-lz4-thin-base.hxz"),
    ("0.1.1-zstd-builder-segments.hxz",),
    ("0.4.5-zstd-small.hxz",),
    ("0.5.0-lz4-thin-child-grown-bs8192.hxz", "0.5.0-lz4-thin-base.hxz"),
    ("0.5.0-zstd-disk+mem.hxz",),
    ("0.5.1-zstd-par-child.hxz", "0.5.1-zstd-par-base.hxz"),
    ("0.5.5-lz4-signed.hxz",),
    ("0.5.5-zstd-par-moved.hxz", "0.5.5-zstd-par-base.hxz"),
    ("0.6.0-zstd-builder-sparse.hxz",),
    ("0.7.0-zstd-xor-child.hxz", "0.7.0-zstd-xor-base.hxz"),
    ("0.8.0-zstd-dir-child.hxz", "0.8.0-zstd-dir.hxz"),
    ("0.8.2-lz4-bigblock.hxz",),
]
"""From the released writers: a file, and the parents that it needs."""


class Field(NamedTuple):
    """A number in a file: where, and how many bytes it has."""

    offset: int
    width: int


class Case(NamedTuple):
    """A family of files, the first of which is read, and what its streams hold."""

    name: str
    files: dict[str, bytes]
    streams: dict[str, bytes]

    def __repr__(self) -> str:
        return self.name


class Hurt(NamedTuple):
    """A damaged file, and how it came to that."""

    story: str
    data: bytes

    def __repr__(self) -> str:
        return self.story


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: b"".join(stream.read(0, stream.size)) for name, stream in snapshot.streams.items()}


def crafted(layout: str, compression: str, encrypted: bool) -> bytes:
    """A file of several small pages with data, repeats and zeros in both streams."""
    craft = Craft(layout, compression)
    if encrypted:
        craft.encrypt(PASSWORD)
    source = random.Random(layout)
    for number in range(24):
        craft.data(source.randbytes(source.randint(1, 3000)) if number % 3 else b"words " * 300)
        if number % 5 == 4:
            craft.zero(5000)
        if number % 6 == 5:
            craft.page("main" if number < 18 else "aux")
    return craft.finish()


@cache
def cases() -> list[Case]:
    """Every family, whole."""
    with tempfile.TemporaryDirectory() as folder:
        return make_cases(Path(folder))


def make_cases(folder: Path) -> list[Case]:
    families: list[tuple[str, ...]] = [*FAMILIES]
    for names in FAMILIES:
        for name in names:
            (folder / name).write_bytes((CORPUS / name).read_bytes())
    for layout in ("A20", "A52", "B52", "C52"):
        for compression in ("lz4", "zstd"):
            name = f"{layout}-{compression}"
            (folder / name).write_bytes(crafted(layout, compression, False))
            families.append((name,))
        (folder / f"{layout}-encrypted").write_bytes(crafted(layout, "lz4", True))
        families.append((f"{layout}-encrypted",))
    image = samples.image(200_000)
    (folder / "raw").write_bytes(image)
    (folder / "changed").write_bytes(image[:50_000] + b"another" * 2000 + image[64_000:])
    pack(str(folder / "raw"), str(folder / "lz4"), str(folder / "changed"), block_size=4096)
    pack(str(folder / "raw"), str(folder / "zstd"), compression="zstd", block_size=5000)
    pack(str(folder / "raw"), str(folder / "trained"), compression="zstd", block_size=512, dictionary=True)
    pack(str(folder / "changed"), str(folder / "thin"), block_size=4096, parent=str(folder / "lz4"))
    families += [("lz4",), ("zstd",), ("trained",), ("thin", "lz4")]
    found = []
    for names in families:
        with open_snapshot(str(folder / names[0]), new_context(password=PASSWORD)) as snapshot:
            streams = contents(snapshot)
        found.append(Case(names[0], {name: (folder / name).read_bytes() for name in names}, streams))
    return found


@cache
def fields(data: bytes) -> tuple[list[Field], list[range]]:
    """The numbers of header, index and pages; and the bytes that nothing protects."""
    index_offset = struct.unpack_from("<Q", data, 12)[0]
    found = [Field(4, 4), Field(8, 4), Field(12, 8), Field(20, 8), Field(28, 8)]
    found += [Field(offset, 1) for offset in range(20, 90)]
    unprotected: list[range] = []
    at = index_offset
    pages: list[tuple[int, int]] = []
    counts = []
    for _ in range(2):
        count = struct.unpack_from("<Q", data, at)[0]
        counts.append(count)
        found.append(Field(at, 8))
        at += 8
        for _ in range(count):
            found += [Field(at, 8), Field(at + 8, 4), Field(at + 12, 8), Field(at + 20, 8)]
            pages.append(struct.unpack_from("<QI", data, at))
            at += 28
    for count in counts:
        if count:
            found.append(Field(at, 8))
        else:
            unprotected.append(range(at, at + 8))
        at += 8
    for offset, length in pages:
        found.append(Field(offset, 8))
        count = struct.unpack_from("<Q", data, offset)[0]
        size = (length - 8) // count
        for entry in range(offset + 8, offset + length, size):
            found += [Field(entry, 8), Field(entry + 8, 4), Field(entry + 12, 4), Field(entry + 16, 4)]
            if not struct.unpack_from("<I", data, entry + 8)[0]:
                unprotected.append(range(entry, entry + 8))
            unprotected.append(range(entry + 20, entry + size))
    return found, unprotected


def dictionary_of(data: bytes) -> range:
    at = data.find(b"\x37\xa4\x30\xec", 4096, 4100)
    return range(4096, 4096 + 112_640) if at == 4096 else range(0)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, own: bool, anywhere: bool = False) -> Hurt:
    """The file with something wrong; but for what nothing protects, unless it may be `anywhere`."""
    numbers, unprotected = fields(data)
    story = kind = draw(st.sampled_from(["flip", "flip", "field", "field", "field", "noise", "zeros", "cut", "grow"]))
    if kind == "cut":
        length = draw(st.integers(0, len(data) - 1))
        return Hurt(f"cut at {length} of {len(data)}", data[:length])
    if kind == "grow":
        return Hurt("grown", data + random.Random(draw(st.integers(0, 99))).randbytes(draw(st.integers(1, 5000))))
    hurt = bytearray(data)
    field = draw(st.sampled_from(numbers))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 3))):
            inside = st.integers(field.offset, field.offset + field.width - 1)
            at = draw(st.one_of(inside, st.integers(0, len(data) - 1)))
            hurt[at] ^= 1 << draw(st.integers(0, 7))
            story += f" a bit at {at}"
    elif kind == "field":
        old = int.from_bytes(data[field.offset : field.offset + field.width], "little")
        near = st.integers(-4, 4).map(lambda by: old + by)
        new = draw(st.one_of(st.sampled_from(EXTREMES), near, st.integers(0, (1 << 64) - 1)))
        hurt[field.offset : field.offset + field.width] = (new % (1 << 8 * field.width)).to_bytes(field.width, "little")
        story += f" {field} from {old} to {new}"
    else:
        at = draw(st.one_of(st.just(field.offset), st.integers(0, len(data) - 1)))
        length = min(draw(st.integers(1, 64)), len(data) - at)
        noise = random.Random(draw(st.integers(0, 999)))
        story += f" at {at}+{length}"
        hurt[at : at + length] = noise.randbytes(length) if kind == "noise" else bytes(length)
    kept = [] if anywhere else [*unprotected, *([] if own else [dictionary_of(data)])]
    for span in kept:
        hurt[span.start : span.stop] = data[span.start : span.stop]
    return Hurt(story, bytes(hurt))


def check(snapshot: Snapshot, expected: dict[str, bytes], step: int) -> None:
    """Whatever is read is right, and what is left out has failed; the extents tile what they describe."""
    for name, right in expected.items():
        stream = snapshot.streams.get(name)
        assert stream is not None, f"the {name} stream has vanished"
        errors = 0
        for offset in range(0, min(stream.size, len(right) + step), step):
            length = min(step, stream.size - offset)
            try:
                views = stream.read(offset, length)
            except HexzError as error:
                errors += 1
                assert "\n" not in str(error)
            else:
                assert b"".join(views) == right[offset : offset + length]
                cached = stream.read_cached(offset, length)
                assert cached is None or b"".join(cached) == right[offset : offset + length]
        # A size of 0 with blocks behind it is what packing a pipe leaves: the file says that it is odd.
        assert errors or stream.size == len(right) or name in snapshot.undeclared
        for extents in (stream.extents, stream.flat_extents):
            at = 0
            try:
                for extent in extents(0, stream.size):
                    assert extent.start == at
                    assert extent.length > 0
                    if extent.kind == "zero":
                        assert not any(right[at : at + extent.length])
                    at += extent.length
                assert at == stream.size
            except HexzError:
                pass
    try:
        _ = snapshot.files
    except HexzError:
        pass


@given(data=st.data())
@settings(max_examples=settings.default.max_examples * 20 if settings.default else 1200)
def test_damage_is_an_error_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    case = data.draw(st.sampled_from(cases()), label="case")
    victim = data.draw(st.sampled_from(sorted(case.files)), label="file")
    hurt = data.draw(damaged(case.files[victim], case.name == "trained"), label="damage")
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(hurt.data if name == victim else content)
    began = time.process_time()
    with little_memory():
        context = new_context(1 << 20, PASSWORD)
        try:
            with open_snapshot(str(tmp_path / case.name), context) as snapshot:
                check(snapshot, case.streams, data.draw(st.sampled_from([1000, 4096, 65536])))
        except HexzError as error:
            assert "\n" not in str(error)
        finally:
            context.workers.stop()
    assert time.process_time() - began < LONGEST_S


def test_every_cut_of_a_small_file(tmp_path: Path) -> None:
    craft = Craft()
    craft.data(b"some bytes")
    craft.zero(100)
    craft.page()
    whole = craft.finish()
    for length in range(len(whole)):
        (tmp_path / "t.hxz").write_bytes(whole[:length])
        with pytest.raises(HexzError):
            open_snapshot(str(tmp_path / "t.hxz"), new_context(1 << 20))


@pytest.mark.parametrize("layout", ["A20", "B52"])
def test_every_bit_of_a_small_file(tmp_path: Path, layout: str) -> None:
    craft = Craft(layout)
    craft.data(b"some bytes")
    craft.data(b"more")
    craft.page()
    whole = craft.finish()
    _, unprotected = fields(whole)
    free = {at for span in unprotected for at in span}
    path = tmp_path / "t.hxz"
    for at in (at for at in range(len(whole)) if at not in free and (at < 60 or at >= 4090)):
        for bit in range(8):
            hurt = bytearray(whole)
            hurt[at] ^= 1 << bit
            path.write_bytes(hurt)
            try:
                with open_snapshot(str(path), new_context(1 << 20, workers=0)) as snapshot:
                    check(snapshot, {"disk": b"some bytesmore"}, 14)
            except HexzError:
                pass
