"""Which files may have secrets in them: only those that other users can neither read nor change."""

from __future__ import annotations

import os
import shlex
import stat

from hexz.errors import ConfigError

__all__ = ["CREDENTIALS_FOLDER", "check_secret", "read_secret", "read_secret_lines", "secret_trouble"]

CREDENTIALS_FOLDER = "CREDENTIALS_DIRECTORY"
"""The variable that says where the service manager put its secrets, for us alone."""

MAX_SECRETS = 1 << 20
"""Longest file of tokens or keys, bytes."""


def read_secret(path: str, what: str, most: int = MAX_SECRETS) -> bytes:
    """What is in the file at `path`, at most `most` bytes; `what` says for messages what that is.

    Raises: ConfigError, also when others than its owner may read or write the file.
    """
    try:
        with open(path, "rb") as file:
            check_secret(path, os.fstat(file.fileno()))
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what}: {error.strerror}") from None
    if len(data) > most:
        raise ConfigError(f"{path}: too long: the {what} may have {most} bytes")
    return data


def read_secret_lines(path: str, what: str) -> list[str]:
    """The lines of a file of secrets, which is UTF-8.

    Raises: ConfigError.
    """
    try:
        return read_secret(path, what).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot read the {what}: not UTF-8") from None


def check_secret(path: str, status: os.stat_result) -> None:
    """Refuse a file of secrets that other users may read or change.

    Raises: ConfigError.
    """
    trouble = secret_trouble(path, status)
    if trouble:
        raise ConfigError(f"{path}: {trouble}")


def secret_trouble(path: str, status: os.stat_result) -> str:
    """Why a file must have no secrets in it: other users may read or change it.  The rule is that of ssh's keys.

    The group may read one that belongs to somebody else, such as root, who let us in by it; so it looks, too, where
    an access list does that (acl(5)), as the service manager's credentials have one.  Empty when all is well.
    """
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        return ""
    lent = status.st_uid != os.geteuid() or os.path.dirname(path) == os.environ.get(CREDENTIALS_FOLDER)
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP | (0 if lent else stat.S_IRGRP)):
        return f"open to other users (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {shlex.quote(path)}"
    return ""
