"""A small NBD client that can be told to misbehave; it keeps to proto.md otherwise and checks what it gets."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import NamedTuple

from hexz.protocol.nbd import constants as c

TIMEOUT_S = 60.0
STRUCTURED_MODES = ("structured", "extended")


class OptionReply(NamedTuple):
    kind: int
    data: bytes


class Reply(NamedTuple):
    """A whole reply: its error (0 if none), the data of a read, and its chunks as (flags, type, payload)."""

    cookie: int
    error: int
    data: bytes | None
    chunks: list[tuple[int, int, bytes]]


class Client:
    """A connection in its handshake, later in its transmission phase."""

    def __init__(self, address: tuple[str, int] | str, flags: int | None = 3) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(address)
        self.mode = "simple"
        self.cookie = 0
        self.greeting = self.take(18)
        if flags is not None:
            self.send(struct.pack(">I", flags))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def take(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError(f"{len(data)} of {size} bytes came")
            data += part
        return bytes(data)

    def ended(self) -> bool:
        """Whether the server has hung up."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    # Handshake

    def send_option(self, option: int, data: bytes = b"", length: int | None = None) -> None:
        self.send(c.IHAVEOPT + struct.pack(">II", option, len(data) if length is None else length) + data)

    def option_replies(self, option: int) -> list[OptionReply]:
        """The replies to `option`, to the last one."""
        replies = []
        while True:
            magic, about, kind, length = struct.unpack(">QIII", self.take(20))
            assert magic == c.OPTION_REPLY_MAGIC
            assert about == option
            replies.append(OptionReply(kind, self.take(length)))
            if kind == c.REP_ACK or kind & 0x8000_0000:
                return replies

    def option(self, option: int, data: bytes = b"") -> list[OptionReply]:
        self.send_option(option, data)
        return self.option_replies(option)

    def negotiate(self, mode: str) -> Client:
        """Agree on structured or extended replies."""
        option = {"structured": c.OPT_STRUCTURED_REPLY, "extended": c.OPT_EXTENDED_HEADERS}.get(mode)
        if option is not None:
            assert self.option(option) == [OptionReply(c.REP_ACK, b"")]
        self.mode = mode
        return self

    def set_contexts(self, export: str, *contexts: str) -> dict[int, str]:
        """Agree on meta contexts; their names by their ids."""
        replies = self.option(c.OPT_SET_META_CONTEXT, meta(export, *contexts))
        assert replies[-1].kind == c.REP_ACK, replies
        return {struct.unpack(">I", reply.data[:4])[0]: reply.data[4:].decode() for reply in replies[:-1]}

    def go(self, export: str = "") -> tuple[int, int]:
        """Enter the transmission phase; the size and the transmission flags."""
        replies = self.option(c.OPT_GO, info(export))
        assert replies[-1].kind == c.REP_ACK, replies
        size, flags = struct.unpack(">QH", next(r.data[2:] for r in replies if r.data[:2] == b"\0\0"))
        return size, flags

    # Transmission

    def pack(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int | None = None) -> bytes:
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        if self.mode == "extended":
            return struct.pack(">IHHQQQ", c.EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
        return struct.pack(">IHHQQI", c.REQUEST_MAGIC, flags, command, cookie, offset, length)

    def request(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> Reply:
        """Send one request and take its reply."""
        self.send(self.pack(command, offset, length, flags) + payload)
        reply = self.reply({self.cookie: (command, offset, length)})
        assert reply.cookie == self.cookie
        return reply

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.request(c.CMD_READ, offset, length, flags)
        assert reply.error == 0, reply
        assert reply.data is not None
        return reply.data

    def reply(self, asked: dict[int, tuple[int, int, int]]) -> Reply:
        """The next reply, whole; `asked` says what was asked under which cookie: command, offset, length."""
        if self.mode == "simple":
            magic, error, cookie = struct.unpack(">IIQ", self.take(16))
            assert magic == c.SIMPLE_REPLY_MAGIC
            command, _, length = asked[cookie]
            data = self.take(length) if command == c.CMD_READ and not error else None
            return Reply(cookie, error, data, [])
        return self._chunked(asked)

    def _chunk(self) -> tuple[int, int, int, int | None, bytes]:
        if self.mode == "extended":
            magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQQ", self.take(32))
            assert magic == c.EXTENDED_REPLY_MAGIC
            return flags, kind, cookie, offset, self.take(length)
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.take(20))
        assert magic == c.STRUCTURED_REPLY_MAGIC
        return flags, kind, cookie, None, self.take(length)

    def _chunked(self, asked: dict[int, tuple[int, int, int]]) -> Reply:
        chunks: list[tuple[int, int, bytes]] = []
        error = 0
        first = None
        while True:
            flags, kind, cookie, about, payload = self._chunk()
            assert first in (None, cookie), "chunks of two replies are mixed"
            first = cookie
            command, offset, length = asked[cookie]
            assert about in (None, offset), "an extended reply repeats the request's offset"
            chunks.append((flags, kind, payload))
            if kind & 0x8000:
                number, size = struct.unpack_from(">IH", payload)
                assert number
                payload[6 : 6 + size].decode()
                error = error or number
            if flags & c.CHUNK_FLAG_DONE:
                break
        data = None
        if command == c.CMD_READ and not error:
            data = assemble(chunks, offset, length)
        return Reply(cookie, error, data, chunks)


def assemble(chunks: list[tuple[int, int, bytes]], offset: int, length: int) -> bytes:
    """The bytes that content chunks describe: in the request's span, each byte once."""
    content = bytearray(length)
    seen = bytearray(length)
    for _, kind, payload in chunks:
        if kind == c.CHUNK_NONE:
            assert not payload
            continue
        at = struct.unpack_from(">Q", payload)[0] - offset
        if kind == c.CHUNK_OFFSET_DATA:
            size = len(payload) - 8
            content[at : at + size] = payload[8:]
        else:
            assert kind == c.CHUNK_OFFSET_HOLE
            assert len(payload) == 12
            size = struct.unpack_from(">I", payload, 8)[0]
        assert size > 0
        assert 0 <= at <= at + size <= length
        assert not any(seen[at : at + size]), "content chunks overlap"
        seen[at : at + size] = b"\1" * size
    assert all(seen), "bytes are missing"
    return bytes(content)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def info(export: str, *requests: int) -> bytes:
    """The data of NBD_OPT_INFO and NBD_OPT_GO."""
    return string(export) + struct.pack(f">H{len(requests)}H", len(requests), *requests)


def meta(export: str, *queries: str) -> bytes:
    """The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""
    return string(export) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def extents(reply: Reply) -> dict[int, list[tuple[int, int]]]:
    """Block status by context id: (length, flags)."""
    found = {}
    for _, kind, payload in reply.chunks:
        if kind == c.CHUNK_BLOCK_STATUS:
            (context,) = struct.unpack_from(">I", payload)
            found[context] = list(struct.iter_unpack(">II", payload[4:]))
        elif kind == c.CHUNK_BLOCK_STATUS_EXT:
            context, count = struct.unpack_from(">II", payload)
            found[context] = list(struct.iter_unpack(">QQ", payload[8:]))
            assert len(found[context]) == count
    return found
