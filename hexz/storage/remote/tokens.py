"""Bearer tokens by server, from a file of ``HOST TOKEN`` lines, which is read again when it changes."""

from __future__ import annotations

import logging
import re
import threading

from hexz.errors import ConfigError
from hexz.secretfile import read_secret_lines
from hexz.storage.remote.keys.files import Mark, mark_at
from hexz.storage.remote.places import OriginName

__all__ = ["HostTokens"]

log = logging.getLogger("hexz.storage")

_LINE = re.compile(r"(\S+)[ \t]+([A-Za-z0-9._~+/=-]{1,8192})")


class HostTokens:
    """The tokens; each is shown to its own server alone."""

    def __init__(self, path: str | None) -> None:
        """Raises: ConfigError."""
        self._path = path
        self._lock = threading.Lock()  # guards the two below
        self._seen: Mark = None
        self._tokens: dict[str, str] = {}
        if path is not None:
            self._tokens, self._seen = _read(path), mark_at(path)

    def of(self, origin: OriginName) -> str | None:
        """The token for a server: of ``HOST:PORT``, or of ``HOST``.  A file that cannot be read leaves the old ones."""
        if self._path is None:
            return None
        mark = mark_at(self._path)
        with self._lock:
            fresh = mark is not None and mark != self._seen
            if fresh:
                self._seen = mark
        if fresh:
            try:
                tokens = _read(self._path)
            except ConfigError as error:
                log.warning("the tokens stay as they were: %s", error)
            else:
                with self._lock:
                    self._tokens = tokens
        tokens = self._tokens
        return tokens.get(f"{origin.host}:{origin.port}") or tokens.get(origin.host)


def _read(path: str) -> dict[str, str]:
    tokens = {}
    for number, line in enumerate(read_secret_lines(path, "tokens"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        found = _LINE.fullmatch(stripped)
        if found is None:
            raise ConfigError(f"{path}: line {number}: a server's name and its token, with a blank between")
        tokens[found[1].lower()] = found[2]
    return tokens
