"""What a configuration would open to whom, without listening: for --check."""

from __future__ import annotations

import socket

from hexz.assembly.listeners import sort_passed
from hexz.daemon.fd_store import FdStore
from hexz.daemon.systemd import Notifier
from hexz.options.parser import Settings, access_of
from hexz.options.values import Options
from hexz.rights.exposure import Place, Reach, tcp_place
from hexz.servers.addresses import Address, TcpAddress, place_of, url_at, url_of

__all__ = ["describe_listeners"]


def describe_listeners(settings: Settings, passed: list[tuple[str, socket.socket]]) -> list[str]:
    """A line for each listener that `assemble` would make: where it is, and who may read and write there.

    Raises: UsageError and ConfigError, as `assemble` would.
    """
    _check_secrets(settings.options)
    access = access_of(settings.options)
    activated = sort_passed(passed, settings, FdStore(Notifier()))
    places = [(url_of(protocol, sock), protocol, place_of(sock)) for protocol, sock in activated]
    if not activated:
        listen = [(protocol, address) for protocol, addresses in settings.listen.items() for address in addresses]
        places = [(url_at(protocol, address), protocol, _place_at(address)) for protocol, address in listen]
    return [f"{url} {access.describe(protocol, place)}" for url, protocol, place in places]


def _check_secrets(options: Options) -> None:
    """Raises: ConfigError when a file of tokens or keys cannot be used."""
    from hexz.servers.http.access import Tokens
    from hexz.servers.s3.access import KeyFile

    if options.token_file:
        Tokens(options.token_file)
    if options.s3_keys_file:
        KeyFile(options.s3_keys_file)


def _place_at(address: Address) -> Place:
    if isinstance(address, TcpAddress):
        return tcp_place(address.host, f"--bind {address.host}")
    return Place(Reach.SOCKET, address.path)
