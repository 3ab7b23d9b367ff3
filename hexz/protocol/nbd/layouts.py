"""The layouts of NBD messages that its server and its client both read and write, all big-endian (proto.md)."""

from __future__ import annotations

import struct

__all__ = ["CHUNK", "ERROR", "EXPORT", "GREETING", "HOLE", "OPTION", "OPTION_REPLY", "U32", "U64"]

GREETING = struct.Struct(">8s8sH")
"""the two magics of a server, handshake flags"""
OPTION = struct.Struct(">8sII")
"""magic, option, length of what follows"""
OPTION_REPLY = struct.Struct(">QIII")
"""magic, option, type, length of what follows"""
EXPORT = struct.Struct(">QH")
"""size of the export, transmission flags"""
CHUNK = struct.Struct(">IHHQI")
"""magic, chunk flags, type, cookie, length of what follows"""
HOLE = struct.Struct(">QI")
"""offset, length of a hole"""
ERROR = struct.Struct(">IH")
"""error, length of the message"""
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
