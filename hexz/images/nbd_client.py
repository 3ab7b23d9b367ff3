"""An NBD client on the standard library: one connection, used by one thread at a time.

Reads stream: a reply's payload is handed on in pieces as it arrives, whatever the
size of the request, which needs replies in one chunk (the DF flag) where the
server may send several.  Protocol: proto.md of the NBD project.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn, Union

from hexz.images.backend import BackendDown, BackendError
from hexz.protocol.nbd import constants as nbd
from hexz.protocol.nbd.replies import REQUEST

__all__ = ["Export", "NbdAddress", "NbdConnection", "NbdFault", "StatusExtent"]

CONNECT_S = 10.0
REPLY_S = 60.0
"""How long a server may stay silent when an answer is due."""
PIECE = 64 << 10
"""Bytes handed on at a time; also the longest reply that every server sends in one chunk (proto.md, DF)."""
READ_SIZE = 2 << 20
WRITE_SIZE = 1 << 20
SPAN_STEP = 1 << 30
"""Longest span of one block status or zero request: lengths on the wire have 32 bits."""
MAX_TEXT = 4096
MAX_OPTION_REPLY = 64 << 10
MAX_OPTION_REPLIES = 256
MAX_DESCRIPTORS = 16384
"""Extents kept of one reply, 128 KiB; the rest is asked for again."""
MAX_STATUS = 16 << 20
"""Longest block status reply that is read at all."""
ALLOCATION_ID, DIRTY_ID = "allocation", "dirty"
STATE_DIRTY = 1
SIMPLE_ERRNO = {1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW", 108: "ESHUTDOWN"}

NbdAddress = Union[str, "tuple[str, int]"]
"""The path of a unix socket, or host and port."""

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_SIMPLE = struct.Struct(">IQ")
_CHUNK = struct.Struct(">HHQI")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_ERROR = struct.Struct(">IH")
_HOLE = struct.Struct(">QI")
_EXPORT = struct.Struct(">QH")
_BLOCK_SIZE = struct.Struct(">III")
_ZEROS = memoryview(bytes(PIECE))


class NbdFault(BackendError):
    """The server answered a request with an error; the connection is fine."""

    def __init__(self, where: str, errno: int, text: str = "") -> None:
        name = SIMPLE_ERRNO.get(errno, str(errno))
        super().__init__(f"{where}: the NBD server answered {name}{': ' + text if text else ''}")
        self.errno = errno
        if errno == nbd.NBD_ENOSPC:
            self.http_status = 507


class Export(NamedTuple):
    """What the handshake said; sizes in bytes.  `dirty`: the bitmap that was asked for is there."""

    size: int
    flags: int
    smallest: int
    largest: int
    structured: bool
    allocation: bool
    dirty: bool

    @property
    def read_only(self) -> bool:
        """Writes would be refused."""
        return bool(self.flags & nbd.READ_ONLY)


class StatusExtent(NamedTuple):
    """`length` bytes with the flags of a meta context."""

    length: int
    flags: int


class NbdConnection:
    """A connection in the transmission phase.

    After any exception but NbdFault it is of no use any more: close it.
    `unflushed`: something was written since the last flush.
    """

    def __init__(self, address: NbdAddress, export: str, bitmap: str | None = None) -> None:
        """Connect, and negotiate structured replies, ``base:allocation`` and the dirty `bitmap`.

        Raises: BackendDown when nobody answers; BackendError when the export or the protocol is not there.
        """
        self.where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        self._cookie = 0
        self.unflushed = False
        self._contexts: dict[int, str] = {}
        try:
            self._sock = _connect(address)
        except OSError as error:
            raise BackendDown(f"{self.where}: cannot connect to the NBD server: {error.strerror or error}") from error
        try:
            self._sock.settimeout(REPLY_S)
            self.export = self._handshake(export, bitmap)
            self._whole_reads = bool(self.export.flags & nbd.SEND_DF)
        except BaseException:
            self._sock.close()
            raise

    # The handshake

    def _handshake(self, export: str, bitmap: str | None) -> Export:
        magic, option_magic, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if magic != nbd.NBDMAGIC or option_magic != nbd.IHAVEOPT or not flags & nbd.FLAG_FIXED_NEWSTYLE:
            self._broken("is no NBD server of the fixed newstyle kind")
        self._send(_U32.pack(flags & (nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)))
        structured = self._ask(nbd.OPT_STRUCTURED_REPLY, b"") is not None
        if structured:
            self._ask_contexts(export, bitmap)
        name = export.encode()
        query = struct.pack(f">I{len(name)}sHH", len(name), name, 1, nbd.INFO_BLOCK_SIZE)
        infos = self._ask(nbd.OPT_GO, query)
        if infos is None:
            raise BackendError(f"{self.where}: the NBD server has no export {export!r}, or refuses it")
        return self._export(infos, structured)

    def _ask_contexts(self, export: str, bitmap: str | None) -> None:
        names = {nbd.BASE_ALLOCATION: ALLOCATION_ID}
        if bitmap is not None:
            names[f"qemu:dirty-bitmap:{bitmap}"] = DIRTY_ID
        parts = [_counted(export), _U32.pack(len(names)), *map(_counted, names)]
        for kind, payload in self._ask(nbd.OPT_SET_META_CONTEXT, b"".join(parts)) or []:
            if kind == nbd.REP_META_CONTEXT and len(payload) > 4:
                meaning = names.get(payload[4:].decode("utf-8", "replace"))
                if meaning is not None:
                    self._contexts[_U32.unpack_from(payload)[0]] = meaning

    def _ask(self, option: int, payload: bytes) -> list[tuple[int, bytes]] | None:
        """The replies before the ACK; None when the server says no."""
        self._send(_OPTION.pack(nbd.IHAVEOPT, option, len(payload)) + payload)
        replies: list[tuple[int, bytes]] = []
        while len(replies) < MAX_OPTION_REPLIES:
            magic, for_option, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != nbd.OPTION_REPLY_MAGIC or for_option != option or length > MAX_OPTION_REPLY:
                self._broken("answered an option with something else")
            data = self._receive(length)
            if kind == nbd.REP_ACK:
                return replies
            if kind & 0x8000_0000:
                return None
            replies.append((kind, data))
        self._broken("does not stop answering an option")

    def _export(self, infos: list[tuple[int, bytes]], structured: bool) -> Export:
        size = flags = None
        smallest, largest = 1, 32 << 20
        for kind, data in infos:
            if kind != nbd.REP_INFO or len(data) < 2:
                continue
            info = int.from_bytes(data[:2], "big")
            if info == nbd.INFO_EXPORT and len(data) == 2 + _EXPORT.size:
                size, flags = _EXPORT.unpack_from(data, 2)
            elif info == nbd.INFO_BLOCK_SIZE and len(data) == 2 + _BLOCK_SIZE.size:
                smallest, _, largest = _BLOCK_SIZE.unpack_from(data, 2)
        if size is None or flags is None or size >= 1 << 63:
            self._broken("gives no size")
        if smallest & (smallest - 1) or not 1 <= smallest <= PIECE or largest < PIECE:
            self._broken("has block sizes that make no sense")
        meanings = set(self._contexts.values())
        return Export(size, flags, smallest, largest, structured, ALLOCATION_ID in meanings, DIRTY_ID in meanings)

    # Requests

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        """The span in pieces of at most `PIECE` bytes, each valid until the next is asked for.

        Raises: NbdFault, BackendError, BackendDown.
        """
        end = offset + length
        buffer = memoryview(bytearray(PIECE))
        low = offset - offset % self.export.smallest
        high = min(end + -end % self.export.smallest, self.export.size)
        while low < high:
            whole = self._whole_reads or not self.export.structured
            size = min(high - low, min(READ_SIZE, self.export.largest) if whole else PIECE)
            try:
                for start, piece in self._read_one(low, size, buffer):
                    part = piece[max(offset - start, 0) : max(end - start, 0)]
                    if part:
                        yield part
            except NbdFault as fault:
                # proto.md lets a server refuse to send more than 64 KiB in one chunk.
                if fault.errno != nbd.NBD_EOVERFLOW or size <= PIECE:
                    raise
                self._whole_reads = False
                continue
            low += size

    def _read_one(self, offset: int, length: int, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
        cookie = self._request(nbd.CMD_READ, offset, length, nbd.CMD_FLAG_DF if self._df() else 0)
        if not self.export.structured:
            self._simple_reply(cookie)
            yield from self._payload(offset, length, buffer)
        elif length > PIECE or self._df():
            yield from self._read_whole(cookie, offset, length, buffer)
        else:
            self._read_scattered(cookie, offset, buffer[:length])
            yield offset, buffer[:length]

    def _df(self) -> bool:
        return self.export.structured and bool(self.export.flags & nbd.SEND_DF)

    def _payload(self, offset: int, length: int, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
        while length:
            got = self._receive_into(buffer[: min(length, len(buffer))])
            yield offset, buffer[:got]
            offset += got
            length -= got

    def _read_whole(
        self, cookie: int, offset: int, length: int, buffer: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        """A reply whose content is in one chunk."""
        done = answered = False
        while not done:
            done, kind, size = self._chunk(cookie)
            if kind == nbd.CHUNK_OFFSET_DATA and not answered and size == length + 8:
                if _U64.unpack(self._receive(8))[0] != offset:
                    self._broken("sent other data than was asked for")
                answered = True
                yield from self._payload(offset, length, buffer)
            elif kind == nbd.CHUNK_OFFSET_HOLE and not answered and size == _HOLE.size:
                if _HOLE.unpack(self._receive(_HOLE.size)) != (offset, length):
                    self._broken("sent another hole than was asked for")
                answered = True
                for at in range(0, length, PIECE):
                    yield offset + at, _ZEROS[: min(PIECE, length - at)]
            else:
                self._other_chunk(kind, size, cookie, done)
        if not answered:
            self._broken("sent a reply without data")

    def _read_scattered(self, cookie: int, offset: int, into: memoryview) -> None:
        """A reply of several chunks, in any order."""
        missing = len(into)
        done = False
        while not done:
            done, kind, size = self._chunk(cookie)
            if kind == nbd.CHUNK_OFFSET_DATA and size > 8:
                at = _U64.unpack(self._receive(8))[0] - offset
                length = size - 8
            elif kind == nbd.CHUNK_OFFSET_HOLE and size == _HOLE.size:
                start, length = _HOLE.unpack(self._receive(_HOLE.size))
                at = start - offset
            else:
                self._other_chunk(kind, size, cookie, done)
                continue
            if at < 0 or at + length > len(into) or length > missing:
                self._broken("sent other data than was asked for")
            part = into[at : at + length]
            if kind == nbd.CHUNK_OFFSET_HOLE:
                part[:] = _ZEROS[:length]
            else:
                self._fill(part)
            missing -= length
        if missing:
            self._broken("left out data of a reply")

    def block_status(self, offset: int, length: int) -> tuple[list[StatusExtent], list[StatusExtent]]:
        """Extents from `offset` on, of ``base:allocation`` and of the dirty bitmap; empty for what is not there.

        They may cover less than the span, and the two lists may differ in what they cover.
        Raises: as `read`.
        """
        cookie = self._request(nbd.CMD_BLOCK_STATUS, offset, min(length, SPAN_STEP))
        found: dict[str, list[StatusExtent]] = {ALLOCATION_ID: [], DIRTY_ID: []}
        done = False
        while not done:
            done, kind, size = self._chunk(cookie)
            if kind != nbd.CHUNK_BLOCK_STATUS:
                self._other_chunk(kind, size, cookie, done)
                continue
            if size < 12 or (size - 4) % 8 or size > MAX_STATUS:
                self._broken("sent a block status that makes no sense")
            meaning = self._contexts.get(_U32.unpack(self._receive(4))[0])
            kept = min((size - 4) // 8, MAX_DESCRIPTORS)
            data = self._receive(kept * 8)
            self._skip(size - 4 - kept * 8)
            if meaning is None or found[meaning]:
                self._broken("sent a block status that was not asked for")
            found[meaning] = [StatusExtent(*pair) for pair in struct.iter_unpack(">II", data)]
        for meaning in self._contexts.values():
            if not found[meaning] or not all(extent.length for extent in found[meaning]):
                self._broken("sent a block status without length")
        return found[ALLOCATION_ID], found[DIRTY_ID]

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`.  Raises: as `read`."""
        while data:
            part = data[: min(WRITE_SIZE, self.export.largest)]
            self.unflushed = True
            self._finish(self._request(nbd.CMD_WRITE, offset, len(part), data=part))
            offset += len(part)
            data = data[len(part) :]

    def zero(self, offset: int, length: int) -> None:
        """Make the span zero, as holes if the server likes.  Raises: as `read`."""
        can = self.export.flags & nbd.SEND_WRITE_ZEROES
        while length:
            size = min(length, SPAN_STEP if can else PIECE)
            if can:
                self.unflushed = True
                self._finish(self._request(nbd.CMD_WRITE_ZEROES, offset, size))
            else:
                self.write(offset, _ZEROS[:size])
            offset += size
            length -= size

    def flush(self) -> None:
        """Put what was written on the server's disk, if it knows how to.  Raises: as `read`."""
        if self.export.flags & nbd.SEND_FLUSH:
            self._finish(self._request(nbd.CMD_FLUSH, 0, 0))
        self.unflushed = False

    def alive(self) -> bool:
        """Nothing waits to be read between requests: the server has neither hung up nor lost its way."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return not poller.poll(0)

    def close(self, polite: bool = True) -> None:
        """Say goodbye if the connection is `polite`, and close it."""
        if polite:
            with contextlib.suppress(BackendError):  # the server was gone already
                self._request(nbd.CMD_DISC, 0, 0)
        self._sock.close()

    # The wire

    def _request(self, command: int, offset: int, length: int, flags: int = 0, data: memoryview | None = None) -> int:
        self._cookie += 1
        head = REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._send(head, *([] if data is None else [data]))
        return self._cookie

    def _finish(self, cookie: int) -> None:
        """Read a reply without content, simple or structured."""
        if not self.export.structured:
            self._simple_reply(cookie)
            return
        done = False
        while not done:
            # A server may answer anything but reads with simple replies even now (proto.md, "Structured reply").
            done, kind, size = self._chunk(cookie, simple=True)
            if kind != nbd.CHUNK_NONE:
                self._other_chunk(kind, size, cookie, done)

    def _simple_reply(self, cookie: int) -> None:
        magic = _U32.unpack(self._receive(4))[0]
        if magic != nbd.SIMPLE_REPLY_MAGIC:
            self._broken("sent something that is no reply")
        self._simple_rest(cookie)

    def _simple_rest(self, cookie: int) -> None:
        error, answered = _SIMPLE.unpack(self._receive(_SIMPLE.size))
        if answered != cookie:
            self._broken("answered another request than was asked")
        if error:
            raise NbdFault(self.where, error)

    def _chunk(self, cookie: int, simple: bool = False) -> tuple[bool, int, int]:
        """(last of the reply, kind, bytes that follow) of the next chunk."""
        magic = _U32.unpack(self._receive(4))[0]
        if magic == nbd.SIMPLE_REPLY_MAGIC and simple:
            self._simple_rest(cookie)
            return True, nbd.CHUNK_NONE, 0
        if magic != nbd.STRUCTURED_REPLY_MAGIC:
            self._broken("sent something that is no reply")
        flags, kind, answered, size = _CHUNK.unpack(self._receive(_CHUNK.size))
        if answered != cookie:
            self._broken("answered another request than was asked")
        return bool(flags & nbd.CHUNK_FLAG_DONE), kind, size

    def _other_chunk(self, kind: int, size: int, cookie: int, done: bool) -> None:
        """A chunk without content: nothing, or an error, of which the rest of the reply is read first."""
        if kind == nbd.CHUNK_NONE and not size and done:
            return
        if not kind & 0x8000 or not _ERROR.size <= size <= MAX_TEXT + _ERROR.size + 8:
            self._broken("sent a chunk that makes no sense here")
        data = self._receive(size)
        error, length = _ERROR.unpack_from(data)
        text = data[_ERROR.size : _ERROR.size + length].decode("utf-8", "replace")
        if not done:
            # More of the reply would follow, which nobody wants: the connection cannot be used again.
            raise BackendError(f"{self.where}: the NBD server answered with an error: {error} {text}")
        raise NbdFault(self.where, error, text)

    def _send(self, *parts: bytes | memoryview) -> None:
        views = [memoryview(part) for part in parts]
        try:
            while views:
                sent = self._sock.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if views:
                    views[0] = views[0][sent:]
        except OSError as error:
            raise BackendDown(f"{self.where}: the NBD server is gone: {error.strerror or error}") from error

    def _receive_into(self, into: memoryview) -> int:
        """At least one byte of what comes next."""
        try:
            got = self._sock.recv_into(into)
        except OSError as error:
            raise BackendDown(f"{self.where}: the NBD server does not answer: {error.strerror or error}") from error
        if not got:
            raise BackendDown(f"{self.where}: the NBD server hung up")
        return got

    def _fill(self, into: memoryview) -> None:
        while into:
            into = into[self._receive_into(into) :]

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _skip(self, length: int) -> None:
        while length:
            length -= len(self._receive(min(length, PIECE)))

    def _broken(self, what: str) -> NoReturn:
        raise BackendError(f"{self.where}: the NBD server {what}")


def _counted(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data


def _connect(address: NbdAddress) -> socket.socket:
    if not isinstance(address, str):
        sock = socket.create_connection(address, CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def joined(parts: Sequence[StatusExtent], others: Sequence[StatusExtent]) -> Iterator[tuple[int, int, int]]:
    """(length, flags of `parts`, flags of `others`) on the borders of both, as far as both reach."""
    first, second = iter(parts), iter(others)
    left = right = StatusExtent(0, 0)
    while True:
        if not left.length:
            left = next(first, left)
        if not right.length:
            right = next(second, right)
        length = min(left.length, right.length)
        if not length:
            return
        yield length, left.flags, right.flags
        left = left._replace(length=left.length - length)
        right = right._replace(length=right.length - length)
