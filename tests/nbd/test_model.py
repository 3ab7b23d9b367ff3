"""A state machine of clients: random options and pipelined requests, cut anywhere, on several connections at once.

The model is the protocol: what each message is answered with follows from what the
same connection sent before it, whatever the others do and however the bytes travel.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule, run_state_machine_as_test

from hexz.protocol.nbd import constants as c
from tests.nbd.conftest import BLOCK, Exports
from tests.nbd.wire import Client, extents, info, meta, string

NAMES = {"": "snap", "snap": "snap", "snap/memory": "snap/memory", "thin": "thin", "damaged": "damaged"}
LARGEST_CHUNK = 1 << 20
ONCE = 2000
"""Most bytes that travel in one piece."""

Request = tuple[int, int, int]


class Talk:
    """One connection: what is still to be sent, and what must come back."""

    def __init__(self, address: tuple[str, int], exports: Exports, flags: int) -> None:
        self.client = Client(address, None)
        self.exports = exports
        self.zeroes = not flags & c.FLAG_NO_ZEROES
        self.unsent = bytearray(struct.pack(">I", flags))
        self.answers: list[Callable[[], None]] = []  # of the handshake, in order
        self.asked: dict[int, Request] = {}
        self.errors: dict[int, int] = {}
        self.open = True  # the server has no reason to hang up
        self.transmitting = False
        self.mode = "simple"
        self.contexts: list[str] = []
        self.contexts_for: str | None = None
        self.data = b""
        self.damaged = range(0)

    # Handshake

    def option(self, option: int, data: bytes, *kinds: int) -> None:
        """Send an option later; its replies will be of these kinds."""
        self.unsent += c.IHAVEOPT + struct.pack(">II", option, len(data)) + data

        def check() -> None:
            found = [reply.kind for reply in self.client.option_replies(option)]
            assert found == list(kinds), (option, data, found)

        self.answers.append(check)

    def forms(self, option: int) -> None:
        """Ask for structured replies or extended headers."""
        extended = option == c.OPT_EXTENDED_HEADERS
        if self.mode == "extended":
            self.option(option, b"", c.REP_ERR_INVALID if extended else c.REP_ERR_EXT_HEADER_REQD)
        elif self.mode == "structured" and not extended:
            self.option(option, b"", c.REP_ERR_INVALID)
        else:
            self.option(option, b"", c.REP_ACK)
            self.mode = "extended" if extended else "structured"

    def meta(self, option: int, export: str, queries: list[str]) -> None:
        """List or set meta contexts."""
        setting = option == c.OPT_SET_META_CONTEXT
        if setting:
            self.contexts, self.contexts_for = [], None
        if self.mode == "simple":
            self.option(option, meta(export, *queries), c.REP_ERR_INVALID)
        elif export not in NAMES:
            self.option(option, meta(export, *queries), c.REP_ERR_UNKNOWN)
        else:
            offered = ["base:allocation"] + ["hexz:parent"] * (export == "thin")
            spaces = [] if setting else [query for query in queries if query.endswith(":")]
            found = [name for name in offered if name in queries or name.split(":")[0] + ":" in spaces]
            if not setting and not queries:
                found = offered
            self.option(option, meta(export, *queries), *[c.REP_META_CONTEXT] * len(found), c.REP_ACK)
            if setting:
                self.contexts, self.contexts_for = found, export

    def enter(self, export: str, old: bool) -> None:
        """Choose an export; the old way has no word for «no»."""
        known = export in NAMES
        if not old:
            kinds = (c.REP_INFO, c.REP_INFO, c.REP_ACK) if known else (c.REP_ERR_UNKNOWN,)
            self.option(c.OPT_GO, info(export, c.INFO_BLOCK_SIZE), *kinds)
        else:
            name = export.encode()
            self.unsent += c.IHAVEOPT + struct.pack(">II", c.OPT_EXPORT_NAME, len(name)) + name
            if known:
                self.answers.append(self._old_answer)
            self.open = known
        if known:
            exports = self.exports
            self.transmitting = True
            self.data = {
                "snap": exports.disk, "snap/memory": exports.memory, "thin": exports.child, "damaged": exports.noise
            }[NAMES[export]]  # fmt: skip
            if export == "damaged":
                self.damaged = range(exports.damaged_at, exports.damaged_at + BLOCK)
            if self.contexts_for != export:
                self.contexts = []
            self.client.mode = self.mode

    def _old_answer(self) -> None:
        size, flags = struct.unpack(">QH", self.client.take(10))
        assert size == len(self.data)
        assert flags & c.READ_ONLY
        assert self.client.take(124 * self.zeroes) == bytes(124 * self.zeroes)

    # Transmission

    def request(self, command: int, offset: int, length: int, flags: int) -> None:
        """Send a request later."""
        payload = bytes(length) if command == c.CMD_WRITE else b""
        self.unsent += self.client.pack(command, offset, length, flags) + payload
        self.asked[self.client.cookie] = (command, offset, length)
        self.errors[self.client.cookie] = self.error(command, offset, length, flags)

    def error(self, command: int, offset: int, length: int, flags: int) -> int:
        """What proto.md answers such a request with; 0 is success."""
        if command in c.WRITING_COMMANDS:
            return c.NBD_EPERM
        chunked = self.mode != "simple"
        fitting = {c.CMD_READ: c.CMD_FLAG_DF, c.CMD_BLOCK_STATUS: c.CMD_FLAG_REQ_ONE}.get(command, 0)
        if command not in (c.CMD_READ, c.CMD_CACHE, c.CMD_BLOCK_STATUS) or flags & ~(fitting if chunked else 0):
            return c.NBD_EINVAL
        if command == c.CMD_BLOCK_STATUS and not (self.contexts and length):
            return c.NBD_EINVAL
        if offset + length > len(self.data):
            return c.NBD_EINVAL
        if command == c.CMD_READ and flags & c.CMD_FLAG_DF and length > LARGEST_CHUNK:
            return c.NBD_EOVERFLOW
        touched = (
            command == c.CMD_READ and length and offset < self.damaged.stop and offset + length > self.damaged.start
        )
        return c.NBD_EIO if touched else 0

    # On the wire

    def push(self, count: int) -> None:
        """Send some of what is to be sent."""
        piece = bytes(self.unsent[:count])
        del self.unsent[:count]
        try:
            self.client.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            assert not self.open, "the server hung up for no reason"

    def collect(self) -> None:
        """Send the rest, and take every answer that is due."""
        self.push(len(self.unsent))
        for check in self.answers:
            check()
        self.answers.clear()
        while self.asked:
            reply = self.client.reply(self.asked)
            command, offset, length = self.asked.pop(reply.cookie)
            assert reply.error == self.errors.pop(reply.cookie), (command, offset, length)
            if not reply.error and command == c.CMD_READ:
                assert reply.data == self.data[offset : offset + length]
            if not reply.error and command == c.CMD_BLOCK_STATUS:
                found = extents(reply)
                assert len(found) == len(self.contexts)
                assert all(0 < sum(size for size, _ in runs) <= length for runs in found.values())
        if not self.open:
            assert self.client.ended()

    def vanish(self) -> None:
        """Reset the connection, whatever is under way."""
        self.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.sock.close()


SOME_NAMES = st.sampled_from([*NAMES, "nothing", "snap/x", "snäp"])
QUERIES = st.lists(st.sampled_from(["base:allocation", "hexz:parent", "base:", "hexz:", "x:y", ""]), max_size=3)
OFFSETS = st.one_of(
    st.integers(0, 1 << 20),
    st.integers(0, 9 << 20),
    st.sampled_from([0, 2 * BLOCK, 3 * BLOCK - 1, 2**63, 2**64 - 1]),
)
LENGTHS = st.one_of(st.integers(0, 300_000), st.integers(1, 5000), st.just(LARGEST_CHUNK + 1))
COMMANDS = st.sampled_from([c.CMD_READ] * 5 + [c.CMD_BLOCK_STATUS] * 2 + [1, 3, 4, 5, 6, 8, 99])
FLAGS = st.sampled_from([0, 0, 0, 0, c.CMD_FLAG_DF, c.CMD_FLAG_DF, c.CMD_FLAG_REQ_ONE, c.CMD_FLAG_FUA, 0x8000])
REQUESTS = st.lists(st.tuples(COMMANDS, OFFSETS, LENGTHS, FLAGS), min_size=1, max_size=12)
READS = st.lists(st.tuples(st.just(c.CMD_READ), st.integers(0, 900_000), st.integers(1, 5000), st.just(0)), min_size=1)
FORMS = st.sampled_from([0, c.OPT_STRUCTURED_REPLY, c.OPT_EXTENDED_HEADERS])


class Clients(RuleBasedStateMachine):
    """Several clients at once: some in the handshake, some past it."""

    shaking = Bundle("shaking")
    reading = Bundle("reading")

    def __init__(self, address: tuple[str, int], exports: Exports) -> None:
        super().__init__()
        self.address = address
        self.exports = exports
        self.all: list[Talk] = []

    def talk(self, flags: int) -> Talk:
        talk = Talk(self.address, self.exports, flags)
        self.all.append(talk)
        return talk

    @rule(target=shaking, flags=st.sampled_from([3, 3, 1, 0]))
    def connect(self, flags: int) -> Talk:
        return self.talk(flags)

    @rule(target=reading, form=FORMS, known=st.sampled_from([*NAMES]), other=SOME_NAMES, queries=QUERIES)
    def connect_and_enter(self, form: int, known: str, other: str, queries: list[str]) -> Talk:
        """With contexts for this export or for another one."""
        talk = self.talk(3)
        if form:
            talk.forms(form)
            talk.meta(c.OPT_SET_META_CONTEXT, known, ["base:allocation", *queries])
        if form and len(queries) > 1:
            talk.meta(c.OPT_SET_META_CONTEXT, other, queries)
        talk.enter(known, False)
        return talk

    @rule(talk=shaking, option=st.sampled_from([c.OPT_STRUCTURED_REPLY, c.OPT_EXTENDED_HEADERS]))
    def ask_for_chunks(self, talk: Talk, option: int) -> None:
        talk.forms(option)

    @rule(talk=shaking, data=st.binary(max_size=200), which=st.integers(0, 6))
    def send_option(self, talk: Talk, data: bytes, which: int) -> None:
        if which == 0:
            talk.option(c.OPT_LIST, b"", *[c.REP_SERVER] * 4, c.REP_ACK)
        elif which == 1:
            talk.option(c.OPT_LIST, data + b"!", c.REP_ERR_INVALID)
        elif which == 2:
            talk.option(1000 + len(data), data, c.REP_ERR_UNSUP)
        elif which == 3:
            talk.option(c.OPT_STARTTLS, b"", c.REP_ERR_POLICY)
        elif which == 4:
            talk.option(c.OPT_GO, string(data)[:-1] if data else b"", c.REP_ERR_INVALID)
        elif which == 5:
            talk.option(c.OPT_INFO, info("thin", c.INFO_NAME, 77, c.INFO_NAME), c.REP_INFO, c.REP_INFO, c.REP_ACK)
        else:
            talk.option(c.OPT_SET_META_CONTEXT, string("thin") + b"\0\0\0\2" + string(data), c.REP_ERR_INVALID)

    @rule(talk=shaking, setting=st.booleans(), export=SOME_NAMES, queries=QUERIES)
    def ask_for_contexts(self, talk: Talk, setting: bool, export: str, queries: list[str]) -> None:
        talk.meta(c.OPT_SET_META_CONTEXT if setting else c.OPT_LIST_META_CONTEXT, export, queries)

    @rule(talk=consumes(shaking), target=reading, export=SOME_NAMES, old=st.booleans())
    def enter(self, talk: Talk, export: str, old: bool) -> Any:
        talk.enter(export, old and export.isascii())
        if not talk.transmitting:
            talk.collect()
            if talk.open:
                talk.enter("snap", old)
        return talk if talk.transmitting else multiple()

    @rule(talk=reading, requests=st.one_of(REQUESTS, READS), cut=st.integers(0, 40))
    def send_requests(self, talk: Talk, requests: list[tuple[int, int, int, int]], cut: int) -> None:
        """All but the last `cut` bytes travel now."""
        for command, offset, length, flags in requests:
            talk.request(command, offset, min(length, 40_000) if command == c.CMD_WRITE else length, flags)
        talk.push(max(len(talk.unsent) - cut, 0))

    @rule(talk=st.one_of(shaking, reading), count=st.one_of(st.integers(1, 40), st.integers(1, ONCE)))
    def push(self, talk: Talk, count: int) -> None:
        talk.push(count)

    @rule(talk=st.one_of(shaking, reading))
    def collect(self, talk: Talk) -> None:
        talk.collect()

    @rule(
        talk=st.one_of(consumes(shaking), consumes(reading)), manner=st.sampled_from(["properly", "nonsense", "reset"])
    )
    def leave(self, talk: Talk, manner: str) -> None:
        """With the protocol's farewell, with something that makes no sense, or without a word."""
        if manner == "reset":
            talk.vanish()
            self.all.remove(talk)
            return
        if manner == "nonsense":
            talk.unsent += b"no magic" * 4
        elif talk.transmitting:
            talk.unsent += talk.client.pack(c.CMD_DISC)
        else:
            talk.option(c.OPT_ABORT, b"", c.REP_ACK)
        talk.open = False

    def teardown(self) -> None:
        try:
            for talk in self.all:
                talk.collect()
            with Client(self.address) as client:
                client.go()
                assert client.read(0, 100) == self.exports.disk[:100]
        finally:
            for talk in self.all:
                talk.client.sock.close()


def test_every_client_gets_its_answers_whatever_the_others_do(address: tuple[str, int], exports: Exports) -> None:
    run_state_machine_as_test(lambda: Clients(address, exports), settings=settings(stateful_step_count=40))
