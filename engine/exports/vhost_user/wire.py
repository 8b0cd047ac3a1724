"""Numbers and layouts of vhost-user (QEMU's docs/interop/vhost-user) and of virtio-blk (virtio 1.1, 5.2)."""

from __future__ import annotations

import struct
from typing import Final

GET_FEATURES: Final = 1
SET_FEATURES: Final = 2
SET_OWNER: Final = 3
RESET_OWNER: Final = 4
SET_MEM_TABLE: Final = 5
SET_VRING_NUM: Final = 8
SET_VRING_ADDR: Final = 9
SET_VRING_BASE: Final = 10
GET_VRING_BASE: Final = 11
SET_VRING_KICK: Final = 12
SET_VRING_CALL: Final = 13
SET_VRING_ERR: Final = 14
GET_PROTOCOL_FEATURES: Final = 15
SET_PROTOCOL_FEATURES: Final = 16
GET_QUEUE_NUM: Final = 17
SET_VRING_ENABLE: Final = 18
GET_CONFIG: Final = 24
SET_CONFIG: Final = 25

VERSION: Final = 1
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3
NO_FD: Final = 1 << 8
"""In the payload of SET_VRING_KICK and its like: there is no descriptor."""
INDEX_MASK: Final = 0xFF

HEADER: Final = struct.Struct("=III")
"""Request, flags, bytes of payload."""
U64: Final = struct.Struct("=Q")
VRING_STATE: Final = struct.Struct("=II")
"""Queue, number."""
VRING_ADDR: Final = struct.Struct("=IIQQQQ")
"""Queue, flags, addresses (of the other process) of descriptors, used ring, available ring; log."""
MEM_TABLE: Final = struct.Struct("=II")
"""How many regions, padding."""
REGION: Final = struct.Struct("=QQQQ")
"""Guest address, size, address in the other process, offset in the file."""
CONFIG: Final = struct.Struct("=III")
"""Offset, size, flags; the bytes follow."""
MAX_REGIONS: Final = 8
MAX_PAYLOAD: Final = 4096

# Protocol features, as numbers of bits.
PROTOCOL_MQ: Final = 0
PROTOCOL_REPLY_ACK: Final = 3
PROTOCOL_CONFIG: Final = 9

# Features of the device and its rings, as numbers of bits.
BLK_SEG_MAX: Final = 2
BLK_RO: Final = 5
BLK_BLK_SIZE: Final = 6
BLK_FLUSH: Final = 9
BLK_TOPOLOGY: Final = 10
BLK_CONFIG_WCE: Final = 11
BLK_MQ: Final = 12
BLK_DISCARD: Final = 13
BLK_WRITE_ZEROES: Final = 14
RING_INDIRECT_DESC: Final = 28
RING_EVENT_IDX: Final = 29
PROTOCOL_FEATURES: Final = 30
VERSION_1: Final = 32

BLK_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
"""Capacity in sectors, size_max, seg_max, cylinders, heads, sectors, block size, physical exponent, alignment offset,
min_io_size, opt_io_size, write cache, padding, queues, discard: sectors, segments, alignment; zeros: sectors, segments,
may unmap."""
WCE_OFFSET: Final = 32
"""Where the write cache's byte is in it."""

# Requests of virtio-blk.
BLK_IN: Final = 0
BLK_OUT: Final = 1
BLK_FLUSH_REQUEST: Final = 4
BLK_GET_ID: Final = 8
BLK_DISCARD_REQUEST: Final = 11
BLK_WRITE_ZEROES_REQUEST: Final = 13
BLK_HEAD: Final = struct.Struct("<IIQ")
"""Kind, priority, sector."""
BLK_RANGE: Final = struct.Struct("<QII")
"""Sector, number of sectors, flags (1: unmap) of discards and zeros."""
ID_BYTES: Final = 20

STATUS_OK: Final = 0
STATUS_IOERR: Final = 1
STATUS_UNSUPP: Final = 2

# Split virtqueues.
DESC: Final = struct.Struct("<QIHH")
"""Guest address, length, flags, next."""
DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
USED: Final = struct.Struct("<II")
"""First descriptor of the request, bytes written."""
NO_INTERRUPT: Final = 1
