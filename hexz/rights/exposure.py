"""Who may do what on which listener: decided here for all protocols, and for every way in which a listener comes about.

A protocol may have a lock, a file of tokens or keys; and TLS may ask for a client's certificate, which is one for
reading.  A listener that only this machine reaches, on loopback or on a
unix socket, may do without.  One that a network reaches needs its protocol's lock, or to be opened on purpose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from hexz.errors import UsageError
from hexz.protocol.http.origin import Hosts, IpAddress, parse_ip

__all__ = ["LOCKS", "OWN", "Access", "Anonymous", "Grant", "Lock", "Place", "Reach", "parse_anonymous", "tcp_place"]

PROTOCOLS = ("http", "nbd", "s3")


class Lock(NamedTuple):
    """What keeps strangers out of a protocol: the option that gives it, and what clients then need."""

    option: str
    shown: str


LOCKS: Mapping[str, Lock] = {"http": Lock("--token-file", "a token"), "s3": Lock("--s3-keys-file", "a key")}
"""By protocol.  NBD has none of its own: TLS alone does not say who may read."""
CERTIFICATE = Lock("--tls-client-ca", "a certificate")
"""The lock of every listener whose clients have to use TLS: they show a certificate that this authority signed."""


class Reach(Enum):
    """Who can connect at all; the value says it to people."""

    LOOPBACK = "every user of this machine"
    SOCKET = "whoever may open the socket"
    NETWORK = "everybody on the network"


class Place(NamedTuple):
    """Where a listener is.

    `said` is how messages call it, `address` that of a TCP listener, if it is known yet.  `crowded` says of a unix
    socket that its mode lets every user of the machine in.
    """

    reach: Reach
    said: str
    address: IpAddress | None = None
    crowded: bool = False

    @property
    def who(self) -> str:
        """Those who can connect, for people."""
        return (Reach.LOOPBACK if self.crowded else self.reach).value


def tcp_place(host: str, said: str) -> Place:
    """The place of a TCP listener at `host`: an address, or a name, of which only ``localhost`` is known to be near."""
    address = parse_ip(host)
    near = host == "localhost" if address is None else address.is_loopback
    return Place(Reach.LOOPBACK if near else Reach.NETWORK, said, address)


class Anonymous(NamedTuple):
    """What --allow-anonymous says: some protocols, or (`bare`) whichever one listens on a network."""

    bare: bool = False
    protocols: frozenset[str] = frozenset()


def parse_anonymous(values: Iterable[str]) -> Anonymous:
    """From the option's values, each a list such as ``nbd,s3``, or empty.

    Raises: UsageError.
    """
    bare, named = False, set()
    for value in values:
        bare = bare or not value
        for protocol in value.split(",") if value else ():
            if protocol not in PROTOCOLS:
                raise UsageError(f"--allow-anonymous={value}: name protocols: {', '.join(PROTOCOLS)}")
            named.add(protocol)
    return Anonymous(bare, frozenset(named))


class Grant(NamedTuple):
    """What one listener lets clients do who show neither token nor key.

    `anonymous`: they may read although there are tokens or keys; without any, everybody may.
    `writes`: they may write to registered images that have no token of their own.
    `hosts`: the names that they may ask for, None for any.
    """

    anonymous: bool = False
    writes: bool = True
    hosts: Hosts | None = None

    def lets_write(self, token: str | None) -> bool:
        """Whether a client may write who was let in by `token`, or by none."""
        return token is not None or self.writes


OWN = Grant()
"""Of a listener that nobody but its own user reaches."""


class Access:
    """The rules as the options give them."""

    def __init__(
        self,
        locked: Collection[str],
        anonymous: Anonymous = Anonymous(),  # noqa: B008  (a value)
        tls: Mapping[str, str] | None = None,
        authority: bool = False,
        images: bool = False,
        names: Collection[str] = (),
        domains: Collection[str] = (),
    ) -> None:
        """`locked` are the protocols whose locks are given; `images` says that images can be registered.

        `tls` has ``off``, ``optional`` or ``required`` for each protocol; with `authority` clients under TLS have to
        show a certificate.  `names`, and `domains` with all that is
        below them, are hosts that clients may ask for.
        """
        self._locked = frozenset(locked)
        self._anonymous = anonymous
        self._tls = tls or {}
        self._authority = authority
        self._images = images
        self._names = names
        self._domains = domains
        self._networked: set[str] = set()  # protocols that were granted places that a network reaches

    def grant(self, protocol: str, place: Place) -> Grant:
        """What clients may do there without a token or key.

        Raises: UsageError when it must not be opened.
        """
        locked = protocol in self._locked
        if place.reach is Reach.NETWORK:
            self._networked.add(protocol)
            self._check_network(protocol, place)
        # No page's name can be made to lead to a unix socket.
        hosts = Hosts(self._names, self._domains, place.address) if place.reach is not Reach.SOCKET else None
        return Grant(not locked or self._opened(protocol), not locked and place.reach is not Reach.NETWORK, hosts)

    def _certified(self, protocol: str) -> bool:
        """Whether nobody gets anything there who has no certificate."""
        return self._authority and self._tls.get(protocol) == "required"

    def _opened(self, protocol: str) -> bool:
        """Whether --allow-anonymous names it: alone it opens what has no lock, and takes no lock away."""
        return protocol in self._anonymous.protocols

    def _check_network(self, protocol: str, place: Place) -> None:
        if self._anonymous.bare and len(self._networked) > 1:
            open_ones = sorted(name for name in self._networked - self._locked if not self._certified(name))
            example = f"--allow-anonymous={','.join(open_ones)}" if open_ones else "nothing, as each has its lock"
            names = " and ".join(sorted(name.upper() for name in self._networked))
            raise UsageError(
                f"--allow-anonymous with {names} on a network: say which everybody may read; here that is {example}"
            )
        if protocol in self._locked or self._certified(protocol) or self._opened(protocol) or self._anonymous.bare:
            return
        lock = LOCKS.get(protocol, CERTIFICATE)
        option = "--nbd-tls required" if lock is CERTIFICATE and self._authority else lock.option
        raise UsageError(
            f"{place.said} would open the snapshots to a network over {protocol.upper()}: "
            f"give {option}, or add --allow-anonymous={protocol} if that is meant"
        )

    def describe(self, protocol: str, place: Place) -> str:
        """Who may read and who may write, for people."""
        grant = self.grant(protocol, place)
        anybody = self._anybody(protocol, place)
        certificate = f" and {CERTIFICATE.shown}" if self._certified(protocol) else ""
        holders = f"whoever has {LOCKS[protocol].shown}{certificate}" if protocol in LOCKS else ""
        readers = anybody if grant.anonymous else holders
        if protocol != "http" or not self._images:
            writers = "nobody"
        elif protocol in self._locked or grant.writes:
            given = holders if protocol in self._locked else anybody
            writers = f"{given}, with the image's own token where it has one"
        else:
            writers = f"whoever has the image's own token{certificate}"
        return f"reads: {readers}; writes: {writers}"

    def _anybody(self, protocol: str, place: Place) -> str:
        """Those who get as far as where tokens and keys are asked for, for people."""
        return f"whoever has {CERTIFICATE.shown}" if self._certified(protocol) else place.who

    def warnings(self, url: str, protocol: str, place: Place) -> list[str]:
        """What somebody may not have meant about the listener at `url`: a line each."""
        return [line for line in (self._open(url, protocol, place), self._plain(url, protocol, place)) if line]

    def _open(self, url: str, protocol: str, place: Place) -> str:
        """It is open while there is a lock."""
        if place.reach is Reach.SOCKET and not place.crowded:
            return ""  # the file's mode is its lock
        lock = LOCKS.get(protocol)
        if protocol in self._locked:
            if lock is None or not self._opened(protocol):
                return ""
            return (
                f"{url}: {self._anybody(protocol, place)} may read without {lock.shown}: "
                f"--allow-anonymous={protocol} opens it although {lock.option} is given"
            )
        locks = [*(LOCKS[other] for other in sorted(self._locked)), *([CERTIFICATE] if self._authority else [])]
        given = " and ".join(one.option for one in locks)
        if not given or self._certified(protocol):
            return ""
        if lock is not None:
            remedy = f"{lock.option} would lock it"
        elif self._authority:
            remedy = "--nbd-tls required would ask all clients for a certificate"
        else:
            remedy = (
                "NBD has neither tokens nor keys; --nbd-socket is open only to whom its file lets in, "
                f"{CERTIFICATE.option} to clients with a certificate"
            )
        return f"{url}: {place.who} may read, although {given} is given: {remedy}"

    def _plain(self, url: str, protocol: str, place: Place) -> str:
        """Secrets and data cross a network in the clear."""
        if place.reach is not Reach.NETWORK:
            return ""
        tls = self._tls.get(protocol, "off")
        if tls == "off":
            what = "tokens and data" if protocol == "http" and protocol in self._locked else "data"
            return f"{url}: {what} cross the network unencrypted: --tls-cert and --tls-key change that"
        if tls == "optional":
            return (
                f"{url}: with --nbd-tls optional whoever is on the way can make clients do without TLS: "
                "required does not let them"
            )
        return ""
