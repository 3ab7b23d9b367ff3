"""Which images there are: the snapshots of the catalog, and what is registered in a directory.

A registration is a JSON file ``ID`` or ``ID.json`` in the directory.  It is read
when a request names it, and again after it changed; a file that is gone takes its
image with it.  Who can write registrations decides what this process reads and
writes, so files and directory have to belong to root or to this process's user,
writable for nobody else.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from hexz.catalog import Catalog, Lease, check_name
from hexz.errors import ConfigError, HandedOver, HexzError, UsageError
from hexz.images.backend import Backend
from hexz.images.errors import BadRegistration, Busy, NoSuchImage
from hexz.images.file import FileBackend
from hexz.images.folder import FileLocation
from hexz.images.hexz import HexzBackend, OpenStream
from hexz.images.nbd.backend import NbdBackend
from hexz.images.nbd.wire import NbdAddress
from hexz.images.overlay.backend import OverlayBackend
from hexz.protocol.images import (
    MAX_REGISTRATION,
    Registration,
    is_image_id,
    parse_registration,
)
from hexz.secretfile import secret_trouble
from hexz.snapshot import Stream

__all__ = ["Image", "Registry"]

log = logging.getLogger("hexz.images")

WAIT_S = 5.0
"""How long a request waits for its turn before it is told to come back."""
SWEEP_S = 10.0
"""How often images are looked through for those that are gone or idle."""
LET_WRITE_S = 0.5
"""How long those that write are given to end when a successor is to go on."""
MAX_IMAGES = 4096
MEMORY_SUFFIX = ".memory"


class Image:
    """One image in service: its backend, and who may use it how much."""

    def __init__(self, image_id: str, backend: Backend, registration: Registration) -> None:
        self.id = image_id
        self.backend = backend
        self.registration = registration
        self.last_used = time.monotonic()
        self._readers = threading.BoundedSemaphore(registration.max_readers)
        self._writers = threading.BoundedSemaphore(registration.max_writers)
        self._lock = threading.Lock()  # guards _users and _waiting
        self._users = 0
        self._waiting = 0  # for a turn to write

    def admits(self, token: str | None) -> bool:
        """Whether `token` is the image's, or it needs none."""
        wanted = self.registration.token
        return not wanted or (token is not None and hmac.compare_digest(wanted.encode(), token.encode()))

    @contextlib.contextmanager
    def turn(self, writing: bool) -> Iterator[None]:
        """One of the image's places for readers or for writers.

        Raises: Busy after `WAIT_S` seconds.
        """
        places = self._writers if writing else self._readers
        if not places.acquire(blocking=False):
            with self._lock:
                self._waiting += writing
            try:
                if not places.acquire(timeout=WAIT_S):
                    raise Busy(f"too many parallel {'writes' if writing else 'reads'}")
            finally:
                with self._lock:
                    self._waiting -= writing
        try:
            with self.used():
                yield
        finally:
            places.release()

    @property
    def writers_wait(self) -> bool:
        """Somebody waits for a turn to write."""
        return self._waiting > 0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """While it is used an image does not count as idle."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self.last_used = time.monotonic()

    def idle_too_long(self) -> bool:
        """Nobody used it for its ``idle_timeout_seconds``."""
        limit = self.registration.idle_timeout_seconds
        return bool(limit) and not self._users and time.monotonic() - self.last_used >= limit


class _Entry(NamedTuple):
    """A registration's state: what its file looked like, and the image, None if it is expired or has a problem."""

    key: tuple[int, ...]
    image: Image | None
    problem: bool = False


class _Found(NamedTuple):
    """A registration's file: `key` tells whether it is the one that was read before."""

    key: tuple[int, ...]
    path: str
    data: bytes
    status: os.stat_result


class Registry:
    """Images by id; all methods are thread-safe."""

    def __init__(self, catalog: Catalog, directory: str | None = None, allowed: tuple[str, ...] = ()) -> None:
        """`allowed`: the directories in which registered files may be; with none, no file may.

        Raises: ConfigError when the directory is missing or open to others.
        """
        self._catalog = catalog
        self._directory = directory
        self._allowed = tuple(os.path.realpath(path) for path in allowed)
        self._lock = threading.Lock()  # guards _entries and _own
        self._entries: dict[str, _Entry] = {}
        self._own: dict[str, Image] = {}  # images of the catalog
        self._sweeper: threading.Thread | None = None  # guarded by _lock
        self._handed_over = False  # set once, with _lock
        self._closing = threading.Event()
        if directory is not None:
            try:
                status = os.stat(directory)
            except OSError as error:
                raise ConfigError(f"{directory}: cannot read registrations: {error.strerror}") from None
            if not stat.S_ISDIR(status.st_mode):
                raise ConfigError(f"{directory}: not a directory")
            _check_ownership(directory, status)

    def find(self, image_id: str) -> Image:
        """The image of this id.

        Raises: NoSuchImage, BadRegistration.
        """
        image = self._registered(image_id) if self._directory is not None and is_image_id(image_id) else None
        return image if image is not None else self._of_catalog(image_id)

    def _of_catalog(self, image_id: str) -> Image:
        name, stream = image_id, "disk"
        if name not in self._catalog and name.endswith(MEMORY_SUFFIX):
            name, stream = name[: -len(MEMORY_SUFFIX)], "memory"
        if name not in self._catalog:
            raise NoSuchImage("unknown image_id")
        with self._lock:
            image = self._own.get(image_id)
            if image is None:
                if len(self._own) >= MAX_IMAGES:  # of snapshots that came and went
                    self._own.clear()
                limits = Registration("hexz", snapshot=name, stream=stream, read_only=True)
                image = self._own[image_id] = Image(image_id, HexzBackend(self._stream(name, stream)), limits)
        return image

    def _stream(self, name: str, which: str) -> OpenStream:
        def open_stream() -> tuple[Lease, Stream]:
            return self._catalog.stream(name if which == "disk" else f"{name}/memory")

        return open_stream

    # Registrations

    def _registered(self, image_id: str) -> Image | None:
        """The image that is registered under `image_id`, or None."""
        try:
            found = self._read(image_id)
        except ConfigError as error:
            self._retire(image_id)
            log.error("%s", error)
            raise BadRegistration("this image's registration cannot be used: the log says why") from None
        if found is None:
            self._retire(image_id)
            return None
        if self._handed_over:
            raise HandedOver("another process goes on with this image: ask again")
        with self._lock:
            entry = self._entries.get(image_id)
        if entry is not None and entry.image is not None and entry.image.idle_too_long():
            entry = self._expire(image_id, entry)
        if entry is None or entry.key != found.key:
            entry = self._register(image_id, found)
        if entry.image is None:
            if entry.problem:
                raise BadRegistration("this image's registration cannot be used: the log says why")
            raise NoSuchImage("unknown image_id: its registration expired")
        return entry.image

    def _register(self, image_id: str, found: _Found) -> _Entry:
        """Make the image of a registration that is new or has changed, and retire the one it replaces."""
        key, path = found.key, found.path
        try:
            registration = parse_registration(found.data)
            if registration.token:
                trouble = secret_trouble(path, found.status)
                if trouble:
                    raise ConfigError(trouble)
            entry = _Entry(key, Image(image_id, self._backend(registration), registration))
            if registration.unknown:
                log.warning("%s: these keys mean nothing here: %s", path, ", ".join(registration.unknown))
        except ConfigError as error:
            log.error("%s: %s", path, error)
            entry = _Entry(key, None, problem=True)
        with self._lock:
            old = self._entries.get(image_id)
            if old is not None and old.key == key:
                return old  # another thread was faster
            if old is None and len(self._entries) >= MAX_IMAGES:
                raise Busy(f"{MAX_IMAGES} images are in service, which is the most")
            self._entries[image_id] = entry
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep_on, name="images sweep", daemon=True)
                self._sweeper.start()
        if old is not None and old.image is not None:
            old.image.backend.close()
        return entry

    def _retire(self, image_id: str) -> None:
        with self._lock:
            entry = self._entries.pop(image_id, None)
        if entry is not None and entry.image is not None:
            entry.image.backend.close()

    def _read(self, image_id: str) -> _Found | None:
        """A registration's file, or None if there is none."""
        assert self._directory is not None
        for name in (image_id, f"{image_id}.json"):
            path = os.path.join(self._directory, name)
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from None
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{path}: not a regular file")
                _check_ownership(path, status)
                data = os.read(file, MAX_REGISTRATION + 1)
            finally:
                os.close(file)
            return _Found((status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode), path, data, status)
        return None

    def _backend(self, found: Registration) -> Backend:
        if found.backend == "nbd":
            address: NbdAddress = found.socket or (found.host, found.port)
            return NbdBackend(address, found.export, found.export_bitmap, found.read_only)
        if found.backend == "file":
            return FileBackend(self._allowed_place(found.file), found.read_only, found.quota)
        try:
            open_stream = self._stream(check_name(found.snapshot), found.stream)
        except UsageError as error:
            raise ConfigError(str(error)) from None
        if found.backend == "hexz":
            return HexzBackend(open_stream)
        return OverlayBackend(self._allowed_place(found.file), open_stream, found.quota, found.read_only)

    def _allowed_place(self, path: str) -> FileLocation:
        """Where the file is inside an allowed directory.  Each session goes there anew, and then follows no link.

        Raises: ConfigError.
        """
        real = os.path.realpath(path)
        for folder in self._allowed:
            if real != folder and os.path.commonpath((real, folder)) == folder:
                return FileLocation.below(folder, real)
        raise ConfigError(f"file {path!r} is in none of the allowed directories (--images-allow)")

    def _expire(self, image_id: str, entry: _Entry) -> _Entry:
        """Take an image out of service; its registration counts again once it was changed."""
        expired = entry._replace(image=None)
        with self._lock:
            if self._entries.get(image_id) is not entry:
                return self._entries.get(image_id, expired)
            self._entries[image_id] = expired
        log.info("image %s: out of service: idle for too long", image_id)
        if entry.image is not None:
            entry.image.backend.close()
        return expired

    def _sweep_on(self) -> None:
        while not self._closing.wait(SWEEP_S):
            self.sweep()

    def sweep(self) -> None:
        """Let go of what is gone from the directory, or was idle too long."""
        with self._lock:
            entries = list(self._entries.items())
        for image_id, entry in entries:
            if entry.image is not None and entry.image.idle_too_long():
                self._expire(image_id, entry)
            elif self._directory is not None and not any(
                os.path.lexists(os.path.join(self._directory, name)) for name in (image_id, f"{image_id}.json")
            ):
                self._retire(image_id)

    def hand_over(self) -> None:
        """Give what is registered to the successor, which waits for it: requests that still come are sent there.

        Takes as long as writing needs to end, and to be flushed.
        """
        deadline = time.monotonic() + LET_WRITE_S
        with self._lock:
            self._handed_over = True
            images = [entry.image for entry in self._entries.values() if entry.image is not None]
        for image in images:
            try:
                image.backend.hand_over(deadline)
            except (HexzError, OSError) as error:
                log.error("image %s: cannot be handed over in full: %s", image.id, error)

    def close(self) -> None:
        """Close every backend; sessions that are open end by themselves."""
        self._closing.set()
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            if entry.image is not None:
                entry.image.backend.close()


def _check_ownership(path: str, status: os.stat_result) -> None:
    """Raises: ConfigError when somebody else could have written this."""
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: belongs to user {status.st_uid}, not to root or the server's own user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: can be written by others: chmod go-w")
