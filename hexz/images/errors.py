"""Every kind of trouble with images of the images API."""

from __future__ import annotations

import errno

from hexz.errors import BadRequest, HexzError, NoSuchSnapshot
from hexz.protocol.nbd import constants as nbd

__all__ = [
    "BackendDown", "BackendError", "BadRegistration", "Busy", "EndedEarly", "FileFull", "ImageError", "JournalError",
    "NbdFault", "NoSuchImage", "NotAble", "NotRaw", "OverlayError", "OverlayFull", "OverlayInUse",
]  # fmt: skip


class ImageError(HexzError):
    """Trouble with what is behind an image: `where` it is concerns the log alone, `reason` is for everybody."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class BackendError(ImageError):
    """The image's own storage said no, or something that makes no sense."""

    http_status = 502


class BackendDown(BackendError):
    """The image's storage cannot be reached now; trying again later may help."""

    http_status = 503


class NotAble(HexzError):
    """This image cannot do what was asked of it."""

    http_status = 405


class NotRaw(BackendError):
    """The file is no raw image."""

    http_status = 500


class FileFull(BackendError):
    """The file system has no room."""

    http_status = 507


class NbdFault(BackendError):
    """The server answered a request with an error; the connection is fine."""

    def __init__(self, where: str, errno: int, text: str = "") -> None:
        name = nbd.ERROR_NAMES.get(errno, str(errno))
        super().__init__(where, f"the NBD server answered {name}{': ' + text if text else ''}")
        self.errno = errno
        if errno == nbd.NBD_ENOSPC:
            self.http_status = 507


class OverlayError(ImageError):
    """An overlay's files are damaged, or lie over another snapshot."""

    exit_status = 65


class OverlayInUse(OverlayError):
    """Another process has the overlay; soon perhaps no more."""

    exit_status = 75
    http_status = 503


class OverlayFull(ImageError):
    """The overlay's quota, its map or its file system has no room."""

    http_status = 507
    nbd_errno = errno.ENOSPC


class JournalError(Exception):
    """The bytes are no overlay's journal; the text says why, without the file's name."""


class NoSuchImage(NoSuchSnapshot):
    """No snapshot and no registration has this id."""


class BadRegistration(HexzError):
    """The registration is there and cannot be used; the log says why."""


class Busy(HexzError):
    """All of the image's places for readers or writers are taken."""

    http_status = 503


class EndedEarly(BadRequest):
    """The client sent less than it announced."""
