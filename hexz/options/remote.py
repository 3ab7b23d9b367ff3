"""The options about snapshots on servers: what each is called and means, and what they come to together."""

from __future__ import annotations

import argparse
import os

from hexz.errors import UsageError
from hexz.options.arguments import size
from hexz.options.values import Options
from hexz.storage.remote import RemoteSettings, StoreNames, is_remote, public_name
from hexz.storage.remote.places import parse_place
from hexz.storage.remote.settings import DEADLINE_S

__all__ = ["add_remote_options", "remote_settings"]

ADDRESSING = {"auto": None, "path": True, "virtual": False}
DEFAULT_DISK_CACHE = 10 << 30
SMALLEST_DISK_CACHE = 64 << 20
LONGEST_DEADLINE_S = 3600.0


def _timeout(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= LONGEST_DEADLINE_S:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from 0.1 to {LONGEST_DEADLINE_S:g}")
    return value


def add_remote_options(group: argparse._ArgumentGroup) -> None:
    """Let a parser know them."""
    group.add_argument(
        "--s3-endpoint", metavar="URL", help="where s3://BUCKET/KEY is (default: AWS_ENDPOINT_URL_S3, else Amazon)"
    )
    group.add_argument("--s3-region", metavar="NAME", help="its region (default: AWS_REGION, the profile's, us-east-1)")
    group.add_argument(
        "--s3-addressing",
        choices=tuple(ADDRESSING),
        default="auto",
        help="whether buckets are in the path or in the host's name (default auto: in the path of an --s3-endpoint)",
    )
    group.add_argument(
        "--s3-credentials-file",
        metavar="FILE",
        help="keys for s3://, as in ~/.aws/credentials, instead of the environment and that file; read again on change",
    )
    group.add_argument("--s3-profile", metavar="NAME", help="which profile of those files (default: AWS_PROFILE)")
    group.add_argument(
        "--s3-instance-credentials",
        action="store_true",
        help="ask the metadata service of this machine for keys",
    )
    group.add_argument(
        "--remote-token-file",
        metavar="FILE",
        help="bearer tokens for servers: a HOST TOKEN line each; read again on change",
    )
    group.add_argument("--ca-file", metavar="FILE", help="certificates (PEM) that servers may be signed by")
    group.add_argument(
        "--parent-url",
        action="append",
        default=[],
        metavar="URL",
        help="address below which thin snapshots may look for parents, besides their own folder; repeatable",
    )
    group.add_argument(
        "--remote-timeout",
        type=_timeout,
        default=DEADLINE_S,
        metavar="SECONDS",
        help=f"how long one read of a server may take, with all tries (default {DEADLINE_S:g})",
    )
    group.add_argument(
        "--remote-trust-times",
        action="store_true",
        help="take servers without ETag: size and time of the last change tell versions apart",
    )
    group.add_argument(
        "--disk-cache",
        metavar="DIR",
        help="keep what was fetched here, over restarts; one daemon for a folder, which may be deleted at any time",
    )
    group.add_argument(
        "--disk-cache-size",
        type=size,
        default=DEFAULT_DISK_CACHE,
        metavar="SIZE",
        help="most that it takes on the disk (default 10G)",
    )
    group.add_argument(
        "--prefetch",
        action="append",
        default=[],
        metavar="LIST",
        help="fetch what this list names, as hexz record writes it, before anybody asks; repeatable",
    )
    group.add_argument(
        "--fill", action="store_true", help="fetch whole snapshots into the disk cache, behind all else there is to do"
    )
    group.add_argument(
        "--fetch-rate",
        type=size,
        default=0,
        metavar="SIZE",
        help="most bytes a second that --prefetch and --fill fetch of each file (default 0 = any)",
    )
    group.add_argument(
        "--require-origin",
        action="store_true",
        help="end where a snapshot's server cannot be reached; otherwise it is tried again until it can",
    )


def remote_settings(options: Options) -> RemoteSettings:
    """How remote snapshots are reached.  Raises: UsageError."""
    stores = StoreNames(options.s3_endpoint or "", options.s3_region or "", ADDRESSING[options.s3_addressing])
    for address in (options.s3_endpoint, *options.parent_url):
        if address is not None:
            if not is_remote(address):
                raise UsageError(f"{address!r} is no address: http://, https:// or s3://")
            # Of a bucket alone, too, something can be found below.
            place = parse_place(f"{address.rstrip('/')}/x")
            if not place.signed and "?" in place.target:
                raise UsageError(f"{public_name(address)!r}: no query can be there, for names are put behind it")
    if options.s3_endpoint and options.s3_endpoint.lower().startswith("s3://"):
        raise UsageError(f"--s3-endpoint {options.s3_endpoint}: http:// or https://")
    if options.fill and options.disk_cache is None:
        raise UsageError("--fill needs --disk-cache: whole snapshots do not fit in memory")
    if options.disk_cache_size < SMALLEST_DISK_CACHE:
        raise UsageError(f"--disk-cache-size {options.disk_cache_size}: at least 64M is needed")
    return RemoteSettings(
        stores=stores,
        credentials_file=_path(options.s3_credentials_file),
        profile=options.s3_profile,
        instance_credentials=options.s3_instance_credentials,
        token_file=_path(options.remote_token_file),
        ca_file=_path(options.ca_file),
        parent_urls=options.parent_url,
        trust_times=options.remote_trust_times,
        deadline_s=options.remote_timeout,
        disk_cache=_path(options.disk_cache),
        disk_cache_size=options.disk_cache_size,
        disk_cache_needed=not options.upgrade,
    )


def _path(path: str | None) -> str | None:
    # A detached daemon has another working directory than who started it.
    return None if path is None else os.path.abspath(path)
