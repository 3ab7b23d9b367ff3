"""Programs and services that hand out keys to S3 stores for a while: each asked with a bound on time and answer.

Source: AWS SDKs and Tools Reference Guide, "Process credential provider", "Container credential provider" and
"IMDS credential provider"; of the instance's metadata only version 2 is spoken.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import os
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from hexz.errors import ConfigError, CredentialsUnavailable
from hexz.printable import printable
from hexz.protocol.s3.client import Keys
from hexz.storage.remote.keys.files import document_keys, read_file

__all__ = ["CONTAINER_URL", "METADATA_URL", "container_keys", "instance_keys", "process_keys", "program_trouble"]

METADATA_URL = "http://169.254.169.254"
"""Where an instance finds the service that knows it."""
CONTAINER_URL = "http://169.254.170.2"
"""What ``AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`` is relative to."""
METADATA_S = 2.0
"""How long one question to a metadata service may take, from connecting to the end of the answer."""
ATTEMPTS = 2
"""So often it is asked when it does not answer, or answers that something is wrong with itself."""
TOKEN_LIFE_S = 60
"""How long the token for the next two questions lives, seconds."""
PROCESS_S = 30.0
"""How long a program may take to print keys."""
END_S = 5.0
"""How long one that was killed may take to go."""
MAX_REASON = 200
"""Longest word about an answer that is no HTTP, characters."""
MAX_ANSWER = 1 << 16
"""Longest answer of a service or a program, bytes."""

_AGENTS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23")
"""Hosts beside our own that containers may be sent to for keys: those of ECS and EKS."""
_ROLE = re.compile(r"[\w+=,.@-]{1,128}", re.ASCII)
_TARGET = re.compile(r"[!-~]{1,2048}")
_HEADER = re.compile(r"[ -~]{1,16384}")


# --- programs


def program_trouble(path: str, status: os.stat_result) -> str:
    """Why no program is run that the file at `path` names: others could have put it there.  Empty when all is well."""
    if status.st_uid not in (0, os.geteuid()):
        return "belongs to another user: no program that it names is run"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it: no program that it names is run before chmod go-w {shlex.quote(path)}"
    return ""


def process_keys(command: str, where: str, environ: Mapping[str, str]) -> Keys:
    """The keys that a program prints; no shell has to do with `command`, `where` is for messages.

    What it writes to standard error may have secrets in it and goes nowhere.
    Raises: ConfigError, CredentialsUnavailable.
    """
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{where}: credential_process: {str(error).lower()}") from None
    if not arguments:
        raise ConfigError(f"{where}: credential_process is empty")
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where}: credential_process: cannot run {arguments[0]!r}: {reason}") from None
    program = f"{where}: credential_process {os.path.basename(arguments[0])!r}"
    deadline = time.monotonic() + PROCESS_S
    try:
        data = _output(process, program, deadline)
        status = process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise CredentialsUnavailable(f"{program}: took longer than {PROCESS_S:g} s") from None
    finally:
        _end(process)
    if status:
        ended = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise CredentialsUnavailable(f"{program}: ended with {ended}: run it by hand to see why")
    return document_keys(data, program)


def _output(process: subprocess.Popen[bytes], program: str, deadline: float) -> bytes:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    data = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not waiting.poll(left * 1000):
            raise subprocess.TimeoutExpired(program, PROCESS_S)
        part = os.read(descriptor, MAX_ANSWER)
        if not part:
            return bytes(data)
        data += part
        if len(data) > MAX_ANSWER:
            raise ConfigError(f"{program}: prints more than {MAX_ANSWER} bytes")


def _end(process: subprocess.Popen[bytes]) -> None:
    """See that a program is gone; if it has not ended, with all that it has started in its session."""
    if process.poll() is None:  # not one that ended: its number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)


# --- metadata services


class _Service(NamedTuple):
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def instance_keys(base: str) -> Keys:
    """The keys of the role that the machine has, from its metadata service at the URL `base`.

    Raises: CredentialsUnavailable; ConfigError for a URL that is none.
    """
    service = _service(base.rstrip("/"), "the URL of instance metadata")
    life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)}
    token = _text(_ask(service, "PUT", f"{service.path}/latest/api/token", life), _HEADER, service)
    session = {"X-aws-ec2-metadata-token": token}
    roles = f"{service.path}/latest/meta-data/iam/security-credentials/"
    listed = _ask(service, "GET", roles, session, "this machine has no role")
    role = _text(listed.split(b"\n")[0], _ROLE, service)
    return _answered(_ask(service, "GET", roles + quote(role), session), service)


def container_keys(environ: Mapping[str, str], base: str) -> Keys | None:
    """The keys of the role that the container has, if `environ` says where to ask; `base` is for a relative URI.

    Raises: CredentialsUnavailable; ConfigError.
    """
    relative, full = (environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI", "") for kind in ("RELATIVE", "FULL"))
    if not relative and not full:
        return None
    name = f"AWS_CONTAINER_CREDENTIALS_{'RELATIVE' if relative else 'FULL'}_URI"
    if relative and not relative.startswith("/"):
        raise ConfigError(f"{name}: has to begin with a slash")
    service = _service(base + relative if relative else full, name)
    if not relative and not _is_near(service.host):
        raise ConfigError(f"{name}: keys are asked for only on this machine and of the agents of ECS and EKS")
    authorization = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
    path = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "")
    if path:
        try:
            authorization = read_file(path)[0].decode("latin-1").strip()
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the container's token: {error.strerror}") from None
    if authorization and _HEADER.fullmatch(authorization) is None:
        raise ConfigError(f"{path or 'AWS_CONTAINER_AUTHORIZATION_TOKEN'}: not a token for a header")
    return _answered(
        _ask(service, "GET", service.path or "/", {"Authorization": authorization} if authorization else {}), service
    )


def _is_near(host: str) -> bool:
    if host == "localhost" or host in _AGENTS:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _service(url: str, what: str) -> _Service:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme != "http" or _TARGET.fullmatch(url) is None or parts.username is not None:
        raise ConfigError(f"{what}: has to be http://HOST[:PORT] with a path")
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return _Service(host, 80 if port is None else port, path)


def _text(data: bytes, form: re.Pattern[str], service: _Service) -> str:
    text = data.decode("latin-1").strip()
    if form.fullmatch(text) is None:
        raise CredentialsUnavailable(f"{service}: no S3 keys: the metadata service gave an answer that makes no sense")
    return text


def _answered(data: bytes, service: _Service) -> Keys:
    try:
        return document_keys(data, str(service))
    except ConfigError as error:
        raise CredentialsUnavailable(f"{error}") from None


def _ask(service: _Service, method: str, target: str, headers: Mapping[str, str], missing: str = "") -> bytes:
    """The answer to one question; `missing` is what it means that there is no such thing.

    Raises: CredentialsUnavailable.
    """
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            status, data = _exchange(service, method, target, headers)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            late = isinstance(error, (TimeoutError, socket.timeout))
            reason = "no answer in time" if late else printable(str(error) or type(error).__name__)[:MAX_REASON]
            continue
        if status == 200 and len(data) <= MAX_ANSWER:
            return data
        reason = missing if status == 404 and missing else f"answers with status {status} and {len(data)} bytes"
        if status < 500:
            break
    raise CredentialsUnavailable(f"{service}: no S3 keys from the metadata service: {reason}")


def _exchange(service: _Service, method: str, target: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of one answer, at most a byte more of that than may be; no proxies, no redirects.

    Raises: OSError, http.client.HTTPException; UnicodeError for a host that can have no name.
    """
    deadline = time.monotonic() + METADATA_S
    host = f"[{service.host}]" if ":" in service.host else service.host
    fields = {"Host": f"{host}:{service.port}", "Connection": "close", **headers}
    if method == "PUT":
        fields["Content-Length"] = "0"
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection((service.host, service.port), METADATA_S) as connection:
        connection.sendall(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        answer = http.client.HTTPResponse(_Answer(connection, deadline), method=method)  # type: ignore[arg-type]
        with contextlib.closing(answer):
            answer.begin()
            return answer.status, answer.read(MAX_ANSWER + 1)


class _Answer(io.RawIOBase):
    """What comes from a socket until a deadline, however slowly the peer lets it drip."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client` asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes, 0 at the end.

        Raises: OSError, TimeoutError after the deadline.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
