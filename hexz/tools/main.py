"""Parse the toolbox's command line, run the command, turn trouble into one line and a status."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from hexz.arguments import Parser, VersionAction, size
from hexz.errors import HexzError, UsageError
from hexz.installation import check_packages
from hexz.printable import printable
from hexz.sealed import SealPolicy
from hexz.secrets import read_key, read_password, read_seal_key
from hexz.units import format_size

__all__ = ["main"]

DAMAGED = 1
"""Exit status of ``verify`` when a block is damaged, and of ``extract`` when a file was left out."""


def _parser() -> argparse.ArgumentParser:
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

    for writing in (pack, commit):
        writing.add_argument("--force", action="store_true", help="replace OUT if it is there already")
        writing.add_argument("--seal", action="store_true", help="write its seal too; keyed with --seal-key-file")
    for reading in (pack, info, verify, cat, extract, commit):
        whose = (
            "an encrypted parent; what is written is not encrypted"
            if reading in (pack, commit)
            else "an encrypted snapshot"
        )
        reading.add_argument("--password-file", metavar="FILE", help=f"password of {whose}")
        reading.add_argument("--parent-dir", action="append", default=[], metavar="DIR", help="where parents may be")
        reading.add_argument("--require-seal", action="store_true", help="read nothing without a seal (FILE.sum)")
    for using in (pack, info, verify, cat, extract, commit, seal):
        using.add_argument("--seal-key-file", metavar="FILE", help="key of keyed seals")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names can be bytes that no encoding has
    try:
        options = _parser().parse_args(arguments)
        check_packages()
        status = _run(options)
        sys.stdout.flush()
        return status
    except HexzError as error:
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:
        # Whoever read our output has enough; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", 71)
    except MemoryError:
        return _fail("out of memory", 71)
    except KeyboardInterrupt:
        return 130


def _say(text: str) -> None:
    print(printable(text))


def _fail(message: str, status: int) -> int:
    print(f"hexz: {printable(message)}", file=sys.stderr)
    return status


class _Opening(NamedTuple):
    """What opening a snapshot may need."""

    password: bytes | None
    parent_dirs: tuple[str, ...]
    seals: SealPolicy


def _run(options: argparse.Namespace) -> int:
    # Each command is imported when it runs: a script that calls `info` a thousand times pays for nothing else.
    key = read_seal_key(options.seal_key_file)
    if options.command == "seal":
        return _seal(options.files, key)
    password, parent_dirs = read_password(options.password_file), tuple(options.parent_dir)
    opening = _Opening(password, parent_dirs, SealPolicy(key, options.require_seal))
    if options.command == "pack":
        _pack(options, opening)
    elif options.command == "commit":
        _commit(options, opening)
    elif options.command == "info":
        from hexz.tools.info import info

        print(info(options.file, options.json, *opening))
    elif options.command == "verify":
        return _verify(options.files, opening, read_key(options.public_key))
    elif options.command == "cat":
        from hexz.tools.cat import cat

        cat(options.file, sys.stdout.buffer, options.stream, options.offset, options.length, *opening)
    else:
        from hexz.tools.extract import extract

        extracted = extract(options.file, options.out, options.stream, *opening, options.undeclared)
        for left_out in extracted.left_out:
            _fail(f"{options.file}: left out: {left_out}", DAMAGED)
        _say(f"{options.out}: {format_size(extracted.written)}")
        return DAMAGED if extracted.left_out else 0
    return 0


def _seal(paths: list[str], key: bytes | None) -> int:
    from hexz.tools.seal import seal

    for path in paths:
        sealed = seal(path, key)
        kind = "keyed" if key else "plain"
        _say(f"{sealed.path}: {kind} seal of {format_size(sealed.header.file_size)}, root {sealed.header.root.hex()}")
    return 0


def _pack(options: argparse.Namespace, opening: _Opening) -> None:
    from hexz.tools.pack import pack

    if options.workers is not None and not 1 <= options.workers <= 256:
        raise UsageError(f"--workers {options.workers}: 1 to 256")
    if options.password_file and not options.parent:
        raise UsageError("--password-file opens an encrypted --parent: what pack writes is never encrypted")
    password, parent_dirs, seals = opening
    packed = pack(
        options.disk, options.out, options.memory, options.compression, options.level, options.block_size,
        options.dictionary, options.parent, options.workers, password, parent_dirs, options.seal, seals, options.force,
    )  # fmt: skip
    _say(
        f"{options.out}: {format_size(packed.image_bytes)} in {format_size(packed.file_bytes)}; blocks: "
        f"{packed.data} stored, {packed.repeated} repeated, {packed.zero} zero, {packed.parent} in the parent"
    )
    if packed.parent_path is not None:
        _say_how_to_open(options.out, packed.parent_path, packed.parent_encrypted)


def _say_how_to_open(out: str, parent: str, encrypted: bool) -> None:
    """Tell which option the thin snapshot `out` needs: its parent lies elsewhere, or is encrypted and it is not."""
    folder = os.path.dirname(os.path.join(os.path.dirname(os.path.abspath(out)), parent))
    if encrypted:
        _say(f"{out}: its parent is encrypted and it itself is not: open it with --parent-dir {folder}")
    elif os.path.isabs(parent):
        _say(f"{out}: its parent is in another folder: open it with --parent-dir {folder}")


def _commit(options: argparse.Namespace, opening: _Opening) -> None:
    from hexz.tools.commit import commit
    from hexz.tools.pack import check_level

    check_level(options.compression, options.level)
    password, parent_dirs, seals = opening
    done = commit(
        options.overlay, options.out, options.parent, options.compression, options.level, password, parent_dirs,
        options.seal, seals, options.force,
    )  # fmt: skip
    _say(
        f"{options.out}: {format_size(done.file_bytes)} over {done.parent}; blocks: "
        f"{done.data} stored, {done.zero} zero, {done.inherited} in the parent"
    )
    _say_how_to_open(options.out, done.parent, done.parent_encrypted)


def _verify(paths: list[str], opening: _Opening, public_key: bytes | None) -> int:
    from hexz.tools.verify import verify

    password, parent_dirs, seals = opening
    status = 0
    for path in paths:
        try:
            verified = verify(path, lambda line: _fail(line, DAMAGED), password, parent_dirs, public_key, seals)
        except HexzError as error:
            status = _fail(str(error), error.exit_status if len(paths) == 1 else DAMAGED)
            continue
        if verified.damaged:
            status = DAMAGED
            places = "1 place" if verified.damaged == 1 else f"{verified.damaged} places"
            _say(f"{path}: DAMAGED: {places} in {format_size(verified.checked)}")
        else:
            _say(f"{path}: ok, {format_size(verified.checked)} checked")
        for oddity in verified.oddities:
            _say(f"{path}: odd: {oddity}")
    return status
