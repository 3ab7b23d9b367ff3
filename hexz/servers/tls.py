"""TLS for listeners: one context that can be loaded again while connections live on."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Sequence
from typing import NoReturn

from hexz.errors import ConfigError
from hexz.secretfile import check_secret

__all__ = ["TLS_HANDSHAKE_S", "Certificate", "TlsContext", "tls_reason"]

_SOURCE = re.compile(r"^(\[[^]]*\]|_ssl\.c:\d+:) ?| ?\(_ssl\.c:\d+\)")
"""What Python puts around OpenSSL's words: the library's name and a line of its own source."""

TLS_HANDSHAKE_S = 10.0
"""How long the handshake may take."""
NO_PEM = "pem lib"
"""What OpenSSL says of a file that is something else altogether."""


def tls_reason(error: Exception) -> str:
    """What went wrong, in OpenSSL's words alone."""
    words = _SOURCE.sub("", error.args[-1] if error.args and isinstance(error.args[-1], str) else str(error))
    return words.replace("_", " ").lower() or type(error).__name__


def _demand_certificates(context: ssl.SSLContext, authority: str) -> None:
    """Let only clients in that show a certificate signed by one in the file `authority`.  Raises: ConfigError."""
    try:
        with open(authority, "rb"):  # OpenSSL would not say which file it could not open
            pass
        context.load_verify_locations(cafile=authority)
    except ssl.SSLError as error:
        raise ConfigError(f"{authority}: no certificate of an authority as PEM: {tls_reason(error)}") from None
    except OSError as error:
        raise ConfigError(f"{authority}: cannot read: {error.strerror}") from None
    context.verify_mode = ssl.CERT_REQUIRED


class TlsContext:
    """A certificate and its key, TLS 1.2 and later; perhaps the authority of clients' certificates."""

    def __init__(
        self, certificate: str, key: str, protocols: Sequence[str] = (), client_authority: str | None = None
    ) -> None:
        """Load the files; `protocols` are what ALPN agrees on (RFC 7301), with whoever asks.

        With `client_authority`, certificates as PEM, the handshake fails for clients that show none signed by these.

        Raises: ConfigError.
        """
        self._certificate = certificate
        self._key = key
        self._protocols = protocols
        self._client_authority = client_authority
        self._context = self.load()

    def load(self) -> ssl.SSLContext:
        """What the files have now, for `use`.

        Raises: ConfigError.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A socket shut for reading because the daemon stops would else end in an alert, not in TLS's farewell.
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        if self._protocols:
            context.set_alpn_protocols(self._protocols)
        try:
            for path in (self._certificate, self._key):
                with open(path, "rb") as file:  # OpenSSL would not say which of the two it could not open
                    if path == self._key:
                        check_secret(path, os.fstat(file.fileno()))
            context.load_cert_chain(self._certificate, self._key, self._passphrase)
        except ssl.SSLError as error:
            reason = tls_reason(error)
            detail = "" if reason == NO_PEM else f": {reason}"
            raise ConfigError(
                f"{self._certificate}: not a certificate with its key in {self._key}, both as PEM{detail}"
            ) from None
        except OSError as error:
            raise ConfigError(f"{error.filename or self._certificate}: cannot read: {error.strerror}") from None
        if self._client_authority is not None:
            _demand_certificates(context, self._client_authority)
        return context

    def _passphrase(self) -> NoReturn:
        """What is asked for the passphrase of a key: a daemon has nobody to ask, least of all on SIGHUP."""
        remedy = "store it without a passphrase, for this user alone: openssl pkey -in FILE -out NEW"
        raise ConfigError(f"{self._key}: the key is encrypted: {remedy}")

    def use(self, loaded: ssl.SSLContext) -> None:
        """Take what `load` has given for the connections to come."""
        self._context = loaded

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """`sock` with TLS on it; does the handshake within the socket's timeout.

        Raises: ssl.SSLError, OSError.
        """
        return self._context.wrap_socket(sock, server_side=True)


class Certificate:
    """The certificate that several protocols have: a context for each way in which ALPN calls them."""

    def __init__(self, certificate: str, key: str, client_authority: str | None = None) -> None:
        """The files, which are loaded for the first context."""
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._contexts: dict[tuple[str, ...], TlsContext] = {}

    def context(self, protocols: tuple[str, ...] = ()) -> TlsContext:
        """The one context of all who agree on these `protocols` by ALPN.

        Raises: ConfigError.
        """
        if protocols not in self._contexts:
            files = self._certificate, self._key
            self._contexts[protocols] = TlsContext(*files, protocols, self._client_authority)
        return self._contexts[protocols]

    def reload(self) -> None:
        """Load the files again, for all of them or for none.

        Raises: ConfigError, and then the old certificate stays.
        """
        loaded = [(context, context.load()) for context in list(self._contexts.values())]
        for context, fresh in loaded:
            context.use(fresh)
