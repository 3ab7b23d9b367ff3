"""The fixed newstyle handshake as a state machine: bytes in, bytes and a decision out.

`Handshake.receive` takes what has come from the client, whole or cut anywhere, and
says step by step what to send and how to go on.  It knows exports only through the
`Directory` that it is given.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from hexz.protocol.nbd.constants import (
    BASE_ALLOCATION,
    CAN_MULTI_CONN,
    CONTEXT_IDS,
    FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES,
    HAS_FLAGS,
    HEXZ_PARENT,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_DESCRIPTION,
    INFO_EXPORT,
    INFO_NAME,
    MAX_NAME,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_QUERIES,
    MAX_READ,
    MAX_SKIPPED,
    NBDMAGIC,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_EXTENDED_HEADERS,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT,
    OPT_STARTTLS,
    OPT_STRUCTURED_REPLY,
    OPTION_REPLY_MAGIC,
    READ_ONLY,
    REP_ACK,
    REP_ERR_EXT_HEADER_REQD,
    REP_ERR_INVALID,
    REP_ERR_POLICY,
    REP_ERR_SHUTDOWN,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_INFO,
    REP_META_CONTEXT,
    REP_SERVER,
    SEND_CACHE,
    SEND_DF,
)
from hexz.protocol.nbd.errors import MalformedOption
from hexz.protocol.nbd.layouts import EXPORT, GREETING, OPTION, OPTION_REPLY, U32

__all__ = ["Directory", "ExportFacts", "Handshake", "Negotiated", "Next", "Step", "TlsMode"]

_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_U16 = struct.Struct(">H")
_ZEROES = bytes(124)
_HTTP_METHODS = tuple(f"{method} ".encode() for method in ("GET", "HEAD", "PUT", "POST", "OPTIONS", "DELETE", "PATCH"))
_TLS_RECORD = b"\x16\x03"
"""A handshake record of any version (RFC 8446 section 5.1)."""


class TlsMode(Enum):
    """Whether STARTTLS is possible, and whether everything else must wait for it."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class ExportFacts(NamedTuple):
    """What a client is told of an export; `size` and `preferred` (I/O size) in bytes."""

    name: str
    size: int
    description: str
    preferred: int
    thin: bool


class Directory(Protocol):
    """The exports there are."""

    def exports(self) -> Sequence[str]:
        """The names to list."""

    def facts(self, name: str) -> ExportFacts | None:
        """What is behind `name` (the empty name is the default export), or None."""


class Negotiated(NamedTuple):
    """What the transmission phase needs to know."""

    export: str
    structured: bool
    extended: bool
    contexts: tuple[str, ...]


class Next(Enum):
    """What the server does after sending."""

    RECEIVE = "receive"
    START_TLS = "start TLS"
    TRANSMIT = "transmit"
    CLOSE = "close"


class Step(NamedTuple):
    """One turn of the handshake: bytes to send, and what to do then."""

    send: bytes
    next: Next


class Handshake:
    """One client's handshake.  `negotiated` is set once a step says TRANSMIT; `rest` has bytes past the handshake."""

    def __init__(self, directory: Directory, tls: TlsMode = TlsMode.OFF) -> None:
        self._directory = directory
        self._tls = tls
        self._secure = False
        self._buffer = bytearray()
        self._skip = 0
        self._options = 0
        self._flags: int | None = None
        self._structured = False
        self._extended = False
        self._contexts: tuple[str, ...] = ()
        self._contexts_for: str | None = None
        self._stopping = False
        self.negotiated: Negotiated | None = None

    @property
    def rest(self) -> bytes:
        """What came after the handshake: the first requests."""
        return bytes(self._buffer)

    def greeting(self) -> bytes:
        """What the server says first (proto.md, "Fixed newstyle negotiation")."""
        return GREETING.pack(NBDMAGIC, IHAVEOPT, FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)

    def secured(self) -> None:
        """TLS is up: start over, and forget what came before it (proto.md, "NBD_OPT_STARTTLS")."""
        self._secure = True
        self._buffer.clear()
        self._structured = self._extended = False
        self._contexts = ()
        self._contexts_for = None

    def stop(self) -> None:
        """The daemon is stopping: every option but NBD_OPT_ABORT is refused from now on."""
        self._stopping = True

    def receive(self, data: bytes) -> Iterator[Step]:
        """Take bytes from the client; a step for each message they complete.

        One step at a time, so that a client that asks for much in one go is not
        answered from memory that nobody bounds.
        """
        self._buffer += data
        while True:
            step = self._advance()
            if step is None:
                return
            yield step
            if step.next is not Next.RECEIVE:
                return

    def _advance(self) -> Step | None:
        """One more complete message, or None when there is none."""
        if self._skip:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
            if self._skip:
                return None
        if self._flags is None:
            return self._client_flags()
        if len(self._buffer) < OPTION.size:
            return None
        magic, option, length = OPTION.unpack_from(self._buffer)
        self._options += magic == IHAVEOPT
        if magic != IHAVEOPT or length > MAX_SKIPPED or self._options > MAX_OPTIONS:
            return Step(b"", Next.CLOSE)
        if length > MAX_OPTION:
            del self._buffer[: OPTION.size]
            self._skip = length
            if option == OPT_EXPORT_NAME:
                return Step(b"", Next.CLOSE)
            return _reply(option, REP_ERR_TOO_BIG, f"at most {MAX_OPTION} bytes of option data".encode())
        if len(self._buffer) < OPTION.size + length:
            self._options -= 1  # the same option is looked at again when more of it has come
            return None
        payload = bytes(self._buffer[OPTION.size : OPTION.size + length])
        del self._buffer[: OPTION.size + length]
        return self._option(option, payload)

    def foreign(self, data: bytes) -> str | None:
        """The protocol that a client speaks which takes this for another port, told by its first bytes; else None."""
        if self._flags is not None or self._buffer:
            return None
        if data.startswith(_HTTP_METHODS):
            return "HTTP"
        return "TLS without asking for it (NBD_OPT_STARTTLS)" if data.startswith(_TLS_RECORD) else None

    def _client_flags(self) -> Step | None:
        if len(self._buffer) < U32.size:
            return None
        flags = U32.unpack_from(self._buffer)[0]
        del self._buffer[: U32.size]
        self._flags = flags
        # "The server MUST drop the connection if the client flags have a bit that it does not know."
        known = flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) == 0
        return Step(b"", Next.RECEIVE if known else Next.CLOSE)

    def _option(self, option: int, payload: bytes) -> Step:
        if option == OPT_ABORT:
            return Step(_reply(option, REP_ACK).send, Next.CLOSE)
        if self._stopping and option != OPT_EXPORT_NAME:
            return _reply(option, REP_ERR_SHUTDOWN, b"the server is stopping")
        if self._stopping:
            return Step(b"", Next.CLOSE)
        if self._tls is TlsMode.REQUIRED and not self._secure and option != OPT_STARTTLS:
            if option == OPT_EXPORT_NAME:
                return Step(b"", Next.CLOSE)
            return _reply(option, REP_ERR_TLS_REQD, b"this server wants TLS first")
        try:
            if option == OPT_EXPORT_NAME:
                return self._export_name(payload)
            if option in (OPT_INFO, OPT_GO):
                return self._info(option, payload)
            if option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
                return self._meta_context(option, payload)
            if option in (OPT_LIST, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS):
                if payload:
                    raise MalformedOption("this option has no data")
                return self._plain_option(option)
        except MalformedOption as error:
            return _reply(option, REP_ERR_INVALID, str(error).encode())
        return _reply(option, REP_ERR_UNSUP, b"unknown option")

    def _plain_option(self, option: int) -> Step:
        if option == OPT_LIST:
            names = (name.encode() for name in self._directory.exports())
            listed = b"".join(
                _reply(option, REP_SERVER, U32.pack(len(name)) + name).send for name in names if len(name) <= MAX_NAME
            )
            return Step(listed + _reply(option, REP_ACK).send, Next.RECEIVE)
        if option == OPT_STARTTLS:
            if self._secure:
                raise MalformedOption("TLS is on already")
            if self._tls is TlsMode.OFF:
                return _reply(option, REP_ERR_POLICY, b"TLS is not set up here")
            return Step(_reply(option, REP_ACK).send, Next.START_TLS)
        if option == OPT_STRUCTURED_REPLY:
            if self._extended:
                return _reply(option, REP_ERR_EXT_HEADER_REQD, b"extended headers are negotiated already")
            if self._structured:
                raise MalformedOption("negotiated already")
            self._structured = True
        else:
            if self._extended:
                raise MalformedOption("negotiated already")
            self._extended = True
        return _reply(option, REP_ACK)

    def _flags_for(self) -> int:
        # SEND_DF only where replies can be cut at all (proto.md, "Transmission flags").
        cut = SEND_DF if self._structured or self._extended else 0
        return HAS_FLAGS | READ_ONLY | CAN_MULTI_CONN | SEND_CACHE | cut

    def _export_name(self, payload: bytes) -> Step:
        try:
            facts = self._facts(payload)
        except MalformedOption:
            facts = None
        if facts is None:
            # There is no way to say no to this option but to hang up.
            return Step(b"", Next.CLOSE)
        self._negotiate(payload.decode())
        assert self._flags is not None
        zeroes = b"" if self._flags & FLAG_NO_ZEROES else _ZEROES
        return Step(EXPORT.pack(facts.size, self._flags_for()) + zeroes, Next.TRANSMIT)

    def _facts(self, name: bytes) -> ExportFacts | None:
        if len(name) > MAX_NAME:
            raise MalformedOption(f"a name has at most {MAX_NAME} bytes")
        try:
            return self._directory.facts(name.decode())
        except UnicodeDecodeError:
            raise MalformedOption("the name is not UTF-8") from None

    def _negotiate(self, export: str) -> None:
        contexts = self._contexts if self._contexts_for == export else ()
        structured = self._structured or self._extended
        self.negotiated = Negotiated(export, structured, self._extended, contexts)

    def _info(self, option: int, payload: bytes) -> Step:
        name, rest = _take_string(payload)
        if len(rest) < _U16.size or len(rest) != _U16.size * (1 + _U16.unpack_from(rest)[0]):
            raise MalformedOption("the information requests do not fit the option's length")
        wanted = {request[0] for request in _U16.iter_unpack(rest[_U16.size :])}
        facts = self._facts(name)
        if facts is None:
            return _reply(option, REP_ERR_UNKNOWN, b"no such export")
        infos = [_INFO_EXPORT.pack(INFO_EXPORT, facts.size, self._flags_for())]
        if INFO_NAME in wanted:
            infos.append(_U16.pack(INFO_NAME) + facts.name.encode())
        if INFO_DESCRIPTION in wanted:
            infos.append(_U16.pack(INFO_DESCRIPTION) + facts.description.encode()[:MAX_NAME])
        if INFO_BLOCK_SIZE in wanted:
            infos.append(_INFO_BLOCK_SIZE.pack(INFO_BLOCK_SIZE, 1, facts.preferred, MAX_READ))
        sent = b"".join(_reply(option, REP_INFO, info).send for info in infos) + _reply(option, REP_ACK).send
        if option == OPT_INFO:
            return Step(sent, Next.RECEIVE)
        self._negotiate(name.decode())
        return Step(sent, Next.TRANSMIT)

    def _meta_context(self, option: int, payload: bytes) -> Step:
        name, rest = _take_string(payload)
        if len(rest) < U32.size:
            raise MalformedOption("the queries are cut off")
        count = U32.unpack_from(rest)[0]
        rest = rest[U32.size :]
        if count > len(rest) // U32.size:
            raise MalformedOption("there are fewer queries than announced")
        if count > MAX_QUERIES:
            return _reply(option, REP_ERR_TOO_BIG, f"at most {MAX_QUERIES} queries".encode())
        queries = []
        for _ in range(count):
            query, rest = _take_string(rest)
            queries.append(query)
        if rest:
            raise MalformedOption("there is something after the queries")
        if option == OPT_SET_META_CONTEXT:
            self._contexts, self._contexts_for = (), None
        if not (self._structured or self._extended):
            raise MalformedOption("structured replies must be negotiated first")
        facts = self._facts(name)
        if facts is None:
            return _reply(option, REP_ERR_UNKNOWN, b"no such export")
        offered = [BASE_ALLOCATION, HEXZ_PARENT] if facts.thin else [BASE_ALLOCATION]
        if option == OPT_LIST_META_CONTEXT and not queries:
            chosen = offered
        else:
            chosen = [context for context in offered if any(_matches(query, context, option) for query in queries)]
        if option == OPT_SET_META_CONTEXT:
            self._contexts, self._contexts_for = tuple(chosen), name.decode()
        listed = b"".join(
            _reply(
                option,
                REP_META_CONTEXT,
                U32.pack(CONTEXT_IDS[context] if option == OPT_SET_META_CONTEXT else 0) + context.encode(),
            ).send
            for context in chosen
        )
        return Step(listed + _reply(option, REP_ACK).send, Next.RECEIVE)


def _matches(query: bytes, context: str, option: int) -> bool:
    """A query names a context, or, when listing, a whole name space (``base:``)."""
    if option == OPT_LIST_META_CONTEXT and query.endswith(b":"):
        return context.encode().startswith(query)
    return query == context.encode()


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < U32.size:
        raise MalformedOption("the data is cut off")
    length = U32.unpack_from(data)[0]
    if length > MAX_NAME:
        raise MalformedOption(f"a string has at most {MAX_NAME} bytes")
    if length > len(data) - U32.size:
        raise MalformedOption("a string runs past the option's data")
    return data[U32.size : U32.size + length], data[U32.size + length :]


def _reply(option: int, kind: int, data: bytes = b"") -> Step:
    return Step(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data, Next.RECEIVE)
