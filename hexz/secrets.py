"""Passwords and keys from files: never from the command line, where everybody can read them."""

from __future__ import annotations

from hexz.errors import ConfigError
from hexz.format.seal import seal_key

__all__ = ["MAX_PASSWORD", "SHORTEST_SEAL_KEY", "read_key", "read_password", "read_seal_key"]

MAX_PASSWORD = 4096
"""Longest password, bytes."""
SHORTEST_SEAL_KEY = 16
"""Fewest bytes of the secret behind keyed seals: nobody shall find it by trying."""
KEY_SIZE = 32
"""A raw Ed25519 public key, bytes."""


def read_password(path: str | None) -> bytes | None:
    """The password in the file at `path`, without its line end; None without a path.

    Raises: ConfigError.
    """
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            password = file.read(MAX_PASSWORD + 2)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the password: {error.strerror}") from None
    password = password.rstrip(b"\r\n")
    if not password or len(password) > MAX_PASSWORD:
        raise ConfigError(f"{path}: a password file holds one line of 1 to {MAX_PASSWORD} bytes")
    return password


def read_key(path: str | None) -> bytes | None:
    """The 32 raw bytes of the public key in the file at `path`; None without a path.

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


def read_seal_key(path: str | None) -> bytes | None:
    """The key of keyed seals from the secret in the file at `path`, without its line end; None without a path.

    Raises: ConfigError.
    """
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            secret = file.read(MAX_PASSWORD + 2)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the key of seals: {error.strerror}") from None
    secret = secret.rstrip(b"\r\n")
    if not SHORTEST_SEAL_KEY <= len(secret) <= MAX_PASSWORD:
        raise ConfigError(f"{path}: the key of seals has {SHORTEST_SEAL_KEY} to {MAX_PASSWORD} bytes")
    return seal_key(secret)
