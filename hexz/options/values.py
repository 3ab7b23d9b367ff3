"""What the daemon's command line says, as one typed value: a field for each option, called like it."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

__all__ = ["Options"]


class Options(NamedTuple):
    """The options as given or by their defaults, which `hexz.options.parser` has with their meanings.

    Sizes are in bytes, times in seconds; what is None or empty was not given.
    """

    snapshots: tuple[str, ...]

    # listening
    http: bool
    nbd: bool
    s3: bool
    port: int | None
    http_port: int | None
    nbd_port: int | None
    s3_port: int | None
    http_socket: str | None
    nbd_socket: str | None
    bind: str
    host_name: tuple[str, ...]
    allow_anonymous: tuple[str, ...]
    token_file: str | None
    s3_keys_file: str | None
    s3_domain: tuple[str, ...]
    tls_cert: str | None
    tls_key: str | None
    tls_client_ca: str | None
    nbd_tls: str | None
    nbd_pad: int
    max_range: int
    rate_limit: str | None
    access_log: str | None
    cors: str | None
    max_connections: int

    # reading
    cache_size: int
    images_dir: str | None
    images_allow: tuple[str, ...]
    password_file: str | None
    require_encrypted: bool
    require_seal: bool
    seal_key_file: str | None
    parent_dir: tuple[str, ...]
    no_parents: bool

    # reading from servers
    s3_endpoint: str | None
    s3_region: str | None
    s3_addressing: str
    s3_credentials_file: str | None
    s3_profile: str | None
    s3_instance_credentials: bool
    remote_token_file: str | None
    ca_file: str | None
    parent_url: tuple[str, ...]
    remote_timeout: float
    remote_trust_times: bool
    disk_cache: str | None
    disk_cache_size: int
    prefetch: tuple[str, ...]
    fill: bool
    fetch_rate: int
    require_origin: bool

    # controlling
    control: str | None
    control_mode: int
    control_uid: tuple[int, ...]
    control_root: tuple[str, ...]
    id: str | None
    supervisor: str | None
    upgrade: bool

    # running
    check: bool
    drain_timeout: float
    daemon: bool
    pid_file: str | None
    log_file: str | None
    status: bool
    stop: bool
    print_unit: str | None
    log_level: str

    @classmethod
    def of(cls, given: argparse.Namespace) -> Options:
        """From what the parser gives: the one place where values without a type get theirs."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()
        }
        return cls(**values)
