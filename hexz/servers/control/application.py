"""The control API: the routes of the Nydus image service, as an application of the HTTP server.

Answers, statuses and messages follow the Nydus daemon, whose clients insist on them;
what it gets wrong is done right where no client depends on it.  A wrong method on a
known route is 400, success is 200 with JSON or 204 without a body, never anything else.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs

from hexz.control.blobs import BlobTable
from hexz.control.figures import ControlFigures
from hexz.control.mounts import DRAIN_S, MountTable
from hexz.errors import HexzError
from hexz.protocol.http.responses import Response, json_response
from hexz.protocol.nydus import bodies, shapes
from hexz.protocol.nydus.errors import (
    ControlError,
    abnormal,
    bad_request,
    no_route,
    no_tracing,
    other,
    query_missing,
)
from hexz.protocol.nydus.machine import State
from hexz.servers.control.errors import NotAllowed
from hexz.servers.http.application import Application, Request
from hexz.servers.spool import building
from hexz.units import parse_number

__all__ = ["ControlApplication", "DaemonFacts", "Machine"]

log = logging.getLogger("hexz.control")

LONGEST_DRAIN_S = 3600.0
MAX_FIELDS = 100
"""Most fields of a query."""
PASSED_ON = frozenset({"/metrics", "/healthz", "/readyz"})
"""Routes that the control socket shares with the HTTP port, besides ``/snapshots/NAME/prefetch``."""
SECRET_KEYS = frozenset({"registry_auth"})
BLANK = "********"
_USER_INFO = re.compile(r"(?<=//)[^/?#]*@")
"""Name and password in a URL (RFC 3986 section 3.2.1)."""
DONE = Response(204)


def _is_list(path: str) -> bool:
    return path.startswith("/snapshots/") and path.endswith("/prefetch")


class Machine(Protocol):
    """The daemon's life as far as the control API drives it."""

    @property
    def state(self) -> State:
        """Where it is now."""

    def start(self) -> None:
        """Begin to accept.  Raises: NotAllowed."""

    def exit(self, drain_s: float | None) -> None:
        """End; returns when nothing is served any more, at the latest `drain_s` seconds later."""

    def send_state(self) -> None:
        """Give the supervisor what a successor needs.  Raises: NotAllowed, HexzError."""

    def take_over(self) -> None:
        """Become the successor of the process whose state the supervisor has.  Raises: NotAllowed, HexzError."""


class DaemonFacts(NamedTuple):
    """What the daemon was started with and says of itself: facts beyond those of the API, and lines for people."""

    own_id: str | None
    supervisor: str | None
    extra: Callable[[], dict[str, Any]]
    status: Callable[[], list[str]]


Query = Callable[[str], "str | None"]
Handler = Callable[[Query, bytes], Response]


class ControlApplication:
    """Everything under ``/api``, and the health and metrics routes of `others`."""

    def __init__(
        self,
        machine: Machine,
        mounts: MountTable,
        blobs: BlobTable,
        figures: ControlFigures,
        facts: DaemonFacts,
        others: Application,
    ) -> None:
        self._machine = machine
        self._mounts = mounts
        self._blobs = blobs
        self._figures = figures
        self._facts = facts
        self._others = others
        self._config: dict[str, dict[str, str]] = {}  # by the catalog's name, "" for all; changed under _config_lock
        self._config_lock = threading.Lock()
        # (method, path) -> (whether a body is wanted, handler)
        self._routes: dict[tuple[str, str], tuple[bool, Handler]] = {
            ("GET", "/api/v1/daemon"): (False, self._info),
            ("PUT", "/api/v1/daemon"): (True, self._configure),
            ("GET", "/api/v2/daemon"): (False, self._info_v2),
            ("PUT", "/api/v2/daemon"): (True, self._configure),
            ("GET", "/api/v1/daemon/events"): (False, self._events),
            ("GET", "/api/v1/daemon/backend"): (False, self._backend_info),
            ("PUT", "/api/v1/daemon/start"): (False, self._start),
            ("PUT", "/api/v1/daemon/exit"): (False, self._exit),
            ("PUT", "/api/v1/daemon/fuse/sendfd"): (False, self._send_state),
            ("PUT", "/api/v1/daemon/fuse/takeover"): (False, self._take_over),
            ("POST", "/api/v1/mount"): (True, self._mount),
            ("PUT", "/api/v1/mount"): (True, self._remount),
            ("DELETE", "/api/v1/mount"): (False, self._umount),
            ("GET", "/api/v1/metrics"): (False, lambda query, _: json_response(figures.fs(query("id")))),
            ("GET", "/api/v1/metrics/files"): (False, self._files),
            ("GET", "/api/v1/metrics/pattern"): (False, self._pattern),
            ("GET", "/api/v1/metrics/backend"): (False, lambda query, _: json_response(figures.backend(query("id")))),
            ("GET", "/api/v1/metrics/blobcache"): (
                False,
                lambda query, _: json_response(figures.blobcache(query("id"))),
            ),
            ("GET", "/api/v1/metrics/inflight"): (False, self._inflight),
            ("GET", "/api/v1/config"): (False, self._get_config),
            ("PUT", "/api/v1/config"): (True, self._put_config),
            ("GET", "/api/v2/blobs"): (False, self._list_blobs),
            ("PUT", "/api/v2/blobs"): (True, self._create_blob),
            ("DELETE", "/api/v2/blobs"): (False, self._delete_blob),
        }
        self._paths = {path for _, path in self._routes}

    def respond(self, request: Request) -> Response:
        """The response to any request.

        Raises: ControlError.
        """
        head = request.head
        if head.path in PASSED_ON or _is_list(head.path):
            return self._others.respond(request)
        if head.path not in self._paths:
            raise no_route()
        if head.method == "TRACE":
            raise no_tracing(method for method, path in self._routes if path == head.path)
        body = _read_body(request)
        found = self._routes.get((head.method, head.path))
        if found is None or found[0] is not bool(body):
            raise bad_request()
        fields = _fields(head.query)
        with building if head.method == "GET" else contextlib.nullcontext():
            return found[1](lambda key: fields.get(key, [None])[0], body)

    # The daemon

    def _info(self, query: Query, body: bytes) -> Response:
        return self._tell(self._mounts.instances())

    def _info_v2(self, query: Query, body: bytes) -> Response:
        return self._tell(None, {"status": self._facts.status()})

    def _tell(self, instances: list[shapes.Instance] | None, more: dict[str, Any] | None = None) -> Response:
        facts = self._facts
        state = self._machine.state.value
        return json_response(
            shapes.daemon_info(facts.own_id, facts.supervisor, state, instances, {**facts.extra(), **(more or {})})
        )

    def _configure(self, query: Query, body: bytes) -> Response:
        level = bodies.parse_log_level(body)
        logging.getLogger().setLevel(bodies.LOG_LEVELS[level])
        log.info("log level %s", level)
        return DONE

    def _events(self, query: Query, body: bytes) -> Response:
        return json_response(self._figures.events(_number(query, "since", 0)))

    def _backend_info(self, query: Query, body: bytes) -> Response:
        return json_response(shapes.backend_facts(self._mounts.facts(_required(query, "mountpoint"))))

    def _start(self, query: Query, body: bytes) -> Response:
        return self._drive("Configure", self._machine.start)

    def _exit(self, query: Query, body: bytes) -> Response:
        drain_s = _seconds(query, "drain_timeout") if query("drain_timeout") is not None else None
        return self._drive("Configure", lambda: self._machine.exit(drain_s))

    def _send_state(self, query: Query, body: bytes) -> Response:
        return self._drive("Upgrade", self._machine.send_state)

    def _take_over(self, query: Query, body: bytes) -> Response:
        return self._drive("Upgrade", self._machine.take_over)

    @staticmethod
    def _drive(wrapper: str, action: Callable[[], None]) -> Response:
        try:
            action()
        except NotAllowed as error:
            raise abnormal(wrapper, error.what, error.status) from None
        except HexzError as error:
            raise other(wrapper, "DaemonAbnormal", str(error)) from None
        return DONE

    # Mounts

    def _serving(self) -> None:
        """Mounts need a daemon that has taken over already.  Raises: ControlError."""
        if self._machine.state is State.INIT:
            raise abnormal("Mount", "NotReady", 503)

    def _mount(self, query: Query, body: bytes) -> Response:
        mountpoint = _required(query, "mountpoint")
        self._serving()
        self._mounts.mount(mountpoint, bodies.parse_mount(body))
        return DONE

    def _remount(self, query: Query, body: bytes) -> Response:
        mountpoint = _required(query, "mountpoint")
        self._serving()
        request = bodies.parse_mount(body)
        if query("strict") == "true":
            request = request._replace(options={**request.options, "strict": True})
        self._mounts.remount(mountpoint, request)
        return DONE

    def _umount(self, query: Query, body: bytes) -> Response:
        mountpoint = _required(query, "mountpoint")
        drain_s = _seconds(query, "drain_timeout") if query("drain_timeout") is not None else DRAIN_S
        name = self._mounts.name_at(mountpoint)
        try:
            self._mounts.umount(mountpoint, drain_s)
        finally:
            self._forget_config(name)
        return DONE

    # Figures

    def _files(self, query: Query, body: bytes) -> Response:
        wanted = query("id")
        if query("latest") == "true":
            return json_response(self._figures.latest(wanted, clear=query("peek") != "true"))
        return json_response(self._figures.files(wanted))

    def _pattern(self, query: Query, body: bytes) -> Response:
        top = _number(query, "top", 0) or None
        return json_response(self._figures.pattern(query("id"), top))

    def _inflight(self, query: Query, body: bytes) -> Response:
        flights = self._figures.inflight(_number(query, "min_age_ms", 0))
        return json_response(flights) if flights else DONE

    # Run-time settings, for clients of Nydus; nothing here depends on them

    def _get_config(self, query: Query, body: bytes) -> Response:
        kept = self._config.get(self._name_of(query("id")), {})
        return json_response({key: _shown(key, text) for key, text in kept.items()})

    def _put_config(self, query: Query, body: bytes) -> Response:
        name = self._name_of(query("id"))
        settings = bodies.parse_config(body)
        with self._config_lock:
            self._config[name] = {**self._config.get(name, {}), **settings}
        return DONE

    def _name_of(self, wanted: str | None) -> str:
        return self._mounts.name_at(wanted) if wanted else ""

    def _forget_config(self, name: str) -> None:
        """What was set for a snapshot that has gone is not for the next one of that name."""
        if not self._mounts.has(name):
            with self._config_lock:
                self._config.pop(name, None)

    # Blobs

    def _list_blobs(self, query: Query, body: bytes) -> Response:
        return json_response(self._blobs.list(_required(query, "domain_id"), query("blob_id")))

    def _create_blob(self, query: Query, body: bytes) -> Response:
        self._blobs.create(bodies.parse_blob(body))
        return DONE

    def _delete_blob(self, query: Query, body: bytes) -> Response:
        domain, blob = query("domain_id"), query("blob_id")
        if domain is not None:
            self._blobs.delete(domain, blob)
        elif blob is not None:
            self._blobs.forget_cached(blob)
        else:
            raise query_missing("domain_id")
        return DONE


def _shown(key: str, text: str) -> str:
    """A setting as whoever may only read gets it."""
    return BLANK if key in SECRET_KEYS and text else _USER_INFO.sub(f"{BLANK}@", text)


def _fields(query: str) -> dict[str, list[str]]:
    """The fields of a query.  Raises: ControlError."""
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise ControlError(400, "QUERY_STRING", f'QueryString("more than {MAX_FIELDS} fields")') from None


def _read_body(request: Request) -> bytes:
    """The whole body.  Raises: ControlError (413)."""
    parts: list[bytes] = []
    size = 0
    if (request.body.length or 0) > bodies.MAX_BODY:
        raise _too_large()
    while True:
        part = request.body.read(bodies.MAX_BODY)
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > bodies.MAX_BODY:
            raise _too_large()
        parts.append(part)


def _too_large() -> ControlError:
    return ControlError(413, "TOO_LARGE", f"BadRequest: a body has at most {bodies.MAX_BODY} bytes")


def _required(query: Query, key: str) -> str:
    value = query(key)
    if value is None:
        raise query_missing(key)
    return value


def _number(query: Query, key: str, default: int) -> int:
    text = query(key)
    if text is None:
        return default
    number = parse_number(text, 18)
    if number is None:
        raise ControlError(400, "QUERY_STRING", f'QueryString("{key} is not a number")')
    return number


def _seconds(query: Query, key: str) -> float:
    try:
        value = float(query(key) or "")
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST_DRAIN_S:
        raise ControlError(400, "QUERY_STRING", f'QueryString("{key} is not a number of seconds")')
    return value
