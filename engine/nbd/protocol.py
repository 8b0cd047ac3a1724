"""Numbers and layouts of the NBD protocol (doc/proto.md of the NBD project). All integers are big-endian."""

from __future__ import annotations

import struct
from typing import Final

# Handshake.
MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
REPLY_MAGIC: Final = 0x0003E889045565A9
FLAG_FIXED_NEWSTYLE: Final = 1
FLAG_NO_ZEROES: Final = 2

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPT_EXTENDED_HEADERS: Final = 11

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 1 << 31 | 1
REP_ERR_POLICY: Final = 1 << 31 | 2
REP_ERR_INVALID: Final = 1 << 31 | 3
REP_ERR_PLATFORM: Final = 1 << 31 | 4
REP_ERR_TLS_REQD: Final = 1 << 31 | 5
REP_ERR_UNKNOWN: Final = 1 << 31 | 6
REP_ERR_SHUTDOWN: Final = 1 << 31 | 7
REP_ERR_BLOCK_SIZE_REQD: Final = 1 << 31 | 8
REP_ERR_TOO_BIG: Final = 1 << 31 | 9
REP_ERR_EXT_HEADER_REQD: Final = 1 << 31 | 10

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# What an export can do.
HAS_FLAGS: Final = 1 << 0
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_FUA: Final = 1 << 3
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
SEND_DF: Final = 1 << 7
CAN_MULTI_CONN: Final = 1 << 8
SEND_CACHE: Final = 1 << 10
SEND_FAST_ZERO: Final = 1 << 11
BLOCK_STAT_PAYLOAD: Final = 1 << 12

# Transmission.
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF
EXT_REQUEST_MAGIC: Final = 0x21E41C71
EXT_CHUNK_MAGIC: Final = 0x6E8A278C

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

FLAG_FUA: Final = 1 << 0
FLAG_NO_HOLE: Final = 1 << 1
FLAG_DF: Final = 1 << 2
FLAG_REQ_ONE: Final = 1 << 3
FLAG_FAST_ZERO: Final = 1 << 4
FLAG_PAYLOAD_LEN: Final = 1 << 5

CHUNK_DONE: Final = 1
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_OFFSET_HOLE: Final = 2
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_BLOCK_STATUS_EXT: Final = 6
CHUNK_ERROR: Final = 1 << 15 | 1

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
STATE_DIRTY: Final = 1

MAX_STRING: Final = 4096
"""Longest name or description, in bytes."""
MAX_PAYLOAD: Final = 32 << 20
"""Longest read or write, and longest option, in bytes."""
MAX_EXTENTS: Final = (1 << 20) // 8
"""Most extents in one answer to BLOCK_STATUS."""

REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, flags, type, cookie, offset, length."""
SIMPLE: Final = struct.Struct(">IIQ")
"""Magic, error, cookie."""
CHUNK: Final = struct.Struct(">IHHQI")
"""Magic, flags, type, cookie, length."""
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
"""A chunk's head and the offset of the data behind it."""
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")
"""A chunk's head, and offset and length of the hole."""
ERROR_CHUNK: Final = struct.Struct(">IHHQIIH")
"""A chunk's head, error, length of the message behind it."""
STATUS_CHUNK: Final = struct.Struct(">IHHQII")
"""A chunk's head and the id of the context; the extents are behind it."""
EXT_REQUEST: Final = struct.Struct(">IHHQQQ")
"""Magic, flags, type, cookie, offset, length: of the effect, or of the payload behind it (FLAG_PAYLOAD_LEN)."""
EXT_CHUNK: Final = struct.Struct(">IHHQQQ")
"""Magic, flags, type, cookie, offset of the request, length of the payload behind it."""
OPTION: Final = struct.Struct(">8sII")
"""Magic, option, length."""
REPLY: Final = struct.Struct(">QIII")
"""Magic, option, type, length."""
