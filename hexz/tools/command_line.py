"""The toolbox's command line: what each command takes, and the same as a typed value, called like its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple, Union

from hexz.options.arguments import Parser, VersionAction, size

__all__ = [
    "COMMANDS",
    "Cat",
    "Command",
    "Commit",
    "Extract",
    "Info",
    "Pack",
    "RecordReads",
    "Seal",
    "Verify",
    "Warm",
    "command_parser",
    "parse_command",
]


class Pack(NamedTuple):
    """Write a snapshot.  Sizes, here and below, are in bytes; what is None or empty was not given."""

    disk: str
    out: str
    memory: str | None
    compression: str
    level: int | None
    block_size: int
    dictionary: bool
    parent: str | None
    workers: int | None
    force: bool
    seal: bool
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


class Info(NamedTuple):
    """What is in a snapshot."""

    file: str
    json: bool
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


class Verify(NamedTuple):
    """Check every block."""

    files: tuple[str, ...]
    public_key: str | None
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


class Cat(NamedTuple):
    """Bytes of a stream."""

    file: str
    stream: str
    offset: int
    length: int | None
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


class Extract(NamedTuple):
    """A stream or files out of a snapshot."""

    file: str
    out: str
    stream: str | None
    undeclared: bool
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


class Commit(NamedTuple):
    """An overlay into a thin snapshot."""

    overlay: str
    out: str
    parent: str | None
    compression: str
    level: int | None
    force: bool
    seal: bool
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


class Seal(NamedTuple):
    """Write seals."""

    files: tuple[str, ...]
    seal_key_file: str | None


class RecordReads(NamedTuple):
    """What a daemon read of a snapshot, as a list."""

    url: str
    out: str
    token_file: str | None
    force: bool


class Warm(NamedTuple):
    """A remote snapshot into a disk cache."""

    snapshot: str
    prefetch: tuple[str, ...]
    all: bool
    folder: str
    disk_cache_size: int
    fetch_rate: int
    password_file: str | None
    parent_dir: tuple[str, ...]
    require_seal: bool
    seal_key_file: str | None


Reading = Union[Pack, Info, Verify, Cat, Extract, Commit, Warm]
"""The commands that open snapshots."""

Command = Union[Reading, Seal, RecordReads]
COMMANDS: dict[str, type[Command]] = {
    "pack": Pack, "info": Info, "verify": Verify, "cat": Cat, "extract": Extract, "commit": Commit, "seal": Seal,
    "record": RecordReads, "warm": Warm,
}  # fmt: skip


def command_parser() -> argparse.ArgumentParser:
    """The parser of the toolbox's command line."""
    parser = Parser(prog="hexz", description="Write, inspect and read .hxz snapshots.", allow_abbrev=False)
    parser.add_argument("--version", action=VersionAction, help="show versions, also of Python and packages")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    pack = commands.add_parser("pack", help="write a snapshot")
    pack.add_argument("disk", metavar="DISK", help="raw disk image or block device")
    pack.add_argument("out", metavar="OUT", help="the snapshot to write")
    pack.add_argument("--memory", metavar="FILE", help="raw memory image")
    pack.add_argument("--compression", choices=("lz4", "zstd"), default="lz4", help="default lz4")
    pack.add_argument("--level", type=int, metavar="N", help="lz4: 0 fast, 1-12 high; zstd: 1-22")
    pack.add_argument("--block-size", type=size, default=64 << 10, metavar="SIZE", help="default 64K")
    pack.add_argument("--dictionary", action="store_true", help="train a dictionary first (zstd, small blocks)")
    pack.add_argument("--parent", metavar="FILE", help="leave out what this snapshot has at the same place")
    pack.add_argument("--workers", type=int, metavar="N", help="threads that compress; default one for each core")

    info = commands.add_parser("info", help="what is in a snapshot")
    info.add_argument("file", metavar="FILE")
    info.add_argument("--json", action="store_true", help="for programs")

    verify = commands.add_parser("verify", help="check every block")
    verify.add_argument("files", metavar="FILE", nargs="+")
    verify.add_argument("--public-key", metavar="FILE", help="demand a signature that fits this key (32 raw bytes)")

    cat = commands.add_parser("cat", help="bytes of a stream to standard output")
    cat.add_argument("file", metavar="FILE")
    cat.add_argument("--stream", choices=("disk", "memory"), default="disk")
    cat.add_argument("--offset", type=size, default=0, metavar="N", help="first byte")
    cat.add_argument("--length", type=size, metavar="N", help="bytes; default to the end")

    extract = commands.add_parser("extract", help="a stream to a sparse file, or listed files to a folder")
    extract.add_argument("file", metavar="FILE")
    extract.add_argument("out", metavar="OUT")
    extract.add_argument("--stream", choices=("disk", "memory"))
    extract.add_argument("--undeclared", action="store_true", help="of a stream that declares no bytes, what is there")

    commit = commands.add_parser("commit", help="an overlay of the images API into a thin snapshot")
    commit.add_argument("overlay", metavar="OVERLAY", help="the overlay's file; no server may have it open")
    commit.add_argument("out", metavar="OUT", help="the snapshot to write")
    commit.add_argument("--parent", metavar="FILE", help="the snapshot below, if it has moved")
    commit.add_argument("--compression", choices=("lz4", "zstd"), default="lz4", help="default lz4")
    commit.add_argument("--level", type=int, metavar="N", help="lz4: 0 fast, 1-12 high; zstd: 1-22")

    seal = commands.add_parser("seal", help="write FILE.sum, which says what every byte of a snapshot is")
    seal.add_argument("files", metavar="FILE", nargs="+")

    record = commands.add_parser("record", help="what a daemon read of a remote snapshot so far, as a list to prefetch")
    record.add_argument("url", metavar="URL", help="the snapshot's at the daemon: http://HOST:PORT/snapshots/NAME")
    record.add_argument("out", metavar="LIST", help="the list to write")
    record.add_argument("--token-file", metavar="FILE", help="the daemon's bearer token")
    record.add_argument("--force", action="store_true", help="replace LIST if it is there already")

    warm = commands.add_parser("warm", help="fetch a remote snapshot, or what a list names of it, into a disk cache")
    warm.add_argument("snapshot", metavar="URL", help="http://, https:// or s3://BUCKET/KEY")
    warm.add_argument("folder", metavar="DIR", help="the disk cache; no daemon may have it open")
    warm.add_argument("--prefetch", action="append", default=[], metavar="LIST", help="what it names; repeatable")
    warm.add_argument("--all", action="store_true", help="everything; the default without a list")
    warm.add_argument("--disk-cache-size", type=size, default=10 << 30, metavar="SIZE", help="default 10G")
    warm.add_argument("--fetch-rate", type=size, default=0, metavar="SIZE", help="bytes a second; default any")

    for writing in (pack, commit):
        writing.add_argument("--force", action="store_true", help="replace OUT if it is there already")
        writing.add_argument("--seal", action="store_true", help="write its seal too; keyed with --seal-key-file")
    for reading in (pack, info, verify, cat, extract, commit, warm):
        whose = (
            "an encrypted parent; what is written is not encrypted"
            if reading in (pack, commit)
            else "an encrypted snapshot"
        )
        reading.add_argument("--password-file", metavar="FILE", help=f"password of {whose}")
        reading.add_argument("--parent-dir", action="append", default=[], metavar="DIR", help="where parents may be")
        reading.add_argument("--require-seal", action="store_true", help="read nothing without a seal (FILE.sum)")
    for using in (pack, info, verify, cat, extract, commit, warm, seal):
        using.add_argument("--seal-key-file", metavar="FILE", help="key of keyed seals")
    return parser


def parse_command(arguments: Sequence[str] | None = None) -> Command:
    """The command that `arguments`, by default the program's own, ask for.

    Raises: UsageError; SystemExit after --help and --version.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(command_parser().parse_args(arguments)).items()
    }
    return COMMANDS[values.pop("command")](**values)
