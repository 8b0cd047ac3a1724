"""blkdebug: makes requests fail, holds them up, or limits them, as its rules say; for tests of what is above it."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

from engine.drivers.filter.blkdebug_rules import (
    BlkdebugEvent,
    BlkdebugIOType,
    ErrorRule,
    Rules,
    config_rules,
    error_of,
    option_rules,
)
from engine.errors import GenericError
from engine.graph.drain import awaited
from engine.graph.driver import Extent, FilterDriver, Limits, Opening, ReopenState, Status, WriteFlag, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevRef, BlockPermission
from engine.graph.permissions import Perm, Role
from engine.qapi import Int, Int32, Struct, Wire

_PASS_ON = int(Status.RAW | Status.OFFSET_VALID)
_NO_FALLBACK = int(WriteFlag.NO_FALLBACK)
_INT_MAX = (1 << 31) - 1
_MAX_BOUNCE = 16 << 20
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP)
_PERMS = dict(zip(BlockPermission, (Perm.CONSISTENT_READ, Perm.WRITE, Perm.WRITE_UNCHANGED, Perm.RESIZE), strict=True))


class BlkdebugInjectErrorOptions(Struct):
    """Requests of *iotype* (all but block-status when absent) that touch *sector* fail with *errno*, EIO by default,
    from the time *event* comes in *state* (0: any). once: one request only. immediately: without giving others a turn.
    """

    event: BlkdebugEvent
    state: Int | None = None
    iotype: BlkdebugIOType | None = None
    errno: Int | None = None
    sector: Int | None = None
    once: bool | None = None
    immediately: bool | None = None


class BlkdebugSetStateOptions(Struct):
    """*event* in *state* (0: any) makes *new_state* the state. The first state is 1."""

    event: BlkdebugEvent
    state: Int | None = None
    new_state: Annotated[Int, Wire("new_state")]


class BlockdevOptionsBlkdebug(Struct):
    """image: what requests go to. config: file with rules. inject_error, set_state: more rules. The limits are bytes,
    0 for none. take_child_perms, unshare_child_perms: permissions on image besides those needed, or denied to others.
    """

    image: BlockdevRef
    config: str | None = None
    align: Int | None = None
    max_transfer: Int32 | None = None
    opt_write_zero: Int32 | None = None
    max_write_zero: Int32 | None = None
    opt_discard: Int32 | None = None
    max_discard: Int32 | None = None
    inject_error: list[BlkdebugInjectErrorOptions] | None = None
    set_state: list[BlkdebugSetStateOptions] | None = None
    take_child_perms: list[BlockPermission] | None = None
    unshare_child_perms: list[BlockPermission] | None = None


def _permissions(names: list[BlockPermission] | None) -> Perm:
    perm = Perm.NONE
    for name in names or []:
        perm |= _PERMS[name]
    return perm


def _pieces(offset: int, length: int, most: int) -> list[tuple[int, int]]:
    """The range as (offset, length) runs of at most *most* bytes; 0: no limit."""
    step = most or length or 1
    return [(at, min(step, offset + length - at)) for at in range(offset, offset + length, step)]


def _pieces_aligned(offset: int, length: int, align: int, most: int) -> Iterator[tuple[int, int]]:
    """As _pieces(), cut also where what is aligned begins and ends."""
    end = offset + length
    while offset < end:
        size = end - offset
        if offset % align:
            size = min(size, align - offset % align)
        elif size > align:
            size -= end % align
        size = min(size, most or size)
        yield offset, size
        offset += size


@register
class BlkdebugDriver(FilterDriver):
    """The blkdebug filter.

    Unlike the rules, the limits are kept here and not by the node: each piece of a request meets the rules.
    """

    name = "blkdebug"
    Options = BlockdevOptionsBlkdebug
    is_protocol = True
    protocol_prefixes = ("blkdebug",)
    child_options = frozenset({"image"})
    strong_options = (
        "config",
        "inject-error.",
        "set-state.",
        "align",
        "max-transfer",
        "opt-write-zero",
        "max-write-zero",
        "opt-discard",
        "max-discard",
    )

    image: Edge

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        if not filename.startswith("blkdebug:"):
            return {"image": {"filename": filename}}
        config, colon, image = filename.removeprefix("blkdebug:").partition(":")
        if not colon:
            raise GenericError("blkdebug requires both config file and image path")
        options: dict[str, Any] = {"image": {"filename": image}}
        return options | ({"config": config} if config else {})

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsBlkdebug = opening.options
        self._config = options.config
        self.rules = Rules(self._may_hold)
        errors, states = config_rules(options.config) if options.config is not None else ([], [])
        for rule in (*errors, *option_rules(options.inject_error, None)):
            self.rules.add(rule)
        for state in (*states, *option_rules(None, options.set_state)):
            self.rules.add(state)
        self._taken = _permissions(options.take_child_perms)
        self._unshared = _permissions(options.unshare_child_perms)
        image = opening.open_child("image", Role.FILTERED | Role.PRIMARY)
        assert image is not None
        self.image = image
        self._set_limits(options)
        self.rules.announce("none")

    def _set_limits(self, options: BlockdevOptionsBlkdebug) -> None:
        align = self._align = self._limit("align", options.align, 0)
        align = max(align, self.image.child.limits.request_alignment)
        self._max_transfer = self._limit("max-transfer", options.max_transfer, align)
        self._opt_zero = self._limit("opt-write-zero", options.opt_write_zero, align)
        self._max_zero = self._limit("max-write-zero", options.max_write_zero, max(self._opt_zero, align))
        self._opt_discard = self._limit("opt-discard", options.opt_discard, align)
        self._max_discard = self._limit("max-discard", options.max_discard, max(self._opt_discard, align))

    def _limit(self, name: str, value: int | None, align: int) -> int:
        """The limit called *name*; multiple of *align*, or a power of two where that is 0."""
        value = value or 0
        if value < 0:
            raise GenericError(f"Parameter '{name}' expects a non-negative number below 2^64")
        if value >= _INT_MAX or (value % align if align else value & (value - 1)):
            raise GenericError(f"Cannot meet constraints with {name} {value}")
        return value

    def close(self) -> None:
        self.rules.close()

    @property
    def supports_fua(self) -> bool:  # type: ignore[override]
        return self.image.child.driver.supports_fua

    def refresh_limits(self) -> None:
        below = self.image.child.limits
        largest = self._max_transfer or below.max_transfer
        self.limits = Limits(self._align or 1, largest, below.opt_transfer, 0, self._opt_discard)

    @property
    def own_alignment(self) -> int:
        return self.limits.request_alignment

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        taken, given = super().child_permissions(edge, perm, shared, writable=writable)
        return taken | self._taken, given & ~self._unshared

    def reopen_prepare(self, state: ReopenState) -> None:
        """The rules stay as they are, and so does what they have come to."""

    def exact_filename(self) -> str | None:
        below = self.image.child.exact_filename
        if not below or any(key in self.node.full_options for key in _UNSPEAKABLE):
            return ""
        if any(key.startswith(("inject-error.", "set-state.")) for key in self.node.full_options):
            return ""
        return f"blkdebug:{self._config or ''}:{below}"

    def allocated_size(self) -> int | None:
        return None

    # -- rules -----------------------------------------------------------------------------------------------

    def debug_event(self, event: str) -> None:
        self.rules.announce(event)

    def _may_hold(self) -> bool:
        """Whether nobody waits for the requests of this node to end: who could let them go then?"""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return not awaited(self.node, self.rules.wake)
        # This is the control plane itself, at work on an image.
        return False

    def _passes(self, kind: str, offset: int, length: int) -> bool:
        """Whether a request is to be done. One that "fails" with a negative errno ends well, as in QEMU, but undone.

        Errors: OSError as the rules have it.
        """
        rule: ErrorRule | None = self.rules.failure(kind, offset, length)
        if rule is None:
            return True
        if not rule.immediately:
            time.sleep(0)
        if rule.error > 0:
            raise error_of(rule)
        return False

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        for at, size in _pieces(offset, len(buffer), self.limits.max_transfer):
            if self._passes("read", at, size):
                self.image.read(at, buffer[at - offset : at - offset + size])

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.rules.announce("pwritev")
        try:
            self._write(offset, data, flags)
        finally:
            self.rules.announce("pwritev_done")

    def _write(self, offset: int, data: memoryview, flags: int) -> None:
        for at, size in _pieces(offset, len(data), self.limits.max_transfer):
            if self._passes("write", at, size):
                self.image.write(at, data[at - offset : at - offset + size], flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.rules.announce("pwritev_zero")
        try:
            align = max(self._opt_zero, self._align, 1)
            for at, size in _pieces_aligned(offset, length, align, self._max_zero):
                self._zero_piece(at, size, align, flags)
        finally:
            self.rules.announce("pwritev_done")

    def _zero_piece(self, offset: int, length: int, align: int, flags: int) -> None:
        if length >= align:
            try:
                if self._passes("write-zeroes", offset, length):
                    self.image.write_zeroes(offset, length, flags)
                return
            except OSError as exc:
                if exc.errno not in _UNSUPPORTED:
                    raise
        if flags & _NO_FALLBACK:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        for at, size in _pieces(offset, length, min(self.limits.max_transfer or _MAX_BOUNCE, _MAX_BOUNCE)):
            self._write(at, memoryview(bytes(size)), 0)

    def discard(self, offset: int, length: int) -> None:
        # Parts of what is discarded at a time meet the rules, but go no further.
        whole = max(self._opt_discard, self._align, 1)
        for at, size in _pieces_aligned(offset, length, whole, self._max_discard):
            if self._passes("discard", at, size) and size >= self._opt_discard:
                self.image.discard(at, size)

    def flush(self) -> None:
        if self._passes("flush", 0, 0):
            self.image.flush()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        self._passes("block-status", offset, length)
        return Extent(length, _PASS_ON, self.image.child, offset)


_UNSPEAKABLE = ("align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard")
"""Options that a plain file name cannot tell of."""
