"""What a web page may have somebody's browser do here, beyond what it may do to any server.

A page whose own name is made to lead to this server (DNS rebinding) counts as this server's in the browser's eyes:
what gives it away is the name that it asks for.  Any page can send a write without reading the answer (cross-site
request forgery): what gives it away is where it says it comes from.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Union

from hexz.protocol.http.head import RequestHead

__all__ = ["Hosts", "IpAddress", "authority_of", "is_foreign_write", "is_host_name", "parse_ip"]

IpAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

WRITES = frozenset({"PUT", "PATCH", "POST", "DELETE"})
OWN_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site that no other site's page gives rise to (W3C Fetch Metadata, section 2.3)."""
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def parse_ip(text: str) -> IpAddress | None:
    """The address that `text` is, an IPv6 address without its zone; None for a name.

    An IPv4 address in IPv6 clothes is that IPv4 address (RFC 4291 section 2.5.5.2).
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address


def is_host_name(text: str) -> bool:
    """Whether a URL can have this as its host: a name in lower case or an address, without a port."""
    return len(text) <= 253 and (_NAME.fullmatch(text) is not None or parse_ip(text) is not None)


class Hosts:
    """The names that clients of one listener may ask for."""

    def __init__(self, names: Iterable[str], domains: Iterable[str], address: IpAddress | None) -> None:
        """`names` alone, `domains` with all that is below them; `address` is where the listener is, if it is known.

        ``localhost`` and loopback addresses are names of any listener.
        """
        self._names = frozenset({"localhost", *(name.lower() for name in names)})
        self._addresses = {address, *map(parse_ip, self._names)} - {None}
        self._domains = tuple(f".{domain.lower()}" for domain in domains)
        self._any_address = address is not None and address.is_unspecified

    def admits(self, authority: str) -> bool:
        """Whether the host of `authority` (``HOST[:PORT]``, RFC 9110 section 7.2) is among them.

        The port may be any: clients come through tunnels.  Addresses cannot be made to lead elsewhere, so a listener
        on all addresses takes each.
        """
        host = _split(authority)[0]
        address = parse_ip(host)
        if address is not None:
            return self._any_address or address.is_loopback or address in self._addresses
        return host in self._names or f".{host}".endswith(self._domains)


def authority_of(head: RequestHead) -> str:
    """The host and port that a request is for, empty when it does not say: those of an absolute target come first.

    Spec: RFC 9112 section 3.2.2.
    """
    scheme, found, rest = head.target.partition("://")
    if found and scheme.lower() in _DEFAULT_PORTS:
        return re.split("[/?#]", rest, maxsplit=1)[0]
    return head.headers.get("host", "")


def is_foreign_write(head: RequestHead) -> bool:
    """Whether a request that may change something was sent by a page of another origin (RFC 6454 section 7)."""
    if head.method not in WRITES:
        return False
    if head.headers.get("sec-fetch-site", "none") not in OWN_SITES:
        return True
    origin = head.headers.get("origin")
    if origin is None:
        return False
    scheme, found, authority = origin.lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if not found or default is None:
        return True  # "null", too: a page that may not say where it comes from
    # The scheme is not compared: behind a proxy that ends TLS this server cannot know its own.
    host, port = _split(authority)
    own_host, own_port = _split(authority_of(head))
    return host != own_host or (port or default) != (own_port or default)


def _split(authority: str) -> tuple[str, str]:
    """Host, in lower case and without brackets or a last dot, and port, which may be empty."""
    authority = authority.lower()
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        return host, rest[1:]
    host, _, port = authority.partition(":")
    return host[:-1] if host.endswith(".") else host, port
