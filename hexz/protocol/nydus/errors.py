"""Refusals in the shape that Nydus clients read: a status, a code, and a message with a fixed beginning.

Clients search some messages for fixed words: those keep the nested form
``Operation(Kind("text"))`` of the Nydus daemon.  Where the cause is our own to tell it
comes first, in plain words, and the operation and the kind behind it.  The codes are our own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hexz.protocol.http.errors import RequestError
from hexz.protocol.http.responses import Response, json_response

__all__ = [
    "ControlError",
    "abnormal",
    "bad_request",
    "nested",
    "no_counter",
    "no_route",
    "no_tracing",
    "other",
    "parse_error",
    "query_missing",
    "refusal_response",
]


class ControlError(RequestError):
    """A request that the control API refuses; `code` is for programs, the message for people and old clients."""

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(status, message)
        self.code = code
        self.headers = headers


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def bad_request() -> ControlError:
    """A method or body that the route does not take: 400, where HTTP would say 405."""
    return ControlError(400, "BAD_REQUEST", "BadRequest")


def no_tracing(allowed: Iterable[str]) -> ControlError:
    """TRACE, on a route that takes the methods `allowed`: RFC 9110 section 15.5.6; no client of the API sends it."""
    return ControlError(405, "METHOD_NOT_ALLOWED", "BadRequest", (("Allow", ", ".join(sorted(allowed))),))


def no_route() -> ControlError:
    """There is no such route."""
    return ControlError(404, "NO_ROUTE", "NoRoute")


def query_missing(key: str) -> ControlError:
    """The query lacks `key`."""
    text = _quoted(f"'{key}' should be specified in query string")
    return ControlError(400, "QUERY_STRING", f"QueryString({text})")


def parse_error(text: str, line: int = 1, column: int = 1) -> ControlError:
    """The body is not what it should be, from this place on (both count from 1)."""
    return ControlError(400, "PARSE_BODY", f"ParseBody(Error({_quoted(text)}, line: {line}, column: {column}))")


def no_counter(wrapper: str) -> ControlError:
    """Nothing is counted under the id that was asked for."""
    return ControlError(404, "NO_COUNTER", f"{wrapper}(Metrics(Stats(NoCounter)))")


def abnormal(wrapper: str, what: str, status: int) -> ControlError:
    """The daemon's state does not allow it: `what` is ``UnexpectedEvent("Start")``, ``NotReady`` or ``Unsupported``."""
    code = {400: "UNEXPECTED_EVENT", 501: "UNSUPPORTED", 503: "NOT_READY"}[status]
    return ControlError(status, code, f"{wrapper}(DaemonAbnormal({what}))")


def other(wrapper: str, kind: str, text: str, code: str = "FAILED", status: int = 500) -> ControlError:
    """Any other trouble: ``text (Mount(MountFilesystem))``."""
    return ControlError(status, code, f"{text} ({wrapper}({kind}))")


def nested(wrapper: str, kind: str, text: str, code: str) -> ControlError:
    """Trouble in the Nydus daemon's own words: ``Mount(MountFilesystem(Other("text")))``."""
    return ControlError(500, code, f"{wrapper}({kind}(Other({_quoted(text)})))")


_CODES = {400: "BAD_REQUEST", 404: "NOT_FOUND", 408: "TIMEOUT", 413: "TOO_LARGE", 414: "TOO_LARGE", 431: "TOO_LARGE"}


def refusal_response(status: int, message: str, error: RequestError | None = None) -> Response:
    """The answer to a refused request; for `error` with its own code if it has one."""
    own = error if isinstance(error, ControlError) else None
    code = own.code if own else _CODES.get(status, "FAILED")
    body: dict[str, Any] = {"code": code, "message": message}
    return json_response(body, status, own.headers if own else ())
