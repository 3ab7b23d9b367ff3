"""NBD: every option of the handshake, every command in each form of reply, TLS."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.corpus.talk import END, PART, Case, Step

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS, RESIZE = range(9)
SIZE = 90001
"""Of the default export."""
GREETED = (Step(b"", "take 18"), Step(b"\0\0\0\3", PART))


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option; `length` lies about its data."""
    return b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string with its length, or another."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(data) if length is None else length) + data


def info(name: str | bytes, *wanted: int, count: int | None = None) -> bytes:
    """The data of INFO and GO."""
    return text(name) + struct.pack(f">H{len(wanted)}H", len(wanted) if count is None else count, *wanted)


def meta(name: str, *queries: str, count: int | None = None) -> bytes:
    """The data of the two about meta contexts."""
    return text(name) + struct.pack(">I", len(queries) if count is None else count) + b"".join(map(text, queries))


BASE, PARENT = "base:allocation", "hexz:parent"
OPTIONS: list[tuple[int, bytes]] = [
    (LIST, b""),
    (LIST, b"x"),
    (STARTTLS, b""),
    (STARTTLS, b"x"),
    (STRUCTURED, b""),
    (STRUCTURED, b"x"),
    (EXTENDED, b""),
    (EXTENDED, b"x"),
    (4, b""),
    (4, b"x"),
    (0, b""),
    (12, b""),
    (99, b"junk"),
    (0xFFFF_FFFF, b""),
    (0x4000_0000, b"a" * 1000),
    *(
        (number, data)
        for number in (INFO, GO)
        for data in (
            info(""),
            info("snap"),
            info("snap/memory"),
            info("thin"),
            info("memonly/memory"),
            info("memonly"),
            info("archive"),
            info("nothing"),
            info(b"\xff"),
            info("a" * 4096),
            info("a" * 4097),
            info("", 0),
            info("", 1),
            info("", 2),
            info("", 3),
            info("", 0, 1, 2, 3),
            info("", 3, 3, 99),
            info("", count=1),
            info("", 1, count=0),
            b"",
            b"\0\0\0",
            text("x", 99),
            text(""),
            info("") + b"x",
            info("pages", 3),
            info("big", 1, 2, 3),
        )
    ),
    *(
        (number, data)
        for number in (LIST_META, SET_META)
        for data in (
            meta(""),
            meta("", BASE),
            meta("", PARENT),
            meta("", BASE, PARENT),
            meta("", "base:"),
            meta("", "hexz:"),
            meta("", "qemu:"),
            meta("", "base:nothing"),
            meta("", "junk"),
            meta("", ""),
            meta("nothing", BASE),
            meta("thin", BASE, PARENT),
            meta("snap/memory", BASE),
            meta("", BASE, count=2),
            meta("", BASE, count=0),
            meta("", *[BASE] * 64),
            meta("", *[BASE] * 65),
            meta("", "a" * 4097),
            b"",
            text(""),
        )
    ),
]
HANGING_UP: list[bytes] = [
    option(ABORT),
    option(ABORT, b"x"),
    option(EXPORT_NAME, b"nothing"),
    option(EXPORT_NAME, b"\xff"),
    option(EXPORT_NAME, b"a" * 5000),
    option(EXPORT_NAME, b"a" * 70000),
    b"JUNKJUNK" + bytes(8),
    option(LIST, length=(32 << 20) + 1),
    option(LIST, length=0xFFFF_FFFF),
    option(GO, b"", length=5),
    b"IHAVE",
    b"GET / HTTP/1.1\r\n\r\n",
    option(99, bytes(70000)) + option(ABORT),
    option(LIST) * 3 + option(ABORT),
    option(GO, bytes(70000)) + option(LIST) + option(ABORT),
]
# command, offset, length, flags
COMMANDS: list[tuple[int, int, int, int]] = [
    (READ, 0, 512, 0),
    (READ, 0, 1, 0),
    (READ, 1, 4097, 0),
    (READ, SIZE - 1, 1, 0),
    (READ, 4000, 70000, 0),
    (READ, 0, SIZE, 0),
    (READ, 0, 0, 0),
    (READ, SIZE, 0, 0),
    (READ, SIZE, 1, 0),
    (READ, SIZE - 1, 2, 0),
    (READ, 1 << 63, 1, 0),
    (READ, (1 << 64) - 1, 1, 0),
    (READ, 0, (32 << 20) + 1, 0),
    (READ, 0, 0xFFFF_FFFF, 0),
    *((READ, 0, 4096, 1 << bit) for bit in range(16) if bit != 5),
    (FLUSH, 0, 0, 0),
    (FLUSH, 1, 1, 0),
    (FLUSH, 0, 0, 1),
    *((TRIM, 0, 4096, flags) for flags in (0, 1, 2, 4)),
    (TRIM, SIZE, 4096, 0),
    (TRIM, 0, 0, 0),
    (CACHE, 0, 4096, 0),
    (CACHE, 0, SIZE, 0),
    (CACHE, SIZE, 1, 0),
    (CACHE, 0, 0, 0),
    (CACHE, 0, 4096, 1),
    (CACHE, 0, 0xFFFF_FFFF, 0),
    *((ZEROES, 0, 4096, flags) for flags in (0, 1, 2, 16)),
    (ZEROES, 0, 0, 0),
    (ZEROES, SIZE, 1, 0),
    *((STATUS, 0, SIZE, flags) for flags in (0, 1, 4, 8)),
    (STATUS, 0, 0, 0),
    (STATUS, SIZE, 1, 0),
    (STATUS, 5, 1, 0),
    (STATUS, 0, 0xFFFF_FFFF, 0),
    (RESIZE, 0, 0, 0),
    (9, 0, 0, 0),
    (77, 1, 2, 3),
    (0xFFFF, 0, 0, 0),
]
FORMS = {
    "simple": (),
    "structured": (STRUCTURED,),
    "extended": (EXTENDED,),
    "structured with contexts": (STRUCTURED, SET_META),
    "extended with contexts": (EXTENDED, SET_META),
}


def command(form: str, kind: int, offset: int, length: int, flags: int, cookie: int = 7) -> bytes:
    """A request."""
    if form.startswith("extended"):
        return struct.pack(">IHHQQQ", 0x21E4_1C71, flags, kind, cookie, offset, length)
    return struct.pack(">IHHQQI", 0x2560_9513, flags, kind, cookie, offset, length)


def opened(form: str, name: str = "") -> list[Step]:
    """The handshake to the transmission phase."""
    asked = [option(number, meta(name, BASE, PARENT) if number == SET_META else b"") for number in FORMS[form]]
    return [*GREETED, *(Step(data, "options") for data in (*asked, option(GO, info(name, 1, 2, 3))))]


def cases() -> Iterator[Case]:
    """Every conversation."""
    for number, (kind, data) in enumerate(OPTIONS):
        for before in ((), (STRUCTURED,), (EXTENDED,)):
            first = [Step(option(one), "options") for one in before]
            steps = (*GREETED, *first, Step(option(kind, data), "options"), Step(option(ABORT), END))
            yield Case(f"nbd option {number} ({kind}) after {before}", "open.nbd", steps)
    for flags in (0, 1, 2, 3, 4, 0x8000_0000):
        for name in ("", "snap/memory"):
            steps = (
                Step(b"", "take 18"),
                Step(struct.pack(">I", flags) + option(EXPORT_NAME, name.encode()) + command("", DISC, 0, 0, 0), END),
            )
            yield Case(f"nbd client flags {flags}, {name!r}", "open.nbd", steps)
    for number, data in enumerate(HANGING_UP):
        yield Case(f"nbd hanging up {number}", "open.nbd", (*GREETED, Step(data, END)))
    for first in ("", "G", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00"):
        yield Case(f"nbd first bytes {first!r}", "open.nbd", (Step(first.encode("latin-1"), END),))
    for twice in (STRUCTURED, EXTENDED, STARTTLS):
        steps = (
            *GREETED,
            *(Step(option(number), "options") for number in (twice, twice, STRUCTURED, EXTENDED)),
            Step(option(ABORT), END),
        )
        yield Case(f"nbd option {twice} twice", "open.nbd", steps)
    for form in FORMS:
        yield from commands(form)
    yield from secure()


def commands(form: str) -> Iterator[Case]:
    """Every command in one form of replies, and on thin and damaged exports."""
    ends = Step(command(form, DISC, 0, 0, 0), END)
    steps = [
        Step(command(form, kind, at, length, flags), f"reply {length if kind == READ else 0}")
        for kind, at, length, flags in COMMANDS
    ]
    yield Case(f"nbd commands, {form}", "open.nbd", (*opened(form), *steps, ends))
    for name in ("thin", "snap/memory", "memonly/memory", "damaged", "pages", "big"):
        asked = [
            (READ, 0, 4096, 0),
            (READ, 100, 4096, 4),
            (READ, 0, 4096, 0),
            (STATUS, 0, 1 << 20, 0),
            (STATUS, 0, 4096, 8),
        ]
        steps = [
            Step(command(form, kind, at, length, flags), f"reply {length if kind == READ else 0}")
            for kind, at, length, flags in asked
        ]
        yield Case(f"nbd export {name}, {form}", "open.nbd", (*opened(form, name), *steps, ends))
    many = b"".join(command(form, READ, at * 512, 512, 0, at) for at in range(50))
    yield Case(
        f"nbd pipelined reads, {form}",
        "open.nbd",
        (*opened(form), Step(many, "replies 512x50"), Step(many, "replies 512x50"), ends),
    )
    extended = form.startswith("extended")
    for name, data in {
        "a write": command(form, WRITE, 0, 16, 32 if extended else 0)
        + b"w" * 16
        + command(form, READ, 0, 16, 0, 8)
        + command(form, DISC, 0, 0, 0),
        "a write beyond the end": command(form, WRITE, SIZE, 16, 32 if extended else 0)
        + b"w" * 16
        + command(form, DISC, 0, 0, 0),
        "a huge write": command(form, WRITE, 0, 0x7FFF_FFFF, 32 if extended else 0),
        "junk": b"\x25\x60\x95\x14" + bytes(28),
        "half a request": command(form, READ, 0, 1, 0)[:20],
        "nothing": b"",
        "the other form": command("" if extended else "extended", READ, 0, 16, 0) + bytes(4),
        "a status with a payload": command(form, STATUS, 0, 12, 32)
        + struct.pack(">QI", 512, 1)
        + command(form, DISC, 0, 0, 0),
    }.items():
        yield Case(f"nbd {name}, {form}", "open.nbd", (*opened(form), Step(data, END)))


def secure() -> Iterator[Case]:
    """Where TLS must be, may be and is not."""
    for server in ("secret.nbd", "choice.nbd"):
        yield Case(
            f"{server} wants export name",
            server,
            (*GREETED, Step(option(EXPORT_NAME) + command("", DISC, 0, 0, 0), END)),
        )
        for kind in (LIST, INFO, GO, STRUCTURED, EXTENDED, LIST_META, SET_META, 99):
            yield Case(
                f"{server} plain option {kind}",
                server,
                (*GREETED, Step(option(kind, info("") if kind in (INFO, GO) else b""), "options")),
            )
        for form in FORMS:
            start = (
                *GREETED,
                Step(option(STRUCTURED), "options"),
                Step(option(STARTTLS), "tls"),
                Step(option(STARTTLS), "options"),
                Step(option(LIST), "options"),
            )
            asked = [
                Step(command(form, kind, at, length, flags), f"reply {length if kind == READ else 0}")
                for kind, at, length, flags in COMMANDS
            ]
            yield Case(
                f"{server} TLS, {form}",
                server,
                (*start, *opened(form)[2:], *asked, Step(command(form, DISC, 0, 0, 0), END)),
            )
