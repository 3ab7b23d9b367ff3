"""What every request of the images API has: an image, a session while the response takes, and answers in JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from hexz.images.backend import Session
from hexz.images.hexz import HexzSession
from hexz.images.registry import Image
from hexz.metrics import Purpose
from hexz.metrics.labels import INFO, WRITE
from hexz.protocol.http.responses import VOLATILE, Piece, Response
from hexz.protocol.images import parse_query
from hexz.servers.http.application import Request
from hexz.servers.images.errors import Refusal

__all__ = ["PREFIX", "Resource", "json_answer"]

Item = TypeVar("Item")

PREFIX = "images"
OP_OF_METHOD = {"OPTIONS": INFO, "HEAD": INFO, "PUT": WRITE, "PATCH": WRITE}
"""What requests other than a GET are counted as."""


def json_answer(value: Any, status: int = 200, *headers: tuple[str, str]) -> Response:
    """`value` as a response in JSON."""
    body = json.dumps(value, separators=(",", ":")).encode()
    kind = (("Content-Type", "application/json"), VOLATILE, ("Accept-Ranges", "bytes"))
    return Response(status, (*kind, *headers), (body,), len(body))


class Resource:
    """One request for one resource of one image: a method for each HTTP method that it knows."""

    methods: tuple[str, ...] = ()
    op = INFO
    """What GET is counted as."""

    def __init__(self, image: Image, request: Request, unix_socket: str | None) -> None:
        self.image = image
        self.unix_socket = unix_socket
        self.request = request
        self.head = request.head
        self.stack = contextlib.ExitStack()
        """What the response needs until it was sent."""
        self.purpose = Purpose(None, OP_OF_METHOD.get(self.head.method, self.op), "", PREFIX)

    def respond(self) -> Response:
        """The response; what was taken for it is given back when it was sent, or now if it is refused."""
        with self.stack:
            method = self.head.method
            if method not in self.methods:
                raise Refusal(405, f"{method} is not possible here", *self.allow(self.methods))
            response: Response = getattr(self, "get" if method == "HEAD" else method.lower())()
            if any(isinstance(part, Piece) for part in response.body):
                response = response._replace(done=self.stack.pop_all().close)
            return response._replace(purpose=self.purpose)

    @staticmethod
    def allow(methods: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """The headers that say which methods are possible, for people and for pages."""
        return ("Allow", ",".join(methods)), ("Access-Control-Allow-Methods", ", ".join(methods))

    def query(self, *known: str) -> dict[str, str]:
        """The query's fields.  Raises: BadRequest."""
        return parse_query(self.head.query, known)

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same, as long as the client is there.  Raises: PeerGone."""
        for item in items:
            self.request.watch()
            yield item

    @property
    def may_write(self) -> bool:
        """Whether this client may change the image: whoever has the image's own token may."""
        return self.request.may_write or bool(self.image.registration.token)

    def check_writer(self) -> None:
        """Raises: Refusal (403) when this client may not change the image."""
        if not self.may_write:
            raise Refusal(
                403,
                "from the network nobody may write to this image without a token: "
                "give it a token in its registration, or start the server with --token-file",
            )

    def open(self, writing: bool = False, turn: bool = True) -> Session:
        """A session for as long as the response takes, when it is this request's turn.

        Raises: Busy, and what opening raises.
        """
        self.stack.enter_context(self.image.turn(writing) if turn else self.image.used())
        session = self.image.backend.open(writing)
        self.stack.callback(session.close)
        if isinstance(session, HexzSession):
            self.purpose = self.purpose._replace(metrics=session.metrics, stream=session.stream.name)
        return session
