"""The keys to S3 stores: read when they are wanted, and again when they were changed, expire or are refused."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from hexz.errors import CredentialsUnavailable, HexzError
from hexz.protocol.s3.client import Keys
from hexz.storage.remote.keys.files import Mark, mark_at
from hexz.storage.remote.keys.services import CONTAINER_URL, METADATA_URL
from hexz.storage.remote.keys.sources import Found, Sources

__all__ = ["REFRESH_S", "Credentials"]

log = logging.getLogger("hexz.storage")

REFRESH_S = 300.0
"""So long before keys expire their source is asked for new ones."""
RETRY_S = 10.0
"""How long a source is left alone after it was asked, unless a file has changed: a store that refuses all requests,
or a service that is down, is not to have each of them ask anew."""
LONGEST_S = 60.0
"""How long to wait for another thread that reads the sources: longer than all of them together may take."""
LOOK_S = 1.0
"""How often who waits looks whether that thread is still at it."""


class _State(NamedTuple):
    """What the sources gave when they were read last.

    `error` says why that failed: `found` is then what they gave before, if they ever did.  `files` are those that
    were looked for, `asked` is when, on the monotonic clock.
    """

    found: Found | None
    files: Mapping[str, Mark]
    asked: float
    error: HexzError | None

    def keys(self) -> Keys | None:
        """The keys, still good or not."""
        return self.found.keys if self.found is not None else None

    def is_good(self) -> bool:
        """Whether there are keys that have not expired."""
        keys = self.keys()
        return keys is not None and (keys.expires is None or time.time() < keys.expires)

    def is_changed(self) -> bool:
        """Whether a file is another now."""
        return any(mark_at(path) != mark for path, mark in self.files.items())

    def is_due(self) -> bool:
        """Whether the sources are to be read again."""
        keys = self.keys()
        ends = keys is not None and keys.expires is not None and time.time() >= keys.expires - REFRESH_S
        if (ends or self.error is not None) and time.monotonic() >= self.asked + RETRY_S:
            return True
        return self.is_changed()


class Credentials:
    """The keys of one store or of all that have the same; threads share one.

    Keys are read when they are first wanted and kept.  They are read again when one of their files was changed,
    `REFRESH_S` before they expire, and when a store refused them; while that fails, those that are there go on
    being used as long as they are good.
    """

    def __init__(
        self,
        file: str | None = None,
        profile: str | None = None,
        instance: bool = False,
        environ: Mapping[str, str] | None = None,
        metadata_url: str = METADATA_URL,
        container_url: str = CONTAINER_URL,
    ) -> None:
        """A `file` of keys is their only source: profiles as in ``~/.aws/credentials``, or a JSON document.

        A `profile` that is given comes before the environment.  With `instance` the metadata services of the
        container and of the machine are asked last; ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` goes before `metadata_url`.
        Nothing is read yet.
        """
        self._sources = Sources(file, profile, instance, environ, metadata_url, container_url)
        self._lock = threading.Lock()  # guards what follows; never held while a source is read
        self._state: _State | None = None
        self._reading: threading.Event | None = None

    def get(self) -> Keys | None:
        """The keys to sign with; None when none are configured, to ask as nobody.

        Raises: ConfigError, with file and line, for a source that is wrong; CredentialsUnavailable for one that does
        not answer or has only keys that have expired.
        """
        return self._current().keys

    def region(self) -> str | None:
        """The region that is configured beside the keys, if one is.

        Raises: as `get`.
        """
        return self._current().region

    def endpoint(self) -> str | None:
        """The URL of the store that is configured beside the keys, if one is.

        Raises: as `get`.
        """
        return self._current().endpoint

    def renew(self, refused: Keys | None) -> Keys | None:
        """Other keys than those that a store `refused`; None when there are none.

        One thread reads the sources, however many were refused; keys that came meanwhile are given without that.
        Raises: CredentialsUnavailable when another thread does not get to an end with it.
        """
        state = self._state
        if state is None or (
            state.keys() == refused and (time.monotonic() >= state.asked + RETRY_S or state.is_changed())
        ):
            state = self._read_again(state, True)
        return state.keys() if state.is_good() and state.keys() != refused else None

    def _current(self) -> Found:
        state = self._state
        if state is None or state.is_due():
            state = self._read_again(state, False)
        found = state.found
        if state.error is not None and not state.is_good():
            found = None
        if found is None:
            # Without the trace of whoever got it before: it is the same error for all until the sources are asked anew.
            raise (state.error or CredentialsUnavailable("no S3 keys were read")).with_traceback(None)
        return found

    def _read_again(self, seen: _State | None, refused: bool) -> _State:
        """What the sources give now; `seen` is what there was, and has to do while others read unless it was `refused`.

        Raises: CredentialsUnavailable when others do not get to an end.
        """
        deadline = time.monotonic() + LONGEST_S
        while True:
            with self._lock:
                state = self._state
                if state is not None and state is not seen:
                    return state
                reading = self._reading
                if reading is None:
                    mine = self._reading = threading.Event()
                    break
            if seen is not None and not refused and seen.is_good():
                return seen
            if time.monotonic() > deadline:
                raise CredentialsUnavailable(f"no S3 keys: reading them has taken longer than {LONGEST_S:g} s")
            reading.wait(LOOK_S)
        try:
            state = self._read(seen)
            with self._lock:
                self._state = state
            return state
        finally:
            with self._lock:
                self._reading = None
            mine.set()

    def _read(self, seen: _State | None) -> _State:
        files: dict[str, Mark] = {}
        old = seen.found if seen is not None else None
        try:
            found = self._sources.read(files)
        except HexzError as error:
            if seen is not None and old is not None and seen.is_good() and str(seen.error) != str(error):
                log.warning("%s; going on with the S3 keys from %s", error, old.source)
            return _State(old, files, time.monotonic(), error)
        if old is None or old.source != found.source:
            log.info("S3 keys from %s", found.source)
        return _State(found, files, time.monotonic(), None)
