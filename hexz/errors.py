"""Every kind of trouble has one class here; each carries its facts and says one line a user can act on.

A class also says how the trouble looks from outside: the exit status of the
process (sysexits.h), the HTTP status and the NBD errno.  Handlers read those
attributes and never guess.
"""

from __future__ import annotations

import errno

__all__ = [
    "AlreadyRunning",
    "BadRequest",
    "BlockError",
    "ConfigError",
    "CorruptSnapshot",
    "CredentialsUnavailable",
    "CryptographyMissing",
    "HandedOver",
    "HandoverError",
    "HexzError",
    "JsonError",
    "ListenError",
    "NameTaken",
    "NoSuchSnapshot",
    "NotASnapshot",
    "NotEncrypted",
    "OriginChanged",
    "OriginError",
    "OriginTimeout",
    "OriginUnavailable",
    "OutOfMemory",
    "Overloaded",
    "PackageMissing",
    "ParentMissing",
    "ParentRefused",
    "PasswordNeeded",
    "SealDamaged",
    "SealKeyNeeded",
    "SealMismatch",
    "SealMissing",
    "SnapshotAwaited",
    "SnapshotError",
    "SnapshotNotFound",
    "SnapshotTooLarge",
    "SnapshotUnreadable",
    "StorageError",
    "SystemFailure",
    "UnitError",
    "UsageError",
    "WrongPassword",
]


class HexzError(Exception):
    """Base of all errors that hexz raises on purpose; ``str()`` is one line for the user."""

    exit_status = 71
    http_status = 500
    nbd_errno = errno.EIO


class UsageError(HexzError):
    """The command line contradicts itself or lacks something."""

    exit_status = 2
    http_status = 400
    nbd_errno = errno.EINVAL


class UnitError(UsageError):
    """A size, a number or a span that cannot be read or does not fit."""


class ConfigError(HexzError):
    """A configuration or secrets file that is wrong."""

    exit_status = 78


class JsonError(HexzError):
    """Bytes that are no JSON, or none that is read here; `line` and `column` say where, from 1 on, or are 0."""

    http_status = 400
    nbd_errno = errno.EINVAL

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"not JSON: {reason}" + (f" (line {line}, column {column})" if line else ""))
        self.reason = reason
        self.line = line
        self.column = column


class PackageMissing(ConfigError):
    """A Python package that nothing works without is not installed."""


class SystemFailure(HexzError):
    """The operating system refused something the process cannot do without."""

    exit_status = 71


class ListenError(HexzError):
    """A listener that cannot be opened."""

    exit_status = 69

    def __init__(self, where: str, reason: str, remedy: str = "", taken: bool = False) -> None:
        """`remedy` says what to do; `taken`: somebody else listens there."""
        super().__init__(f"{where}: cannot listen: {reason}" + (f": {remedy}" if remedy else ""))
        self.where = where
        self.reason = reason
        self.taken = taken


class SnapshotError(HexzError):
    """Trouble with one snapshot file as a whole."""

    exit_status = 65

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SnapshotNotFound(SnapshotError):
    """There is no such file, or no snapshot in the directory."""

    exit_status = 66


class SnapshotUnreadable(SnapshotError):
    """The file is there, but this user may not read it."""

    exit_status = 77


class OriginUnavailable(SnapshotError):
    """The server that has a snapshot cannot be reached, or does not answer as it should.  Later it may.

    `silent`: it gave no right answer in all the time that there was, so that others of its snapshots need not be tried.
    """

    exit_status = 69
    silent = False


class NotASnapshot(SnapshotError):
    """The file is something else: wrong magic, version or no layout fits."""


class CorruptSnapshot(SnapshotError):
    """The header or the index contradicts itself, or points outside the file."""


class SnapshotTooLarge(SnapshotError):
    """The file may be sound, but asks for more memory than it is given here."""

    exit_status = 78


class ParentMissing(SnapshotError):
    """A thin snapshot whose parent was not found where parents may be."""

    exit_status = 66


class ParentRefused(SnapshotError):
    """A thin snapshot that may not have its parent's bytes here."""

    exit_status = 77


class NotEncrypted(SnapshotError):
    """A snapshot that is not encrypted where only encrypted ones are served."""

    exit_status = 77


class PasswordNeeded(SnapshotError):
    """An encrypted snapshot and no password."""

    exit_status = 77


class WrongPassword(SnapshotError):
    """The password does not open the snapshot's first encrypted block."""

    exit_status = 77


class CryptographyMissing(SnapshotError):
    """The optional ``cryptography`` package is needed and not installed."""

    exit_status = 78


class SealDamaged(SnapshotError):
    """The seal beside a snapshot is damaged, of another file, or of what the file was before."""


class SealMissing(SnapshotError):
    """A snapshot without a seal where one is demanded."""

    exit_status = 66


class SealKeyNeeded(SnapshotError):
    """A keyed seal and no key, or a plain one where only keyed ones count."""

    exit_status = 77


class BlockError(HexzError):
    """One block that cannot be served: CRC, length, tag or codec.  Other blocks go on."""

    exit_status = 65

    def __init__(self, path: str, stream: str, position: int, stored_offset: int, reason: str) -> None:
        super().__init__(f"{path}: {stream} block at {position} (stored at {stored_offset}): {reason}")
        self.path = path
        self.stream = stream
        self.position = position
        self.stored_offset = stored_offset
        self.reason = reason


class StorageError(HexzError):
    """The bytes behind a snapshot could not be read: an I/O error, or the file shrank."""

    def __init__(self, where: str, offset: int, length: int, reason: str) -> None:
        super().__init__(f"{where}: reading {length} bytes at {offset}: {reason}")
        self.where = where
        self.offset = offset
        self.length = length
        self.reason = reason


class SealMismatch(StorageError):
    """Bytes of a snapshot, or of its seal, are not those that were sealed.  Others go on."""

    exit_status = 65


class OriginError(StorageError):
    """The server that has a snapshot answers what cannot be used; `status` is HTTP's, or 0."""

    http_status = 502
    status = 0


class OriginTimeout(OriginError):
    """The server that has a snapshot gave no right answer in time.  Later it may."""

    http_status = 504


class OriginChanged(OriginError):
    """The snapshot's server has other bytes under its name than when it was opened: for good."""

    http_status = 500


class CredentialsUnavailable(HexzError):
    """What should give the keys to a store does not answer, or has none that are still good; later it may."""

    exit_status = 69
    http_status = 503


class NoSuchSnapshot(HexzError):
    """The catalog has no snapshot, stream or export of that name."""

    exit_status = 66
    http_status = 404
    nbd_errno = errno.ENOENT


class SnapshotAwaited(NoSuchSnapshot):
    """A snapshot that is to be served, and is not yet: its server did not answer so far."""

    exit_status = 69
    http_status = 503


class NameTaken(UsageError):
    """A snapshot of that name is served already, or being opened."""

    http_status = 409


class BadRequest(HexzError):
    """A client broke a rule of its protocol."""

    http_status = 400
    nbd_errno = errno.EINVAL


class Overloaded(HexzError):
    """The server does as much as it may for now; the same later may succeed."""

    http_status = 503
    nbd_errno = errno.ENOMEM


class OutOfMemory(Overloaded):
    """There was no memory for it, not even after the cache gave some back."""

    def __init__(self) -> None:
        super().__init__("out of memory: ask again later")


class HandedOver(HexzError):
    """A successor has what was asked for: the request is for that process, with the connection that it came by."""

    http_status = 503
    nbd_errno = errno.ESHUTDOWN


class AlreadyRunning(HexzError):
    """Another daemon holds the pid file."""

    exit_status = 69

    def __init__(self, path: str, pid: int) -> None:
        what = (
            f"a daemon is running already, pid {pid}"
            if pid
            else "another process has locked it: name another with --pid-file"
        )
        super().__init__(f"{path}: {what}")
        self.pid = pid


class HandoverError(HexzError):
    """What another process left behind for this one makes no sense."""
