"""Encrypted blocks and signatures, through the optional ``cryptography`` package.

format.md sections 6 and 12.
"""

from __future__ import annotations

import hashlib
from typing import Any

from hexz.format.errors import CryptographyNeeded, TagMismatch
from hexz.format.header import Encryption

__all__ = [
    "MAX_ITERATIONS",
    "SIGNATURE_SIZE",
    "BlockCipher",
    "derive_key",
    "signature_valid",
]

MAX_ITERATIONS = 10_000_000
"""Most PBKDF2 rounds accepted: about ten seconds of one core; the writers use 600,000."""
SIGNATURE_SIZE = 64


def derive_key(password: bytes, encryption: Encryption) -> bytes:
    """The file's 32-byte key.  Takes a good part of a second.

    Raises: ValueError when the header asks for more than `MAX_ITERATIONS` rounds or for none.
    """
    if not 1 <= encryption.iterations <= MAX_ITERATIONS:
        raise ValueError(f"{encryption.iterations} key rounds: 1 to {MAX_ITERATIONS} are accepted")
    return hashlib.pbkdf2_hmac("sha256", password, encryption.salt, encryption.iterations, 32)


class BlockCipher:
    """Decrypts the blocks of one file with AES-256-GCM; safe to use from several threads."""

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise CryptographyNeeded from None
        self._cipher: Any = AESGCM(key)
        self._invalid_tag: Any = InvalidTag

    def decrypt(self, stored: bytes | memoryview, number: int) -> bytes:
        """The compressed bytes of block `number` of the file.

        Raises: TagMismatch.
        """
        try:
            plain: bytes = self._cipher.decrypt(bytes(4) + number.to_bytes(8, "big"), stored, None)
        except self._invalid_tag:
            raise TagMismatch("the authentication tag does not fit") from None
        except ValueError as error:
            raise TagMismatch(str(error)) from None
        return plain


def signature_valid(public_key: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether the Ed25519 `signature` fits `signed`, the bytes from the index to the signature.

    Raises: CryptographyNeeded; ValueError when the key is not 32 bytes.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise CryptographyNeeded from None
    key = Ed25519PublicKey.from_public_bytes(public_key)
    try:
        key.verify(signature, hashlib.sha256(signed).digest())
    except InvalidSignature:
        return False
    return True
