"""The images API under ``/images/ID``, as backup tools of CloudStack and oVirt speak it.

A request is decided in this order: is there such an image (404), may this client see
it (401), can the image do that at all (405, or 403 where only its registration
forbids it), is the request sound (400, 415, 416), is there a turn (503).  Errors
are JSON: ``{"error": "..."}``.
"""

from __future__ import annotations

import contextlib
import logging

from hexz.errors import BlockError, HandedOver, HexzError, SnapshotError, StorageError
from hexz.images import checksum
from hexz.images.errors import Busy, ImageError, NoSuchImage
from hexz.images.registry import Registry
from hexz.metrics import Purpose
from hexz.metrics.labels import OTHER
from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.responses import Response
from hexz.servers.http.application import Request
from hexz.servers.images.data import ImageData
from hexz.servers.images.errors import Refusal
from hexz.servers.images.requests import PREFIX, json_answer
from hexz.servers.images.subresources import Checksum, Extents, Flush

__all__ = ["PREFIX", "ImagesApplication"]

log = logging.getLogger("hexz.images")

MAX_REFUSED_BODY = 256 << 20
"""A body that is not wanted is read away up to so many bytes: a client that is cut off while it sends, over TLS at
least, never sees why.  oVirt's client sends up to 128 MiB at once."""
RETRY_AFTER_S = 1
DISCARD = 64 << 10
UNNAMED = Purpose(None, OTHER, "", PREFIX)
"""What refusals, and answers that concern no image, are counted as."""
ALL_FEATURES = ("checksum", "extents", "flush", "zero")


class ImagesApplication:
    """Answers ``/images`` and all that is below it."""

    def __init__(self, registry: Registry, unix_socket: str | None = None) -> None:
        """`unix_socket`: where the same is to be had by clients on this machine, who are told."""
        self._registry = registry
        self._unix_socket = unix_socket
        self._resources = {"": ImageData, "extents": Extents, "checksum": Checksum, "flush": Flush}

    def respond(self, request: Request) -> Response:
        """The response to any request there."""
        try:
            response = self._respond(request)
            return response if response.purpose else response._replace(purpose=UNNAMED)
        except Refusal as refusal:
            response = json_answer({"error": str(refusal)}, refusal.status, *refusal.headers)
        except RequestError as error:
            response = json_answer({"error": str(error)}, error.status)
        except HandedOver as error:
            if not (request.secure or request.body.taken):
                raise  # the successor answers, over the same connection
            response = json_answer({"error": str(error)}, 503, ("Retry-After", str(RETRY_AFTER_S)))
        except Busy as error:
            response = json_answer({"error": str(error)}, 503, ("Retry-After", str(RETRY_AFTER_S)))
        except HexzError as error:
            if error.http_status >= 500:
                log.warning("%s: %s: %s", request.peer, request.head.shown, error)
            retry = (("Retry-After", str(RETRY_AFTER_S)),) if error.http_status == 503 else ()
            response = json_answer({"error": _told(error)}, error.http_status, *retry)
        except OSError as error:
            log.warning("%s: %s: %s", request.peer, request.head.shown, error)
            response = json_answer({"error": "the system failed"}, 500)
        _read_away(request)
        return response._replace(purpose=UNNAMED)

    def _respond(self, request: Request) -> Response:
        segments = [segment for segment in request.head.segments if segment]
        if len(segments) == 2 and segments[1] == "*" and request.head.method == "OPTIONS":
            return json_answer({"features": list(ALL_FEATURES)}, 200, ("Allow", "OPTIONS,GET,HEAD,PUT,PATCH,POST"))
        if segments[2:] == ["checksum", "algorithms"]:
            return json_answer({"algorithms": list(checksum.ALGORITHMS)})
        resource = self._resources.get(segments[2] if len(segments) == 3 else "") if 2 <= len(segments) <= 3 else None
        if resource is None or (len(segments) == 3 and not segments[2]):
            raise NoSuchImage("not found")
        image = self._registry.find(segments[1])
        if not image.admits(_token(request)):
            raise Refusal(401, "this image needs its token", ("WWW-Authenticate", 'Bearer realm="images"'))
        return resource(image, request, self._unix_socket).respond()


def _told(error: HexzError) -> str:
    """What the client is told: where things lie on the server is for the log alone."""
    if isinstance(error, BlockError):
        return f"the {error.stream} block at {error.position} is damaged"
    if isinstance(error, (ImageError, StorageError)):
        return error.reason
    return "the snapshot cannot be read" if isinstance(error, SnapshotError) else str(error)


def _token(request: Request) -> str | None:
    """The image's token: in a header of its own, since Authorization may have to carry the server's."""
    own = request.head.headers.get("x-image-token")
    if own is not None:
        return own
    scheme, _, token = request.head.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _read_away(request: Request) -> None:
    """Read what the client still sends of a body that is not wanted, within bounds."""
    body = request.body
    if body.finished or body.untouched or body.length is None or body.length > MAX_REFUSED_BODY:
        return
    with contextlib.suppress(RequestError, OSError):  # the connection is closed then, which the framework sees to
        while not body.finished:
            body.read(DISCARD)
