"""The bodies that clients of the control API send, checked field by field."""

from __future__ import annotations

from typing import Any, NamedTuple

from hexz.errors import JsonError
from hexz.jsontext import load_json
from hexz.protocol.nydus.errors import ControlError, other, parse_error

__all__ = [
    "CONFIG_KEYS",
    "LOG_LEVELS",
    "MAX_BODY",
    "BlobRequest",
    "MountRequest",
    "parse_blob",
    "parse_config",
    "parse_log_level",
    "parse_mount",
]

MAX_BODY = 1 << 20
"""Longest request body, bytes."""
MAX_CONFIG_VALUE = 64 << 10
MAX_ID = 1024
"""Longest id of a blob or a domain, characters: they are kept."""
FS_TYPES = ("", "hexz", "rafs", "passthrough", "passthroughfs", "passthrough_fs")
"""What clients call the kind of a mount; here they all mean a snapshot."""
LOG_LEVELS = {"off": 60, "error": 40, "warn": 30, "info": 20, "debug": 10, "trace": 5}
"""Their levels and those of the standard library."""
CONFIG_KEYS = ("registry_auth", "proxy_url", "dragonfly_scheduler_endpoint")


class MountRequest(NamedTuple):
    """What to mount: a snapshot's path, and the options of the configuration's ``hexz`` part."""

    source: str
    options: dict[str, Any]
    prefetch: bool


class BlobRequest(NamedTuple):
    """A snapshot file to register under an id in a domain."""

    blob_id: str
    domain_id: str
    path: str


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = load_json(body)
    except JsonError as error:
        raise parse_error(error.reason, error.line or 1, error.column or 1) from None
    if not isinstance(value, dict):
        raise parse_error("invalid type: expected an object", 1, len(body))
    return value


def _text(value: dict[str, Any], key: str, body: bytes, default: str | None = None) -> str:
    found = value.get(key, default)
    if found is None:
        raise parse_error(f"missing field `{key}`", 1, len(body))
    if not isinstance(found, str):
        raise parse_error(f"invalid type: `{key}` must be a string", 1, len(body))
    return found


def parse_mount(body: bytes) -> MountRequest:
    """The body of POST and PUT mount: ``source`` and ``config`` are required, ``fs_type`` and ``prefetch_files`` not.

    Raises: ControlError.
    """
    value = _parse_object(body)
    source = _text(value, "source", body)
    config = _text(value, "config", body)
    fs_type = _text(value, "fs_type", body, "")
    files = value.get("prefetch_files")
    if files is not None and not (isinstance(files, list) and all(isinstance(name, str) for name in files)):
        raise parse_error("invalid type: `prefetch_files` must be a list of strings", 1, len(body))
    if fs_type not in FS_TYPES:
        raise other("Mount", "InvalidArguments", f"filesystem type {fs_type} is not known", "INVALID_ARGUMENT")
    if not _is_path(source):
        raise other("Mount", "InvalidArguments", "source is not a possible path", "INVALID_ARGUMENT")
    return MountRequest(source, _own_options(config), bool(files))


def _is_path(text: str) -> bool:
    """Whether a file could have this name."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text


def _own_options(config: str) -> dict[str, Any]:
    """The ``hexz`` part of a mount's configuration; what else it says is for other daemons.

    A configuration that is not JSON may be TOML, which has nothing for us either.
    """
    if not config.lstrip().startswith("{"):
        return {}
    try:
        value = load_json(config)
    except JsonError:
        raise other("Mount", "InvalidConfig", "the configuration is not JSON", "INVALID_ARGUMENT") from None
    options = value.get("hexz", {})
    if not isinstance(options, dict):
        raise other("Mount", "InvalidConfig", "`hexz` must be an object", "INVALID_ARGUMENT")
    return options


def parse_log_level(body: bytes) -> str:
    """The level that PUT daemon sets, one of `LOG_LEVELS`.

    Raises: ControlError.
    """
    value = _parse_object(body)
    level = _text(value, "log_level", body).lower()
    if level not in LOG_LEVELS:
        known = ", ".join(LOG_LEVELS)
        text = f"{level[:32]!r} is no log level: one of {known}"
        raise other("Configure", "ResponsePayloadType", text, "INVALID_ARGUMENT")
    return level


def parse_config(body: bytes) -> dict[str, str]:
    """The run-time settings of PUT config.

    Raises: ControlError.
    """
    value = _parse_object(body)
    for key, text in value.items():
        if key not in CONFIG_KEYS:
            known = ", ".join(CONFIG_KEYS)
            raise other("Configure", "InvalidArguments", f"unknown key {key[:64]!r}: one of {known}", "BAD_KEY", 400)
        if not isinstance(text, str) or len(text) > MAX_CONFIG_VALUE:
            raise parse_error(f"invalid type: `{key}` must be a string", 1, len(body))
    return value


def parse_blob(body: bytes) -> BlobRequest:
    """A blob entry, with its path in either form of the configuration.

    Raises: ControlError.
    """
    value = _parse_object(body)
    kind = _text(value, "type", body)
    blob_id = _text(value, "id", body)
    domain_id = _text(value, "domain_id", body, "")
    if max(len(blob_id), len(domain_id)) > MAX_ID:
        raise other("CreateBlobObject", "InvalidArguments", f"an id has at most {MAX_ID} characters")
    if kind != "bootstrap":
        raise other("CreateBlobObject", "InvalidArguments", f"blobs of type {kind[:32]!r} are not possible")
    for key in ("config_v2", "config"):
        config = value.get(key)
        if isinstance(config, dict):
            path = config.get("metadata_path") or _cache_path(config)
            if not isinstance(path, str) or not _is_path(path):
                raise other("CreateBlobObject", "InvalidArguments", "metadata_path is missing or no possible path")
            return BlobRequest(blob_id, domain_id, path)
    raise config_missing()


def _cache_path(config: dict[str, Any]) -> object:
    cache = config.get("cache")
    return cache.get("metadata_path") if isinstance(cache, dict) else None


def config_missing() -> ControlError:
    """A blob entry whose configuration is missing."""
    return other("CreateBlobObject", "InvalidConfig", "config or config_v2 is missing", "INVALID_ARGUMENT", 400)
