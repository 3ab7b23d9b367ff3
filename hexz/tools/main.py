"""Run a command of the toolbox, turn trouble into one line and a status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from hexz.errors import HexzError, UsageError
from hexz.installation import check_packages
from hexz.printable import printable
from hexz.rights.secrets import read_key, read_password, read_seal_key
from hexz.storage.remote import public_name
from hexz.storage.sealed import SealPolicy
from hexz.tools.command_line import (
    Cat,
    Command,
    Commit,
    Extract,
    Info,
    Pack,
    Reading,
    RecordReads,
    Seal,
    Verify,
    Warm,
    parse_command,
)
from hexz.units import format_size

__all__ = ["main"]

DAMAGED = 1
"""Exit status of ``verify`` when a block is damaged, of ``extract`` and ``warm`` when something was left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names can be bytes that no encoding has
    try:
        command = parse_command(arguments)
        check_packages()
        status = _run(command)
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


def _opening(command: Reading) -> _Opening:
    """Raises: ConfigError."""
    key = read_seal_key(command.seal_key_file)
    password = read_password(command.password_file)
    return _Opening(password, command.parent_dir, SealPolicy(key, command.require_seal))


def _run(command: Command) -> int:
    # What a command needs is imported when it runs: a script that calls `info` a thousand times pays for nothing else.
    if isinstance(command, Seal):
        return _seal(command)
    if isinstance(command, RecordReads):
        return _record(command)
    opening = _opening(command)
    if isinstance(command, Warm):
        return _warm(command, opening)
    if isinstance(command, Pack):
        return _pack(command, opening)
    if isinstance(command, Commit):
        return _commit(command, opening)
    if isinstance(command, Info):
        return _info(command, opening)
    if isinstance(command, Verify):
        return _verify(command, opening)
    if isinstance(command, Cat):
        return _cat(command, opening)
    return _extract(command, opening)


def _seal(command: Seal) -> int:
    from hexz.tools.seal import seal

    key = read_seal_key(command.seal_key_file)
    kind = "keyed" if key else "plain"
    for path in command.files:
        sealed = seal(path, key)
        _say(f"{sealed.path}: {kind} seal of {format_size(sealed.header.file_size)}, root {sealed.header.root.hex()}")
    return 0


def _record(command: RecordReads) -> int:
    from hexz.tools.prefetch import record

    count = record(command.url, command.out, command.token_file, command.force)
    _say(f"{command.out}: {count} spans")
    return 0


def _warm(command: Warm, opening: _Opening) -> int:
    from hexz.tools.warm import warm

    done = warm(
        command.snapshot, command.prefetch, command.all or not command.prefetch, command.folder,
        command.disk_cache_size, command.fetch_rate, *opening,
    )  # fmt: skip
    _say(f"{public_name(command.snapshot)}: {format_size(done.wanted - done.failed)} of {format_size(done.wanted)}")
    return DAMAGED if done.failed else 0


def _info(command: Info, opening: _Opening) -> int:
    from hexz.tools.info import info

    print(info(command.file, command.json, *opening))
    return 0


def _cat(command: Cat, opening: _Opening) -> int:
    from hexz.tools.cat import cat

    cat(command.file, sys.stdout.buffer, command.stream, command.offset, command.length, *opening)
    return 0


def _extract(command: Extract, opening: _Opening) -> int:
    from hexz.tools.extract import extract

    extracted = extract(command.file, command.out, command.stream, *opening, command.undeclared)
    for left_out in extracted.left_out:
        _fail(f"{command.file}: left out: {left_out}", DAMAGED)
    _say(f"{command.out}: {format_size(extracted.written)}")
    return DAMAGED if extracted.left_out else 0


def _pack(command: Pack, opening: _Opening) -> int:
    from hexz.tools.pack import pack

    if command.workers is not None and not 1 <= command.workers <= 256:
        raise UsageError(f"--workers {command.workers}: 1 to 256")
    if command.password_file and not command.parent:
        raise UsageError("--password-file opens an encrypted --parent: what pack writes is never encrypted")
    password, parent_dirs, seals = opening
    packed = pack(
        command.disk, command.out, command.memory, command.compression, command.level, command.block_size,
        command.dictionary, command.parent, command.workers, password, parent_dirs, command.seal, seals, command.force,
    )  # fmt: skip
    _say(
        f"{command.out}: {format_size(packed.image_bytes)} in {format_size(packed.file_bytes)}; blocks: "
        f"{packed.data} stored, {packed.repeated} repeated, {packed.zero} zero, {packed.parent} in the parent"
    )
    if packed.parent_path is not None:
        _say_how_to_open(command.out, packed.parent_path, packed.parent_encrypted)
    return 0


def _say_how_to_open(out: str, parent: str, encrypted: bool) -> None:
    """Tell which option the thin snapshot `out` needs: its parent lies elsewhere, or is encrypted and it is not."""
    folder = os.path.dirname(os.path.join(os.path.dirname(os.path.abspath(out)), parent))
    if encrypted:
        _say(f"{out}: its parent is encrypted and it itself is not: open it with --parent-dir {folder}")
    elif os.path.isabs(parent):
        _say(f"{out}: its parent is in another folder: open it with --parent-dir {folder}")


def _commit(command: Commit, opening: _Opening) -> int:
    from hexz.tools.commit import commit
    from hexz.tools.pack import check_level

    check_level(command.compression, command.level)
    password, parent_dirs, seals = opening
    done = commit(
        command.overlay, command.out, command.parent, command.compression, command.level, password, parent_dirs,
        command.seal, seals, command.force,
    )  # fmt: skip
    _say(
        f"{command.out}: {format_size(done.file_bytes)} over {done.parent}; blocks: "
        f"{done.data} stored, {done.zero} zero, {done.inherited} in the parent"
    )
    _say_how_to_open(command.out, done.parent, done.parent_encrypted)
    return 0


def _verify(command: Verify, opening: _Opening) -> int:
    from hexz.tools.verify import verify

    public_key, paths = read_key(command.public_key), command.files
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
        if verified.doubt:
            _say(f"warning: {verified.doubt}")
    return status
