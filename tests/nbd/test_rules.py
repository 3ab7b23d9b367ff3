"""Every MUST and SHOULD of proto.md that concerns a read-only server, each on a real connection."""

from __future__ import annotations

import struct

import pytest

from hexz.protocol.nbd import constants as c
from tests.nbd.conftest import BLOCK, CHANGED_BYTES, Exports
from tests.nbd.wire import STRUCTURED_MODES, Client, OptionReply, extents, info, meta, string

Address = tuple[str, int]
MODES = ("simple", *STRUCTURED_MODES)


def one(replies: list[OptionReply]) -> int:
    """The type of the only reply."""
    assert len(replies) == 1, replies
    return replies[0].kind


# Handshake


def test_greeting_offers_fixed_newstyle_and_nothing_unknown(address: Address) -> None:
    """«NBD_FLAG_FIXED_NEWSTYLE; MUST be set ...»  «The server MUST NOT set any other flags»."""
    with Client(address) as client:
        assert client.greeting == b"NBDMAGICIHAVEOPT\0\3"


@pytest.mark.parametrize("flags", [4, 7, 0x8000_0003])
def test_unknown_client_flags_end_the_connection(address: Address, flags: int) -> None:
    """«the server MUST drop the TCP connection if the client sets an unknown flag»."""
    with Client(address, flags) as client:
        assert client.ended()


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0), (0, 124), (2, 0)])
def test_export_name_sends_zeroes_unless_agreed_otherwise(
    address: Address, exports: Exports, flags: int, zeroes: int
) -> None:
    """«124 bytes, zeroes (reserved) (unless NBD_FLAG_C_NO_ZEROES was negotiated by the client)»."""
    with Client(address, flags) as client:
        client.send_option(c.OPT_EXPORT_NAME, b"snap")
        size, transmission = struct.unpack(">QH", client.take(10))
        assert size == len(exports.disk)
        assert transmission & (c.HAS_FLAGS | c.READ_ONLY) == c.HAS_FLAGS | c.READ_ONLY
        assert client.take(zeroes) == bytes(zeroes)
        assert client.read(0, 512) == exports.disk[:512]


@pytest.mark.parametrize("name", [b"nothing", b"snap/disk/x", b"\xff\xfe", b"x" * 5000])
def test_export_name_of_nothing_ends_the_connection(address: Address, name: bytes) -> None:
    """«If the chosen export does not exist ... the server MUST terminate the session.»"""
    with Client(address) as client:
        client.send_option(c.OPT_EXPORT_NAME, name)
        assert client.ended()


@pytest.mark.parametrize("option", [c.OPT_INFO, c.OPT_GO])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (info("nothing"), c.REP_ERR_UNKNOWN),
        (b"", c.REP_ERR_INVALID),
        (string("snap"), c.REP_ERR_INVALID),
        (info("snap") + b"\0", c.REP_ERR_INVALID),
        (string("snap") + b"\0\2\0\0", c.REP_ERR_INVALID),
        (b"\xff\xff\xff\xffsnap\0\0", c.REP_ERR_INVALID),
        (string(b"\xff\xff") + b"\0\0", c.REP_ERR_INVALID),
        (string("x" * 4097) + b"\0\0", c.REP_ERR_INVALID),
    ],
)
def test_a_wrong_info_or_go_is_refused_and_the_next_one_works(
    address: Address, option: int, data: bytes, error: int
) -> None:
    """«NBD_REP_ERR_UNKNOWN: the chosen export does not exist»; «ERR_INVALID»; negotiation goes on."""
    with Client(address) as client:
        assert one(client.option(option, data)) == error
        client.go("snap")


def test_info_gives_what_was_asked_for_and_go_gives_the_same(address: Address, exports: Exports) -> None:
    """«NBD_OPT_GO ... the same replies as NBD_OPT_INFO»; «MUST» send NBD_INFO_EXPORT; unknown requests are ignored."""
    asked = info("", c.INFO_NAME, c.INFO_DESCRIPTION, c.INFO_BLOCK_SIZE, 4711)
    with Client(address) as client:
        replies = client.option(c.OPT_INFO, asked)
        found = {struct.unpack(">H", reply.data[:2])[0]: reply.data[2:] for reply in replies[:-1]}
        assert struct.unpack(">QH", found[c.INFO_EXPORT])[0] == len(exports.disk)
        assert found[c.INFO_NAME] == b"snap"
        assert found[c.INFO_DESCRIPTION].decode()
        smallest, preferred, largest = struct.unpack(">III", found[c.INFO_BLOCK_SIZE])
        assert (smallest, preferred, largest) == (1, 64 << 10, 32 << 20)
        assert set(found) == {c.INFO_EXPORT, c.INFO_NAME, c.INFO_DESCRIPTION, c.INFO_BLOCK_SIZE}
        assert client.option(c.OPT_GO, asked) == replies


def test_info_without_requests_gives_the_export_alone(address: Address) -> None:
    """«The server MUST send ... NBD_INFO_EXPORT» and need not send others."""
    with Client(address) as client:
        replies = client.option(c.OPT_INFO, info("snap"))
        assert [reply.kind for reply in replies] == [c.REP_INFO, c.REP_ACK]


def test_list_names_every_stream(address: Address) -> None:
    """«Return zero or more NBD_REP_SERVER replies, one for each export, followed by NBD_REP_ACK»."""
    with Client(address) as client:
        replies = client.option(c.OPT_LIST)
        assert [reply.data for reply in replies[:-1]] == [
            string(name) for name in ("snap", "snap/memory", "thin", "damaged")
        ]
        assert replies[-1] == OptionReply(c.REP_ACK, b"")


@pytest.mark.parametrize("option", [c.OPT_LIST, c.OPT_STRUCTURED_REPLY, c.OPT_EXTENDED_HEADERS, c.OPT_STARTTLS])
def test_data_where_none_belongs_is_invalid(address: Address, option: int) -> None:
    """«The server MUST ... NBD_REP_ERR_INVALID if the client includes data»."""
    with Client(address) as client:
        assert one(client.option(option, b"surplus")) == c.REP_ERR_INVALID
        client.go()


@pytest.mark.parametrize("option", [0, 4, 12, 255, 0x8000_0000, 0xFFFF_FFFF])
def test_an_unknown_option_is_refused_and_its_data_skipped(address: Address, option: int) -> None:
    """«NBD_REP_ERR_UNSUP: The option sent by the client is unknown by this server»."""
    with Client(address) as client:
        assert one(client.option(option, b"x" * 1000)) == c.REP_ERR_UNSUP
        client.go()


def test_a_large_option_is_skipped_and_refused(address: Address) -> None:
    """«NBD_REP_ERR_TOO_BIG: The request or the reply is too large to process»; the stream stays in step."""
    with Client(address) as client:
        assert one(client.option(c.OPT_INFO, bytes(c.MAX_OPTION + 1))) == c.REP_ERR_TOO_BIG
        client.go()


def test_a_huge_option_ends_the_connection_at_once(address: Address) -> None:
    """«if a server believes a client's behaviour constitutes a denial of service, it MAY ... disconnect»."""
    with Client(address) as client:
        client.send_option(c.OPT_INFO, b"", c.MAX_SKIPPED + 1)
        assert client.ended()


def test_too_many_options_end_the_connection(address: Address) -> None:
    with Client(address) as client:
        client.send((c.IHAVEOPT + struct.pack(">II", 77, 0)) * c.MAX_OPTIONS)
        for _ in range(c.MAX_OPTIONS):
            client.option_replies(77)
        client.send_option(77)
        assert client.ended()


def test_an_option_without_its_magic_ends_the_connection(address: Address) -> None:
    with Client(address) as client:
        client.send(b"IHAVEOPX" + struct.pack(">II", c.OPT_LIST, 0))
        assert client.ended()


def test_abort_is_acknowledged(address: Address) -> None:
    """«NBD_OPT_ABORT: The server MUST reply with NBD_REP_ACK»."""
    with Client(address) as client:
        assert one(client.option(c.OPT_ABORT)) == c.REP_ACK
        assert client.ended()


def test_starttls_without_a_certificate_is_refused(address: Address) -> None:
    """«The server MUST either reply with NBD_REP_ACK ... or an error reply explicitly permitted»."""
    with Client(address) as client:
        assert one(client.option(c.OPT_STARTTLS)) == c.REP_ERR_POLICY
        client.go()


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        (c.OPT_STRUCTURED_REPLY, c.OPT_STRUCTURED_REPLY, c.REP_ERR_INVALID),
        (c.OPT_STRUCTURED_REPLY, c.OPT_EXTENDED_HEADERS, c.REP_ACK),
        (c.OPT_EXTENDED_HEADERS, c.OPT_EXTENDED_HEADERS, c.REP_ERR_INVALID),
        (c.OPT_EXTENDED_HEADERS, c.OPT_STRUCTURED_REPLY, c.REP_ERR_EXT_HEADER_REQD),
    ],
)
def test_reply_forms_are_agreed_on_once(address: Address, first: int, second: int, answer: int) -> None:
    """«When successful, this option takes precedence over structured replies» (extended headers)."""
    with Client(address) as client:
        assert one(client.option(first)) == c.REP_ACK
        assert one(client.option(second)) == answer


@pytest.mark.parametrize("mode", MODES)
def test_df_is_offered_with_chunked_replies_only(address: Address, mode: str) -> None:
    """«MUST leave this flag [SEND_DF] clear if structured replies have not been negotiated»."""
    with Client(address) as client:
        _, flags = client.negotiate(mode).go()
        assert bool(flags & c.SEND_DF) is (mode != "simple")
        assert flags & c.CAN_MULTI_CONN
        assert flags & c.SEND_CACHE


# Meta contexts


def listed(client: Client, option: int, data: bytes) -> list[str]:
    replies = client.option(option, data)
    assert replies[-1].kind == c.REP_ACK, replies
    return [reply.data[4:].decode() for reply in replies[:-1]]


@pytest.mark.parametrize(
    ("export", "queries", "names"),
    [
        ("snap", (), ["base:allocation"]),
        ("snap", ("base:",), ["base:allocation"]),
        ("snap", ("base:allocation", "base:allocation"), ["base:allocation"]),
        ("snap", ("nothing:", "base:other", "hexz:parent", ""), []),
        ("thin", (), ["base:allocation", "hexz:parent"]),
        ("thin", ("hexz:",), ["hexz:parent"]),
    ],
)
def test_contexts_are_listed_by_name_and_name_space(
    address: Address, export: str, queries: tuple[str, ...], names: list[str]
) -> None:
    """«If zero queries are sent, then the server MUST return all the metadata contexts that are available»."""
    with Client(address) as client:
        client.negotiate("structured")
        assert listed(client, c.OPT_LIST_META_CONTEXT, meta(export, *queries)) == names


def test_setting_contexts_wants_whole_names_and_replaces_the_earlier_ones(address: Address) -> None:
    """«Issuing this command replaces all previously-set metadata contexts»; ids are «unique»."""
    with Client(address) as client:
        client.negotiate("structured")
        assert client.set_contexts("thin", "base:", "hexz:") == {}
        ids = client.set_contexts("thin", "hexz:parent", "base:allocation", "base:allocation")
        assert sorted(ids.values()) == ["base:allocation", "hexz:parent"]
        assert client.set_contexts("thin") == {}
        client.go("thin")
        assert client.request(c.CMD_BLOCK_STATUS, 0, 4096).error == c.NBD_EINVAL


@pytest.mark.parametrize("option", [c.OPT_LIST_META_CONTEXT, c.OPT_SET_META_CONTEXT])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (meta("nothing", "base:allocation"), c.REP_ERR_UNKNOWN),
        (b"", c.REP_ERR_INVALID),
        (string("snap"), c.REP_ERR_INVALID),
        (string("snap") + struct.pack(">I", 1), c.REP_ERR_INVALID),
        (meta("snap", "base:allocation") + b"x", c.REP_ERR_INVALID),
        (string("snap") + struct.pack(">I", 0xFFFF_FFFF), c.REP_ERR_INVALID),
        (string("snap") + struct.pack(">I", c.MAX_QUERIES + 1) + string("base:allocation"), c.REP_ERR_INVALID),
        (meta("snap", *["base:allocation"] * (c.MAX_QUERIES + 1)), c.REP_ERR_TOO_BIG),
    ],
)
def test_wrong_context_options_are_refused(address: Address, option: int, data: bytes, error: int) -> None:
    with Client(address) as client:
        client.negotiate("structured")
        assert one(client.option(option, data)) == error
        client.go()


@pytest.mark.parametrize("option", [c.OPT_LIST_META_CONTEXT, c.OPT_SET_META_CONTEXT])
def test_contexts_want_chunked_replies(address: Address, option: int) -> None:
    """«This option MUST NOT be requested unless structured replies have been negotiated first ... ERR_INVALID»."""
    with Client(address) as client:
        assert one(client.option(option, meta("snap", "base:allocation"))) == c.REP_ERR_INVALID


def test_contexts_hold_for_the_export_they_were_set_for(address: Address) -> None:
    """«NBD_OPT_SET_META_CONTEXT ... the export name must match»."""
    with Client(address) as client:
        client.negotiate("structured")
        client.set_contexts("thin", "base:allocation")
        client.go("snap")
        assert client.request(c.CMD_BLOCK_STATUS, 0, 4096).error == c.NBD_EINVAL


# Transmission


@pytest.mark.parametrize("mode", MODES)
def test_refusals_have_their_error_and_leave_the_connection_usable(
    address: Address, exports: Exports, mode: str
) -> None:
    """Section «Error values»: EPERM for writes, EINVAL for unknown commands, flags and spans past the end."""
    size = len(exports.disk)
    table = [
        (c.CMD_WRITE, 0, 512, 0, c.NBD_EPERM),
        (c.CMD_WRITE, 0, 100_000, c.CMD_FLAG_FUA, c.NBD_EPERM),
        (c.CMD_WRITE, size, 512, 0, c.NBD_EPERM),
        (c.CMD_TRIM, 0, 512, 0, c.NBD_EPERM),
        (c.CMD_WRITE_ZEROES, 0, 512, 0, c.NBD_EPERM),
        (c.CMD_FLUSH, 0, 0, 0, c.NBD_EINVAL),
        (8, 0, 512, 0, c.NBD_EINVAL),
        (99, 0, 0, 0, c.NBD_EINVAL),
        (0xFFFF, 0, 0, 0, c.NBD_EINVAL),
        (c.CMD_READ, size, 1, 0, c.NBD_EINVAL),
        (c.CMD_READ, size - 1, 2, 0, c.NBD_EINVAL),
        (c.CMD_READ, 2**64 - 1, 512, 0, c.NBD_EINVAL),
        (c.CMD_READ, size + 1, 0, 0, c.NBD_EINVAL),
        (c.CMD_READ, 0, 512, c.CMD_FLAG_FUA, c.NBD_EINVAL),
        (c.CMD_READ, 0, 512, c.CMD_FLAG_REQ_ONE, c.NBD_EINVAL),
        (c.CMD_READ, 0, 512, 0x8000, c.NBD_EINVAL),
        (c.CMD_CACHE, 0, 512, c.CMD_FLAG_DF, c.NBD_EINVAL),
        (c.CMD_CACHE, size, 1, 0, c.NBD_EINVAL),
        (c.CMD_BLOCK_STATUS, 0, 512, 0, c.NBD_EINVAL),
        (c.CMD_READ, 0, 0, 0, 0),
        (c.CMD_CACHE, 0, size, 0, 0),
    ]
    if mode == "simple":
        table.append((c.CMD_READ, 0, 512, c.CMD_FLAG_DF, c.NBD_EINVAL))
    with Client(address) as client:
        client.negotiate(mode).go()
        for command, offset, length, flags, error in table:
            payload = bytes(length) if command == c.CMD_WRITE else b""
            reply = client.request(command, offset, length, flags, payload)
            assert reply.error == error, (command, offset, length, flags)
        assert client.read(1000, 5000) == exports.disk[1000:6000]


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_block_status_flags_and_spans_are_checked(address: Address, exports: Exports, mode: str) -> None:
    with Client(address) as client:
        client.negotiate(mode)
        client.set_contexts("", "base:allocation")
        client.go()
        for offset, length, flags in ((len(exports.disk), 1, 0), (0, 0, 0), (0, 512, c.CMD_FLAG_DF), (2**63, 512, 0)):
            assert client.request(c.CMD_BLOCK_STATUS, offset, length, flags).error == c.NBD_EINVAL
        assert extents(client.request(c.CMD_BLOCK_STATUS, 0, 512))


def test_a_payload_flag_is_refused_and_the_payload_drained(address: Address, exports: Exports) -> None:
    """Extended headers: NBD_CMD_FLAG_PAYLOAD_LEN where it does not belong gives EINVAL, in step."""
    with Client(address) as client:
        client.negotiate("extended").go()
        reply = client.request(c.CMD_READ, 0, 3000, c.CMD_FLAG_PAYLOAD_LEN, bytes(3000))
        assert reply.error == c.NBD_EINVAL
        assert client.read(0, 10) == exports.disk[:10]


@pytest.mark.parametrize("mode", MODES)
def test_reads_of_every_size(address: Address, exports: Exports, mode: str) -> None:
    """«the server MUST send enough data chunks to cover the entire region»; a payload limit SHOULD be >= 32 MiB."""
    size = len(exports.disk)
    spans = [(0, 1), (size - 1, 1), (0, 4096), (65_535, 2), (100, 300_000), (5, 3 << 20), (0, size), (size, 0)]
    with Client(address) as client:
        assert client.negotiate(mode).go()[0] == size
        for offset, length in spans:
            assert client.read(offset, length) == exports.disk[offset : offset + length]


@pytest.mark.parametrize("mode", MODES)
def test_one_byte_at_a_time_is_the_same_as_all_at_once(address: Address, exports: Exports, mode: str) -> None:
    with Client(address) as client:
        client.negotiate(mode).go()
        requests = b"".join(client.pack(c.CMD_READ, number * 1000, 700) for number in range(4))
        for byte in requests:
            client.send(bytes([byte]))
        asked = {number: (c.CMD_READ, (number - 1) * 1000, 700) for number in range(1, 5)}
        for _ in range(4):
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.disk[offset : offset + length]


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_df_gives_one_chunk_with_its_zeros(address: Address, exports: Exports, mode: str) -> None:
    """«the server MUST send at most one content chunk ... with the zeroes explicitly present»; 65536 MUST work."""
    size = len(exports.disk)
    with Client(address) as client:
        client.negotiate(mode).go()
        for offset, length in ((0, 65_536), (0, 1 << 20), (size - 70_000, 70_000)):
            reply = client.request(c.CMD_READ, offset, length, c.CMD_FLAG_DF)
            content = [kind for _, kind, _ in reply.chunks if kind in (c.CHUNK_OFFSET_DATA, c.CHUNK_OFFSET_HOLE)]
            assert content == [c.CHUNK_OFFSET_DATA]
            assert reply.data == exports.disk[offset : offset + length]
        # «A server MAY reject a client's request with the error EOVERFLOW ... it MUST NOT send a content chunk»
        reply = client.request(c.CMD_READ, 0, (1 << 20) + 1, c.CMD_FLAG_DF)
        assert (reply.error, len(reply.chunks)) == (c.NBD_EOVERFLOW, 1)


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_zero_blocks_travel_as_holes(address: Address, exports: Exports, mode: str) -> None:
    with Client(address) as client:
        client.negotiate(mode).go()
        reply = client.request(c.CMD_READ, 0, len(exports.disk))
        holes = sum(struct.unpack(">QI", p)[1] for _, kind, p in reply.chunks if kind == c.CHUNK_OFFSET_HOLE)
        sent = sum(len(p) - 8 for _, kind, p in reply.chunks if kind == c.CHUNK_OFFSET_DATA)
        assert holes > 0
        assert holes + sent == len(exports.disk)
        assert reply.data == exports.disk


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_requests_in_one_go(address: Address, exports: Exports, mode: str) -> None:
    """«the server MUST use the same value for handle»; any number of requests may be in flight."""
    with Client(address) as client:
        client.negotiate(mode).go()
        asked = {}
        batch = bytearray()
        for number in range(1000):
            offset, length = number * 8209 % (8 << 20), 1 + number * 37 % 9000
            batch += client.pack(c.CMD_READ, offset, length)
            asked[client.cookie] = (c.CMD_READ, offset, length)
        client.send(batch)
        while asked:
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.disk[offset : offset + length]


def test_the_same_cookie_twice_is_the_clients_business(address: Address, exports: Exports) -> None:
    """«Clients SHOULD use a handle that is distinct»: the server copies it, whatever it is."""
    with Client(address) as client:
        client.go()
        client.send(client.pack(c.CMD_READ, 0, 100, cookie=2**64 - 1) * 2)
        for _ in range(2):
            assert client.reply({2**64 - 1: (c.CMD_READ, 0, 100)}).data == exports.disk[:100]


@pytest.mark.parametrize("mode", MODES)
def test_disc_answers_what_is_pending_and_then_hangs_up(address: Address, exports: Exports, mode: str) -> None:
    """«NBD_CMD_DISC: The server MUST handle all outstanding requests ... and close the TCP session»."""
    with Client(address) as client:
        client.negotiate(mode).go("thin")
        asked = {}
        batch = bytearray()
        for number in range(64):
            batch += client.pack(c.CMD_READ, number * 100_000, 50_000)
            asked[client.cookie] = (c.CMD_READ, number * 100_000, 50_000)
        client.send(batch + client.pack(c.CMD_DISC))
        while asked:
            reply = client.reply(asked)
            _, offset, length = asked.pop(reply.cookie)
            assert reply.data == exports.child[offset : offset + length]
        assert client.ended()


@pytest.mark.parametrize("mode", MODES)
def test_a_request_without_its_magic_ends_the_connection(address: Address, mode: str) -> None:
    """A reply to a stream that is out of step cannot mean anything: «it MAY ... disconnect»."""
    with Client(address) as client:
        client.negotiate(mode).go()
        client.send(b"\xde\xad\xbe\xef" + client.pack(c.CMD_READ, 0, 10)[4:])
        assert client.ended()


def test_a_payload_beyond_the_limit_ends_the_connection(address: Address) -> None:
    with Client(address) as client:
        client.go()
        client.send(client.pack(c.CMD_WRITE, 0, c.MAX_SKIPPED + 1))
        assert client.ended()


@pytest.mark.parametrize("mode", MODES)
def test_a_read_beyond_the_announced_maximum_is_refused(tmp_path_factory: pytest.TempPathFactory, mode: str) -> None:
    from hexz.protocol.nbd.rules import NbdRequest, refusal

    request = NbdRequest(0, c.CMD_READ, 1, 0, c.MAX_READ + 1)
    refused = refusal(request, 1 << 40, mode != "simple", mode == "extended", False, 1 << 20)
    assert refused is not None
    assert refused.error == c.NBD_EINVAL


# Block status


def runs(data: bytes, flags_of: dict[bool, int]) -> list[tuple[int, int]]:
    """(bytes, flags) of the block-wise zero and other runs of `data`."""
    found: list[tuple[int, int]] = []
    for at in range(0, len(data), 64 << 10):
        block = data[at : at + (64 << 10)]
        flags = flags_of[not any(block)]
        if found and found[-1][1] == flags:
            found[-1] = (found[-1][0] + len(block), flags)
        else:
            found.append((len(block), flags))
    return found


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_block_status_tells_zeros_from_data(address: Address, exports: Exports, mode: str) -> None:
    """Consecutive descriptors SHOULD differ; their sum MUST NOT be greater than the length of the request."""
    with Client(address) as client:
        client.negotiate(mode)
        ids = client.set_contexts("", "base:allocation")
        client.go()
        (found,) = extents(client.request(c.CMD_BLOCK_STATUS, 0, len(exports.disk))).values()
        expected = runs(exports.disk, {True: c.STATE_HOLE | c.STATE_ZERO, False: 0})
        assert found == expected
        assert list(ids.values()) == ["base:allocation"]
        at = 1000
        (found,) = extents(client.request(c.CMD_BLOCK_STATUS, at, 200_000)).values()
        assert sum(length for length, _ in found) == 200_000


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_req_one_gives_one_descriptor_for_each_context(address: Address, exports: Exports, mode: str) -> None:
    """«If the client used NBD_CMD_FLAG_REQ_ONE ... every reply chunk MUST NOT contain more than one descriptor»."""
    with Client(address) as client:
        client.negotiate(mode)
        ids = client.set_contexts("thin", "base:allocation", "hexz:parent")
        client.go("thin")
        found = extents(client.request(c.CMD_BLOCK_STATUS, 0, len(exports.child), c.CMD_FLAG_REQ_ONE))
        assert set(found) == set(ids)
        assert all(len(descriptors) == 1 for descriptors in found.values())


@pytest.mark.parametrize("mode", STRUCTURED_MODES)
def test_parent_context_tells_what_a_thin_snapshot_holds_itself(address: Address, exports: Exports, mode: str) -> None:
    with Client(address) as client:
        client.negotiate(mode)
        ids = {name: number for number, name in client.set_contexts("thin", "hexz:parent").items()}
        client.go("thin")
        found = extents(client.request(c.CMD_BLOCK_STATUS, 0, len(exports.child)))[ids["hexz:parent"]]
        at = 0
        own = bytearray(len(exports.child))
        for length, flags in found:
            if not flags:
                own[at : at + length] = b"\1" * length
            at += length
        assert at == len(exports.child)
        changed = [a != b for a, b in zip(exports.disk, exports.child)]
        assert all(own[number] for number, different in enumerate(changed) if different)
        stored = sum(bool(own[at]) and any(exports.child[at : at + BLOCK]) for at in range(0, len(own), BLOCK))
        assert stored <= CHANGED_BYTES // BLOCK + 2, "unchanged blocks come from the parent"


# Damage


@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_block_is_eio_and_its_neighbours_are_served(address: Address, exports: Exports, mode: str) -> None:
    """«the server SHOULD set the appropriate error code»; «it MUST NOT send any payload for this request»."""
    with Client(address) as client:
        client.negotiate(mode).go("damaged")
        assert client.request(c.CMD_READ, exports.damaged_at + 5, 100).error == c.NBD_EIO
        assert client.request(c.CMD_READ, exports.damaged_at - 10, 20).error == c.NBD_EIO
        for offset in (0, exports.damaged_at - 100, exports.damaged_at + (64 << 10)):
            assert client.read(offset, 100) == exports.noise[offset : offset + 100]
