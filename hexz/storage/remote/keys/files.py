"""Files with the keys to S3 stores: profiles as the AWS SDKs have them, and documents as their programs print them.

Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files" and "Process credential provider".
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, Optional

from hexz.errors import ConfigError, JsonError
from hexz.jsontext import load_json
from hexz.protocol.s3.client import Keys

__all__ = [
    "MAX_FILE",
    "Mark",
    "Profile",
    "Setting",
    "checked_keys",
    "document_keys",
    "mark_at",
    "parse_profiles",
    "profile_keys",
    "read_file",
]

MAX_FILE = 1 << 20
"""Longest file of keys, bytes."""
MAX_SECRET = 1024
"""Longest secret, characters; those of AWS have 40."""

_SECTION = re.compile(r"\[([^][]*)\]\s*(?:[#;].*)?")
_PROFILE = re.compile(r"profile\s+(.*)")
# The commas are those of the Authorization header.
_ACCESS_KEY = re.compile(r"[!-+\--~]{1,256}")
_TOKEN = re.compile(r"[!-~]{1,16384}")
_SECRET = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_SECRET}}}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(?:Z|([+-])(\d\d):?(\d\d))", re.ASCII)

Mark = Optional[tuple[int, int, int, int]]
"""What tells whether a file is still the one that was read: device, inode, size, time; None for no such file."""


class Setting(NamedTuple):
    """One value of a file, and its ``FILE:LINE`` for messages."""

    value: str
    where: str


Profile = Mapping[str, Setting]
"""The settings of one section by name; what is nested has a dot in its name (``s3.endpoint_url``)."""


def mark_at(path: str) -> Mark:
    """The mark of what is at `path` now."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_file(path: str) -> tuple[bytes, os.stat_result]:
    """What is in the regular file at `path`, and its status when that was read.

    Raises: OSError; ConfigError when it is too long or something else.
    """
    # Non-blocking, so that a FIFO cannot hang the open; regular files ignore it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: too long: a file of keys may have {MAX_FILE} bytes")
    return data, status


def parse_profiles(data: bytes, path: str) -> dict[str, dict[str, Setting]]:
    """The sections of a file of profiles: ``[NAME]`` and ``[profile NAME]`` are both ``NAME``, the later one wins.

    Raises: ConfigError with the line.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    sections: dict[str, dict[str, Setting]] = {}
    section: dict[str, Setting] | None = None
    outer = ""
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        if text[0] == "[":
            found = _SECTION.fullmatch(text)
            if found is None:
                raise ConfigError(f"{where}: a section is written [NAME]")
            section = sections.setdefault(_name_of(found[1].strip()), {})
            outer = ""
            continue
        if section is None:
            raise ConfigError(f"{where}: comes before the first [section]")
        name, equals, value = (part.strip() for part in text.partition("="))
        if outer and line[0] in " \t":
            # A setting of its own within one that is empty, else more of its value, as the SDKs read it.
            if section[outer].value:
                section[outer] = section[outer]._replace(value=f"{section[outer].value}\n{text}")
            elif equals:
                section[f"{outer}.{name.lower()}"] = Setting(value, where)
            continue
        if not equals or not name:
            raise ConfigError(f"{where}: neither [section] nor name = value")
        outer = name.lower()
        section[outer] = Setting(value, where)
    return sections


def _name_of(section: str) -> str:
    found = _PROFILE.fullmatch(section)
    return found[1].strip("\"'") if found is not None else section


def profile_keys(profile: Profile) -> Keys | None:
    """The keys of a profile; None when it has none.

    Raises: ConfigError with file and line, when they are half there or make no sense.
    """
    access_key, secret = profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")
    if access_key is None and secret is None:
        return None
    if secret is None or access_key is None:
        here, other = (access_key, "aws_secret_access_key") if access_key else (secret, "aws_access_key_id")
        raise ConfigError(f"{here.where if here else ''}: the profile has no {other}")
    token = profile.get("aws_session_token") or profile.get("aws_security_token")
    return Keys(
        _checked(access_key.value, _ACCESS_KEY, "aws_access_key_id", access_key.where),
        _checked(secret.value, _SECRET, "aws_secret_access_key", secret.where),
        _checked(token.value, _TOKEN, "aws_session_token", token.where) if token is not None else None,
    )


def checked_keys(access_key: str, secret: str, token: str | None, expires: float | None, where: str) -> Keys:
    """Keys from elsewhere, `where` for messages; a token that is empty is none.

    Raises: ConfigError when they cannot be any.
    """
    return Keys(
        _checked(access_key, _ACCESS_KEY, "access key", where),
        _checked(secret, _SECRET, "secret", where),
        _checked(token, _TOKEN, "session token", where) if token else None,
        expires,
    )


def _checked(text: str, form: re.Pattern[str], name: str, where: str) -> str:
    if form.fullmatch(text) is None:
        raise ConfigError(f"{where}: the {name} is empty, too long, or has a character that keys have not")
    return text


def document_keys(data: bytes, where: str) -> Keys:
    """The keys of a JSON document, as a ``credential_process`` prints them and metadata services answer; never none.

    Raises: ConfigError.
    """
    try:
        document = load_json(data)
    except JsonError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: not a JSON object with AccessKeyId and SecretAccessKey")
    if document.get("Version", 1) != 1:
        raise ConfigError(f"{where}: keys of another Version than 1")
    found: list[str | None] = []
    for names in (("AccessKeyId",), ("SecretAccessKey",), ("SessionToken", "Token"), ("Expiration",)):
        value = next((document[name] for name in names if document.get(name) is not None), None)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{where}: {names[0]} is not a string")
        found.append(value)
    access_key, secret, token, expiration = found
    if access_key is None or secret is None:
        raise ConfigError(f"{where}: has no {'AccessKeyId' if access_key is None else 'SecretAccessKey'}")
    expires = _seconds(expiration) if expiration else None
    if expiration and expires is None:
        raise ConfigError(f"{where}: Expiration is not a time as in 2030-12-31T23:59:59Z")
    return checked_keys(access_key, secret, token, expires, where)


def _seconds(text: str) -> float | None:
    """Seconds since 1970 of a time with its zone (RFC 3339), None for anything else."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    try:
        time = datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
    ahead = timedelta(hours=int(found[3] or 0), minutes=int(found[4] or 0)).total_seconds()
    return time + ahead if found[2] == "-" else time - ahead
