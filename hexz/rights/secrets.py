"""Secrets from files: never from the command line, where everybody can read them, nor from files that others can."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hexz.errors import ConfigError
from hexz.format.seal import seal_key
from hexz.secretfile import CREDENTIALS_FOLDER, read_secret

__all__ = [
    "CREDENTIALS",
    "MAX_PASSWORD",
    "SHORTEST_SECRET",
    "credential",
    "read_key",
    "read_password",
    "read_seal_key",
    "unused_credentials",
]

CREDENTIALS = ("tokens", "s3-keys", "password", "seal-key", "s3-credentials", "remote-tokens")
"""The names under which the service manager may pass secrets (systemd.exec(5), LoadCredential=)."""

MAX_PASSWORD = 4096
"""Longest password, bytes."""
SHORTEST_SECRET = 16
"""Shortest token, secret of an S3 key, and secret behind keyed seals: shorter ones can be found by trying."""
KEY_SIZE = 32
"""A raw Ed25519 public key, bytes."""


def read_password(path: str | None) -> bytes | None:
    """The password in the file at `path`, without its line end; None without a path.

    Raises: ConfigError.
    """
    if path is None:
        return None
    password = read_secret(path, "password").rstrip(b"\r\n")
    if not password or len(password) > MAX_PASSWORD:
        raise ConfigError(f"{path}: a password file holds one line of 1 to {MAX_PASSWORD} bytes")
    return password


def read_seal_key(path: str | None) -> bytes | None:
    """The key of keyed seals from the secret in the file at `path`, without its line end; None without a path.

    Raises: ConfigError.
    """
    if path is None:
        return None
    secret = read_secret(path, "key of seals").rstrip(b"\r\n")
    if not SHORTEST_SECRET <= len(secret) <= MAX_PASSWORD:
        raise ConfigError(f"{path}: the key of seals has {SHORTEST_SECRET} to {MAX_PASSWORD} bytes")
    return seal_key(secret)


def read_key(path: str | None) -> bytes | None:
    """The 32 raw bytes of the public key, no secret, in the file at `path`; None without a path.

    Raises: ConfigError.
    """
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            key = file.read(KEY_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the key: {error.strerror}") from None
    if len(key) != KEY_SIZE:
        raise ConfigError(f"{path}: a public key is {KEY_SIZE} raw bytes")
    return key


def credential(name: str) -> str | None:
    """The path of a secret that the service manager passed, one of `CREDENTIALS`, if it did."""
    folder = os.environ.get(CREDENTIALS_FOLDER)
    path = f"{folder}/{name}" if folder else ""
    return path if path and os.path.isfile(path) else None


def unused_credentials(used: Iterable[str | None]) -> list[str]:
    """Secrets that the service manager passed under names that mean nothing here, and whose paths are not `used`."""
    folder = os.environ.get(CREDENTIALS_FOLDER)
    try:
        names = sorted(os.listdir(folder)) if folder else []
    except OSError:
        return []
    known = {os.path.realpath(path) for path in used if path}
    return [name for name in names if name not in CREDENTIALS and os.path.realpath(f"{folder}/{name}") not in known]
