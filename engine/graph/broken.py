"""The stand-in for a child that could not be opened: every access fails, so nothing reads as zeros by mistake."""

from __future__ import annotations

import errno
import os

from engine.graph.driver import Driver, Extent, Opening
from engine.qapi import Struct


class BrokenOptions(Struct):
    """None: such a node can't be asked for."""


class BrokenDriver(Driver):
    """Marks a broken link of a chain opened with OpenPolicy.tolerate_broken. Not part of the schema."""

    name = "x-blockmon-broken"
    Options = BrokenOptions

    def open(self, opening: Opening) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def exact_filename(self) -> str | None:
        return self.node.filename

    def read(self, offset: int, buffer: memoryview) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
