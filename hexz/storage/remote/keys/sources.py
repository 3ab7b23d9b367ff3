"""Where the keys to S3 stores come from: the places that the AWS SDKs look in, in their order.

Source: AWS SDKs and Tools Reference Guide, "Standardized credential providers", "Shared config and credentials
files", "AWS Region", "Service-specific endpoints".  Roles, single sign-on and web identities ask services of AWS
for keys, which is not done here: a ``credential_process`` may.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from hexz.errors import ConfigError, CredentialsUnavailable
from hexz.protocol.s3.client import Keys, is_region
from hexz.secretfile import check_secret, secret_trouble
from hexz.storage.remote.keys.files import (
    Mark,
    Profile,
    Setting,
    checked_keys,
    document_keys,
    mark_at,
    parse_profiles,
    profile_keys,
    read_file,
)
from hexz.storage.remote.keys.services import container_keys, instance_keys, process_keys, program_trouble

__all__ = ["Found", "Sources"]

log = logging.getLogger("hexz.storage")

_ROLE = ("role_arn", "web_identity_token_file")
_SIGN_ON = ("sso_session", "sso_start_url", "login_session")
_INSTEAD = (
    "is not supported here: name a credential_process, such as the AWS CLI's"
    " aws configure export-credentials --format process --profile NAME"
)
_URL = re.compile(r"https?://[!-~]{1,2048}", re.IGNORECASE)
_ON = ("true", "1", "yes", "on")


class Found(NamedTuple):
    """What the sources say; `source` is where the keys come from, for the log."""

    keys: Keys | None
    region: str | None
    endpoint: str | None
    source: str


class _ProfilesFile(NamedTuple):
    path: str
    sections: Mapping[str, Profile]
    status: os.stat_result | None


class Sources:
    """The places to look in; one thread at a time reads them."""

    def __init__(
        self,
        file: str | None,
        profile: str | None,
        instance: bool,
        environ: Mapping[str, str] | None,
        metadata_url: str,
        container_url: str,
    ) -> None:
        """The arguments are those of `Credentials`."""
        self._file = file
        self._profile = profile
        self._instance = instance
        self._environ = os.environ if environ is None else environ
        self._metadata_url = metadata_url
        self._container_url = container_url
        self._warned: set[str] = set()

    def read(self, files: dict[str, Mark]) -> Found:
        """What they say now; the files that were looked for come into `files`, also where this raises.

        Raises: ConfigError, with file and line; CredentialsUnavailable.
        """
        found = self._own_file(self._file, files) if self._file is not None else self._usual_places(files)
        keys = found.keys
        if keys is not None and keys.expires is not None and keys.expires <= time.time():
            ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(keys.expires))
            raise CredentialsUnavailable(f"the S3 keys from {found.source} expired at {ended}")
        return found

    def _own_file(self, path: str, files: dict[str, Mark]) -> Found:
        files[path] = mark_at(path)  # before it is read: what is changed meanwhile is seen then
        try:
            data, status = read_file(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a possible file name"
            raise ConfigError(f"{path}: cannot read the S3 credentials: {reason}") from None
        check_secret(path, status)
        if data.lstrip().startswith(b"{"):
            return Found(document_keys(data, path), self._region({}), self._endpoint({}, {}), path)
        sections = parse_profiles(data, path)
        name = self._profile or "default"
        if name not in sections:
            raise ConfigError(f"{path}: no section [{name}]")
        profile = sections[name]
        keys = profile_keys(profile) or self._printed_keys(profile, path, status)
        if keys is None:
            raise ConfigError(f"{path}: the section [{name}] has no aws_access_key_id")
        return Found(keys, self._region(profile, True), self._endpoint(profile, sections, True), f"[{name}] of {path}")

    def _usual_places(self, files: dict[str, Mark]) -> Found:
        shared = self._load("AWS_SHARED_CREDENTIALS_FILE", "credentials", files)
        config = self._load("AWS_CONFIG_FILE", "config", files)
        named = self._profile or self._environ.get("AWS_PROFILE")
        name = named or "default"
        if named and named not in shared.sections and named not in config.sections:
            raise ConfigError(f"{shared.path}: no profile {named!r}, and none in {config.path}")
        profile = {**config.sections.get(name, {}), **shared.sections.get(name, {})}
        keys, source = self._usual_keys(name, profile, shared, config)
        return Found(keys, self._region(profile), self._endpoint(profile, config.sections), source)

    def _load(self, variable: str, name: str, files: dict[str, Mark]) -> _ProfilesFile:
        """A file of profiles; none is as good as an empty one, and one that cannot be read is said in the log."""
        path = self._environ.get(variable) or f"~/.aws/{name}"
        if path.startswith("~/"):
            path = f"{self._environ.get('HOME') or os.path.expanduser('~')}{path[1:]}"
        files[path] = mark_at(path)  # before it is read: what is changed meanwhile is seen then
        try:
            data, status = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return _ProfilesFile(path, {}, None)
        except OSError as error:
            self._warn(f"{path}: cannot read the profiles: {error.strerror}")
            return _ProfilesFile(path, {}, None)
        return _ProfilesFile(path, parse_profiles(data, path), status)

    def _warn(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            log.warning("%s", line)

    # --- keys

    def _usual_keys(
        self, name: str, profile: Profile, shared: _ProfilesFile, config: _ProfilesFile
    ) -> tuple[Keys | None, str]:
        keys = None if self._profile else self._environment_keys()
        if keys is not None:
            return keys, "the environment"
        _refuse(profile, _ROLE)  # even beside keys: those of the role would have other rights
        for file in (shared, config):
            section = file.sections.get(name, {})
            keys = profile_keys(section)
            if keys is not None and file.status is not None:
                trouble = secret_trouble(file.path, file.status)
                if trouble:
                    self._warn(f"{file.path}: {trouble}")
            if keys is None and file.status is not None:
                keys = self._printed_keys(section, file.path, file.status)
            if keys is not None:
                return keys, f"profile {name!r} of {file.path}"
        _refuse(profile, _SIGN_ON)
        if self._environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
            _refuse({_ROLE[1]: Setting("", "AWS_WEB_IDENTITY_TOKEN_FILE")}, _ROLE)
        if self._instance:
            return self._instance_keys()
        return None, "nowhere: stores are asked as nobody"

    def _environment_keys(self) -> Keys | None:
        environ = self._environ
        access_key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
        if not access_key:
            return None
        if not secret:
            raise ConfigError("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not")
        token = environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN")
        return checked_keys(access_key, secret, token, None, "the environment")

    def _printed_keys(self, section: Profile, path: str, status: os.stat_result) -> Keys | None:
        command = section.get("credential_process")
        if command is None:
            return None
        trouble = program_trouble(path, status)
        if trouble:
            raise ConfigError(f"{command.where}: {trouble}")
        return process_keys(command.value, command.where, self._environ)

    def _instance_keys(self) -> tuple[Keys, str]:
        environ = self._environ
        keys = container_keys(environ, self._container_url)
        if keys is not None:
            return keys, "the container's metadata"
        if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() in _ON:
            raise ConfigError("AWS_EC2_METADATA_DISABLED forbids to ask for the keys that are to come from there")
        return instance_keys(
            environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or self._metadata_url
        ), "instance metadata"

    # --- what is configured beside them

    def _region(self, profile: Profile, own: bool = False) -> str | None:
        """From the environment or else the `profile`; the other way round from a file that is our `own`."""
        return self._setting(("AWS_REGION", "AWS_DEFAULT_REGION"), profile.get("region"), own, is_region, "a region")

    def _endpoint(self, profile: Profile, sections: Mapping[str, Profile], own: bool = False) -> str | None:
        ignored = profile.get("ignore_configured_endpoint_urls")
        told = self._environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") or (ignored.value if ignored else "")
        if told.lower() in _ON:
            return None
        services = profile.get("services")
        special = sections.get(f"services {services.value}", {}) if services is not None else {}
        setting = special.get("s3.endpoint_url") or profile.get("endpoint_url")
        return self._setting(("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), setting, own, _is_url, "an http or https URL")

    def _setting(
        self, variables: Iterable[str], listed: Setting | None, own: bool, fits: Callable[[str], bool], what: str
    ) -> str | None:
        said = next((Setting(self._environ[name], name) for name in variables if self._environ.get(name)), None)
        setting = (listed or said) if own else (said or listed)
        if setting is None or not setting.value:
            return None
        if not fits(setting.value):
            raise ConfigError(f"{setting.where}: not {what}")
        return setting.value


def _is_url(text: str) -> bool:
    return _URL.fullmatch(text) is not None


def _refuse(profile: Profile, names: Iterable[str]) -> None:
    for name in names:
        if name in profile:
            raise ConfigError(f"{profile[name].where}: {name} {_INSTEAD}")
