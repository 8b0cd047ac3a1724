"""Block drivers. Importing this package makes every driver known; a new one is a file and a line here."""

from engine.drivers.filter import (  # noqa: F401
    blkdebug,
    blklogwrites,
    blkreplay,
    blkverify,
    compress,
    copy_before_write,
    copy_on_read,
    internal,
    preallocate,
    quorum,
    snapshot_access,
    throttle,
)
from engine.drivers.format import qcow2, raw  # noqa: F401
from engine.drivers.protocol import file, null  # noqa: F401
