"""Numbers of the NBD protocol, named as in proto.md, and the limits of this server."""

from __future__ import annotations

# Magics
NBDMAGIC = b"NBDMAGIC"
IHAVEOPT = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003_E889_0455_65A9
REQUEST_MAGIC = 0x2560_9513
EXTENDED_REQUEST_MAGIC = 0x21E4_1C71
SIMPLE_REPLY_MAGIC = 0x6744_6698
STRUCTURED_REPLY_MAGIC = 0x668E_33EF
EXTENDED_REPLY_MAGIC = 0x6E8A_278C

# Handshake flags; the client's have the same values
FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

# Options
OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10
OPT_EXTENDED_HEADERS = 11

# Option replies
REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERR_UNSUP = 0x8000_0001
REP_ERR_POLICY = 0x8000_0002
REP_ERR_INVALID = 0x8000_0003
REP_ERR_TLS_REQD = 0x8000_0005
REP_ERR_UNKNOWN = 0x8000_0006
REP_ERR_SHUTDOWN = 0x8000_0007
REP_ERR_TOO_BIG = 0x8000_0009
REP_ERR_EXT_HEADER_REQD = 0x8000_000A

# Information types
INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

# Transmission flags
HAS_FLAGS = 1
READ_ONLY = 2
SEND_FLUSH = 4
SEND_WRITE_ZEROES = 64
SEND_DF = 128
CAN_MULTI_CONN = 256
SEND_CACHE = 1024

# Commands
CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7
WRITING_COMMANDS = frozenset({CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES})

# Command flags
CMD_FLAG_FUA = 1
CMD_FLAG_NO_HOLE = 2
CMD_FLAG_DF = 4
CMD_FLAG_REQ_ONE = 8
CMD_FLAG_FAST_ZERO = 16
CMD_FLAG_PAYLOAD_LEN = 32

# Reply chunks
CHUNK_FLAG_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_BLOCK_STATUS_EXT = 6
CHUNK_ERROR = 0x8001
CHUNK_ERROR_OFFSET = 0x8002

# Errors
NBD_EPERM = 1
NBD_EIO = 5
NBD_ENOMEM = 12
NBD_EINVAL = 22
NBD_ENOSPC = 28
NBD_EOVERFLOW = 75
NBD_ENOTSUP = 95
NBD_ESHUTDOWN = 108
ERROR_NAMES = {1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW", 108: "ESHUTDOWN"}
"""Errors as proto.md calls them, "Error values"."""

# Meta contexts and their flags
BASE_ALLOCATION = "base:allocation"
STATE_HOLE = 1
STATE_ZERO = 2
HEXZ_PARENT = "hexz:parent"
STATE_FROM_PARENT = 1
CONTEXT_IDS = {BASE_ALLOCATION: 1, HEXZ_PARENT: 2}

# Limits of this server
MAX_NAME = 4096
"""Longest export name or meta context query, bytes (proto.md, "String encoding")."""
MAX_OPTION = 64 << 10
"""Largest option payload that is looked at, bytes; a larger one is skipped and refused."""
MAX_SKIPPED = 32 << 20
"""Largest option or write payload that is read away, bytes; beyond it the connection is dropped."""
MAX_OPTIONS = 4096
"""Options that one client may send."""
MAX_QUERIES = 64
"""Meta context queries in one option."""
MAX_READ = 32 << 20
"""Largest read that is answered, bytes, as INFO_BLOCK_SIZE announces it."""
MAX_DESCRIPTORS = 8192
"""Most extents in one block status reply; the client asks again from where it ends."""
