"""Several applications behind one site, each below a path of its own."""

from __future__ import annotations

from collections.abc import Mapping

from hexz.protocol.http.responses import Response
from hexz.servers.http.application import Application, Request

__all__ = ["Router"]


class Router:
    """The application that sends a request to another, by the first segment of its path."""

    def __init__(self, rooms: Mapping[str, Application], others: Application) -> None:
        """`rooms` are by first segment, without a slash: ``images`` has ``/images`` and all that is below it.

        Every other path goes to `others`.
        """
        self._rooms = [(f"/{name}", f"/{name}/", application) for name, application in rooms.items()]
        self._others = others

    def respond(self, request: Request) -> Response:
        """The response to any request.  Raises: what the application raises."""
        path = request.head.path
        for exactly, below, application in self._rooms:
            if path == exactly or path.startswith(below):
                return application.respond(request)
        return self._others.respond(request)
