"""Every option of the daemon once: its name, type, default, meaning; and what they must not say together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from hexz.errors import UsageError
from hexz.options.arguments import HelpAction, Parser, VersionAction, size
from hexz.options.remote import add_remote_options
from hexz.options.values import Options
from hexz.protocol.http.origin import is_host_name
from hexz.rights.exposure import Access, parse_anonymous, tcp_place
from hexz.rights.secrets import credential
from hexz.servers.addresses import Address, TcpAddress, UnixAddress
from hexz.units import parse_number

__all__ = ["DEFAULT_PORTS", "UNIT_KINDS", "Settings", "access_of", "option_parser", "parse_arguments"]

DEFAULT_PORTS = {"http": 8080, "nbd": 10809, "s3": 9000}
"""The TCP port of each protocol when none is given."""
SMALLEST_CACHE = 1 << 20
LARGEST_PAD = 1 << 20
UNIT_KINDS = ("service", "activated", "http-socket", "nbd-socket", "user")
"""The unit files that --print-unit knows."""
LOG_LEVELS = ("debug", "info", "warning", "error")


_DESCRIPTION = """\
Serve compressed .hxz snapshots, read-only, over HTTP ranges, NBD and S3.

  hexz-serve snap.hxz                          http://127.0.0.1:8080/disk and .../memory
  hexz-serve --http --nbd snap.hxz             and nbd://127.0.0.1:10809/
  hexz-serve --daemon --port 8081 /srv/folder  every .hxz of a folder, detached; --stop ends it
"""
_EPILOG = "Every option: hexz-serve --help all, and man hexz-serve, which explains what it serves as well."
COMMON = (
    "--http", "--nbd", "--s3", "--port", "--http-port", "--nbd-port", "--s3-port", "--bind", "--allow-anonymous",
    "--token-file", "--s3-keys-file", "--tls-cert", "--tls-key", "--cache-size", "--password-file", "--parent-dir",
    "--check", "--daemon", "--status", "--stop", "--version",
)  # fmt: skip
"""The options that --help shows when it is not asked for all: those of a first day."""


class Settings(NamedTuple):
    """The command line, checked: `listen` has the addresses of each protocol to serve."""

    listen: dict[str, list[Address]]
    options: Options


def _port(text: str) -> int:
    port = parse_number(text, 5)
    if port is None or port > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port: 0 to 65535")
    return port


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400 * 366:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def _number(text: str) -> int:
    number = parse_number(text, 10)
    if number is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return number


def _count(text: str) -> int:
    count = parse_number(text, 9)
    if not count:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return count


def _host_name(text: str) -> str:
    name = text.lower()
    if not is_host_name(name):
        raise argparse.ArgumentTypeError(f"'{text}' is not a host's name or address; it has no port")
    return name


def option_parser() -> argparse.ArgumentParser:
    """The parser of the daemon's command line, which gives what `Options.of` takes."""
    parser = Parser(
        prog="hexz-serve",
        usage="hexz-serve [OPTIONS] SNAPSHOT [SNAPSHOT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "snapshots",
        nargs="*",
        metavar="SNAPSHOT",
        help="a file, NAME=FILE, a directory (every *.hxz directly in it), or http://, https://, s3://BUCKET/KEY",
    )
    _listening(parser.add_argument_group("listening"))
    _reading(parser.add_argument_group("reading"))
    add_remote_options(parser.add_argument_group("reading from servers"))
    _controlling(parser.add_argument_group("controlling"))
    _running(parser.add_argument_group("running"))
    return parser


def _listening(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--http", action="store_true", help="serve HTTP; the default when no protocol is chosen")
    group.add_argument("--nbd", action="store_true", help="serve NBD")
    group.add_argument("--s3", action="store_true", help="serve S3, read-only")
    group.add_argument(
        "--port", type=_port, metavar="N", help="port of the one protocol chosen (HTTP 8080, NBD 10809, S3 9000)"
    )
    group.add_argument("--http-port", type=_port, metavar="N", help="serve HTTP on this port; 0 = any free one")
    group.add_argument("--nbd-port", type=_port, metavar="N", help="serve NBD on this port; 0 = any free one")
    group.add_argument("--s3-port", type=_port, metavar="N", help="serve S3 on this port; 0 = any free one")
    group.add_argument("--http-socket", metavar="PATH", help="serve HTTP on this unix socket")
    group.add_argument("--nbd-socket", metavar="PATH", help="serve NBD on this unix socket")
    group.add_argument("--bind", default="127.0.0.1", metavar="ADDR", help="address to listen on (default %(default)s)")
    group.add_argument(
        "--host-name",
        type=_host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients without token or key may ask for, besides localhost and --bind's; repeatable",
    )
    group.add_argument(
        "--allow-anonymous",
        action="append",
        default=[],
        nargs="?",
        metavar="PROTOCOL,...",
        help="let everybody on a network read over these protocols (--allow-anonymous=nbd,s3); "
        "without = over the one that listens there",
    )
    group.add_argument(
        "--token-file", metavar="FILE", help="bearer tokens for HTTP: a NAME TOKEN line each; read again on SIGHUP"
    )
    group.add_argument(
        "--s3-keys-file",
        metavar="FILE",
        help="keys for S3: an ACCESS_KEY SECRET [BUCKET ...] line each; read again on SIGHUP",
    )
    group.add_argument(
        "--s3-domain",
        action="append",
        default=[],
        metavar="NAME",
        help="take BUCKET.NAME as the host of a bucket (virtual-host style); repeatable",
    )
    group.add_argument(
        "--tls-cert", metavar="FILE", help="certificate chain (PEM) for all protocols; reloaded on SIGHUP"
    )
    group.add_argument("--tls-key", metavar="FILE", help="its private key (PEM)")
    group.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="let in only clients with a certificate signed by one in here (PEM); reloaded on SIGHUP",
    )
    group.add_argument(
        "--nbd-tls",
        choices=("off", "optional", "required"),
        help="whether NBD clients may or must use TLS (default required with --tls-cert, else off)",
    )
    group.add_argument(
        "--nbd-pad", type=size, default=1, metavar="BYTES", help="round NBD export sizes up with zeros (default 1)"
    )
    group.add_argument(
        "--max-range", type=size, default=0, metavar="SIZE", help="clamp one ranged HTTP answer (default 0 = no clamp)"
    )
    group.add_argument(
        "--rate-limit", metavar="N[,SIZE]", help="requests, and bytes, that one HTTP client may use each second"
    )
    group.add_argument("--access-log", metavar="FILE", help="one JSON line for each HTTP request")
    group.add_argument("--cors", metavar="ORIGIN", help="let web pages of this origin read ('*' for any)")
    group.add_argument(
        "--max-connections",
        type=_count,
        default=4096,
        metavar="N",
        help="most connections for each listener (default %(default)s)",
    )


def _reading(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cache-size", type=size, default=256 << 20, metavar="SIZE", help="decompressed blocks kept (default 256M)"
    )
    group.add_argument(
        "--images-dir", metavar="DIR", help="registrations of images, as JSON files; they come and go without a restart"
    )
    group.add_argument(
        "--images-allow",
        action="append",
        default=[],
        metavar="DIR",
        help="where files of registered images may be; repeatable, without it nowhere",
    )
    group.add_argument("--password-file", metavar="FILE", help="password of encrypted snapshots")
    group.add_argument(
        "--require-encrypted",
        action="store_true",
        help="serve no snapshot that is not encrypted, nor one with such a parent",
    )
    group.add_argument(
        "--require-seal",
        action="store_true",
        help="serve no snapshot without a seal (FILE.sum) beside it and its parents; with --seal-key-file a keyed one",
    )
    group.add_argument("--seal-key-file", metavar="FILE", help="key of keyed seals; read again on SIGHUP")
    group.add_argument(
        "--parent-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="where thin snapshots may look for parents, besides their own folder; repeatable",
    )
    group.add_argument("--no-parents", action="store_true", help="serve no snapshot that takes bytes from another file")


def _mode(text: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a file mode: three octal digits, such as 600")
    return int(text, 8)


def _controlling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--control", metavar="PATH", help="the control API's unix socket")
    group.add_argument(
        "--control-mode", type=_mode, default=0o600, metavar="MODE", help="its file mode, in octal (default 600)"
    )
    group.add_argument(
        "--control-uid",
        type=_number,
        action="append",
        default=[],
        metavar="UID",
        help="a user who may change things there, besides this one and root; repeatable",
    )
    group.add_argument(
        "--control-root",
        action="append",
        default=[],
        metavar="DIR",
        help="where snapshots mounted through it may be; repeatable, without it anywhere",
    )
    group.add_argument("--id", metavar="ID", help="what the control API calls this daemon")
    group.add_argument(
        "--supervisor", metavar="PATH", help="unix socket of a supervisor that keeps state and sockets for an upgrade"
    )
    group.add_argument(
        "--upgrade", action="store_true", help="serve nothing yet: take over what another process gave the supervisor"
    )


def _running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--check", action="store_true", help="open everything, print what would be served, and exit")
    group.add_argument(
        "--drain-timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long running replies may take to end after SIGTERM (default 30)",
    )
    group.add_argument("--daemon", action="store_true", help="detach once every listener answers")
    group.add_argument("--pid-file", metavar="FILE", help="hold this file while running")
    group.add_argument("--log-file", metavar="FILE", help="where a detached daemon logs")
    group.add_argument("--status", action="store_true", help="say whether a detached daemon runs (exit 0 or 3)")
    group.add_argument("--stop", action="store_true", help="stop a detached daemon and wait for its end")
    group.add_argument(
        "--print-unit",
        nargs="?",
        const="service",
        choices=UNIT_KINDS,
        metavar="KIND",
        help=f"print a systemd unit file that starts this very program: {', '.join(UNIT_KINDS)} (default service)",
    )
    group.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="least severe lines logged (default info)"
    )
    group.add_argument("--version", action=VersionAction, help="show versions, also of Python and packages")
    group.add_argument("-h", "--help", action=HelpAction, common=COMMON, help="show this; with all every option")


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """The settings that `arguments` ask for.

    Raises: UsageError; SystemExit after --help and --version.
    """
    options = _with_credentials(Options.of(option_parser().parse_args(_with_equals_sign(arguments))))
    if options.log_file and not options.daemon:
        raise UsageError("--log-file goes with --daemon; otherwise the log is standard error")
    if options.upgrade and not (options.control and options.supervisor):
        raise UsageError("--upgrade needs --control and --supervisor: it is told there what to take over")
    questions = options.status or options.stop or options.print_unit
    if not (options.snapshots or options.images_dir or options.upgrade or questions):
        raise UsageError("no snapshot given: hexz-serve SNAPSHOT [SNAPSHOT ...]")
    if options.cache_size < SMALLEST_CACHE:
        raise UsageError(f"--cache-size {options.cache_size}: at least 1M is needed")
    if options.no_parents and options.parent_dir:
        raise UsageError("--no-parents and --parent-dir contradict each other: give one of them")
    if options.tls_client_ca and options.tls_cert is None:
        raise UsageError("--tls-client-ca needs --tls-cert and --tls-key: certificates are shown under TLS")
    listen = _addresses(options)
    _check_exposure(options, listen)
    if (options.tls_cert is None) is not (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    if options.nbd_tls in ("optional", "required") and options.tls_cert is None:
        raise UsageError(f"--nbd-tls {options.nbd_tls} needs --tls-cert and --tls-key")
    if not 1 <= options.nbd_pad <= LARGEST_PAD or options.nbd_pad & (options.nbd_pad - 1):
        raise UsageError(f"--nbd-pad {options.nbd_pad}: a power of two, at most {LARGEST_PAD}")
    return Settings(listen, options)


def _with_credentials(options: Options) -> Options:
    """With what the service manager passed for the files of secrets that are not given."""
    return options._replace(
        token_file=options.token_file or credential("tokens"),
        s3_keys_file=options.s3_keys_file or credential("s3-keys"),
        password_file=options.password_file or credential("password"),
        seal_key_file=options.seal_key_file or credential("seal-key"),
        s3_credentials_file=options.s3_credentials_file or credential("s3-credentials"),
        remote_token_file=options.remote_token_file or credential("remote-tokens"),
    )


def _addresses(options: Options) -> dict[str, list[Address]]:
    """The addresses of each protocol chosen, by an option of its own or by none at all (HTTP)."""
    named = {"http": options.http, "nbd": options.nbd, "s3": options.s3}
    ports = _ports(options)
    paths = {"http": options.http_socket, "nbd": options.nbd_socket}
    listen: dict[str, list[Address]] = {}
    for protocol, default_port in DEFAULT_PORTS.items():
        port, path = ports[protocol], paths.get(protocol)
        addresses: list[Address] = []
        if named[protocol] or port is not None:
            addresses.append(TcpAddress(options.bind, default_port if port is None else port))
        if path is not None:
            addresses.append(UnixAddress(path))
        if addresses:
            listen[protocol] = addresses
    if not listen:
        listen["http"] = [TcpAddress(options.bind, DEFAULT_PORTS["http"])]
    if options.port is not None:
        _apply_port(options, options.port, listen)
    return listen


def _ports(options: Options) -> dict[str, int | None]:
    return {"http": options.http_port, "nbd": options.nbd_port, "s3": options.s3_port}


def _apply_port(options: Options, port: int, listen: dict[str, list[Address]]) -> None:
    if len(listen) > 1:
        names = " and ".join(f"--{protocol}-port" for protocol in listen)
        raise UsageError(f"--port with several protocols: say which with {names}")
    (protocol,) = listen
    if _ports(options)[protocol] is not None:
        raise UsageError(f"--port and --{protocol}-port say the same thing: give one of them")
    sockets = [address for address in listen[protocol] if isinstance(address, UnixAddress)]
    listen[protocol] = [TcpAddress(options.bind, port), *sockets]


def access_of(options: Options) -> Access:
    """The rules of who may do what.  Raises: UsageError."""
    given = {"http": options.token_file, "s3": options.s3_keys_file}
    tls = "required" if options.tls_cert else "off"
    return Access(
        [protocol for protocol, path in given.items() if path],
        parse_anonymous(options.allow_anonymous),
        {"http": tls, "s3": tls, "nbd": options.nbd_tls or tls},
        authority=options.tls_client_ca is not None,
        images=options.images_dir is not None,
        names=[options.bind, *options.host_name],
        domains=options.s3_domain,
    )


def _check_exposure(options: Options, listen: dict[str, list[Address]]) -> None:
    access = access_of(options)
    for protocol, addresses in listen.items():
        for address in addresses:
            if isinstance(address, TcpAddress):
                access.grant(protocol, tcp_place(address.host, f"--bind {address.host}"))


def _with_equals_sign(arguments: Sequence[str]) -> list[str]:
    """--allow-anonymous written so that the argument behind it, a snapshot, is not taken for its value."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    return [f"{word}=" if word == "--allow-anonymous" and at < end else word for at, word in enumerate(given)]
