"""BlockBackend: the user's side of an edge (device, export, job I/O, one-shot command)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine.graph.accounting import Accounting
from engine.graph.change import set_edge_permissions
from engine.graph.drain import Door
from engine.graph.driver import Extent, Prealloc, Status, WriteFlag
from engine.graph.permissions import Perm

if TYPE_CHECKING:
    from engine.graph.edge import Edge
    from engine.graph.node import Node
    from engine.objects.iothread import IOThread

_FUA = int(WriteFlag.FUA)
_BEYOND = int(Status.EOF | Status.ZERO)
_SECTOR = 512


class BeyondEnd(OSError):
    """A request that reaches beyond the end: refused, not tried."""


class Limiter(Protocol):
    """Makes requests wait for their turn (throttling)."""

    def admit(self, writing: bool, size: int) -> None:
        """Return when a request of *size* bytes may go. Called before the door, so a drain never waits for it."""

    def set_free(self) -> None:
        """Limit nothing from now on, and let what waits through, for a drain; nests."""

    def unset_free(self) -> None:
        """Undo one set_free()."""

    def leave(self) -> None:
        """The back end goes: limit nothing from now on, and let what waits through."""


class GuestDevice(Protocol):
    """The guest device that a back end serves, as media commands and queries see it."""

    @property
    def label(self) -> str:
        """The id of the device that does the work, or its path in the tree of devices when it has none."""

    @property
    def title(self) -> str:
        """The id of the device as it was added, or its path."""

    @property
    def removable_media(self) -> bool:
        """Whether the guest expects its medium to come and go."""

    @property
    def has_tray(self) -> bool:
        """Whether it has a tray (a floppy drive has none)."""

    @property
    def tray_open(self) -> bool:
        """Whether the tray is open now."""

    @property
    def medium_locked(self) -> bool:
        """Whether the guest has locked the tray."""

    def eject_request(self, force: bool) -> None:
        """Press the button of the tray; the guest may react."""

    def change_media(self, load: bool) -> None:
        """The medium was inserted (or the tray closed), or it goes. Errors: GenericError, only when loading."""


@dataclass(slots=True)
class RootState:
    """What the medium that was there last leaves to the next one. The first one is read-only, as in QEMU."""

    read_only: bool = True
    detect_zeroes: str = "off"
    direct: bool = False
    no_flush: bool = False


class BlockBackend:
    """A user of one node: permissions, a door that drain can close, accounting.

    kind: device, export, job or user (what the screen shows). name: device or monitor name, '' for none. Created and
    attached by the graph (``Graph.add_backend``); I/O methods run in any thread and raise OSError.
    on_read_error, on_write_error: what a guest device does about errors (report, ignore, enospc, stop).
    """

    def __init__(self, kind: str, name: str, perm: Perm, shared: Perm, *, description: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.perm = perm
        self.shared = shared
        self._may_write = bool(perm & (Perm.WRITE | Perm.WRITE_UNCHANGED))
        self.root: Edge | None = None
        self.door = Door()
        self.stats = Accounting()
        self.write_cache = True
        self.model = ""
        self.device: GuestDevice | None = None
        self.root_state = RootState()
        self.limiter: Limiter | None = None
        self._drains = 0
        self.fixed_iothread = False
        """The user can't follow its node to another iothread (a guest device never can)."""
        self.iothread: IOThread | None = None
        """Where the guest device wants its node."""
        self.on_read_error = "report"
        self.on_write_error = "enospc"
        self.io_status_enabled = False
        self.io_status = "ok"
        self._description = description
        self.resized = False
        self.served = ""
        """Id of the export that it serves."""
        self.on_eject: list[Callable[[], None]] = []
        """Called when the medium goes: what depends on it has to end."""

    @property
    def stays_in_iothread(self) -> bool:
        """Whether it can't follow its node to another iothread."""
        return self.fixed_iothread or self.device is not None

    def take(self, perm: Perm, shared: Perm) -> None:
        """Change the permissions taken and shared. Control plane. Errors: GenericError, nothing changed then."""
        if self.root is not None:
            set_edge_permissions(self.root, perm, shared)
        self.perm, self.shared = perm, shared
        self._may_write = bool(perm & (Perm.WRITE | Perm.WRITE_UNCHANGED))

    @property
    def shows_io_status(self) -> bool:
        """Whether an error can stop the guest, so that io_status means something (as QEMU has it)."""
        return self.io_status_enabled and (self.on_write_error in ("enospc", "stop") or self.on_read_error == "stop")

    def remember_root(self) -> None:
        """Keep what the next medium inherits from the present one."""
        if self.root is not None:
            node = self.root.child
            self.root_state = RootState(node.read_only, node.detect_zeroes, node.cache_direct, node.cache_no_flush)

    # -- as a parent -----------------------------------------------------------------------------------------

    @property
    def parent_kind(self) -> str:
        return self.kind

    @property
    def parent_name(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        """The name, or else that of the guest device it serves, as messages have it."""
        if self.name or self.device is None:
            return self.name
        return self.device.label

    @property
    def title(self) -> str:
        """What people call it: the name, or else the id of the guest device or export it serves."""
        if self.name or self.device is None:
            return self.name or self.served
        return self.device.title

    @property
    def stays_at_node(self) -> bool:
        return self.kind == "job"

    def describe_edge(self, edge: Edge) -> str:
        if self._description is not None:
            return self._description
        label = self.label
        return f"block device '{label}'" if label else "an unnamed block device"

    def drained_begin(self) -> None:
        self.door.close()
        self._drains += 1
        if self.limiter is not None:
            self.limiter.set_free()

    def drained_wait(self) -> None:
        self.door.wait_idle()

    def drained_end(self) -> None:
        if self.limiter is not None:
            self.limiter.unset_free()
        self._drains -= 1
        self.door.open()

    def set_limiter(self, limiter: Limiter | None) -> None:
        """Limit requests by *limiter* from now on; who waits at the old one goes through. Control plane."""
        old, self.limiter = self.limiter, limiter
        if limiter is not None:
            for _ in range(self._drains):
                limiter.set_free()
        if old is not None:
            old.leave()

    # -- data plane ------------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The node in use. Errors: OSError ENOMEDIUM when there is none."""
        root = self.root
        if root is None:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        return root.child

    @property
    def length(self) -> int:
        """In bytes. A disk consists of sectors: the last one counts as a whole."""
        node = self.node
        if node.ejected:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        return -(-node.length // _SECTOR) * _SECTOR

    # Three ways: read() waits for the limits (throttling) and counts, do_read() only waits, pass_read() does neither. A
    # guest device uses the last, as it waits by itself and only it knows what a failed request comes to.

    def _check(self, offset: int, length: int) -> Node:
        root = self.root
        if root is None:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        node = root.child
        if offset < 0 or length < 0 or offset + length > node.length:
            # Most often it is not, and then the sum is saved that length() does.
            if offset < 0 or length < 0 or offset + length > -(-node.length // _SECTOR) * _SECTOR:
                raise BeyondEnd(errno.EIO, os.strerror(errno.EIO))
        return node

    def pass_read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*; the whole range must lie inside the node."""
        with self.door:
            self._check(offset, len(buffer)).read(offset, buffer)

    def pass_write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        with self.door:
            node = self._check(offset, len(data))
            # A user without the permission must not get through: the permission system promised the others as much.
            if not self._may_write:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            node.write(offset, data, flags if self.write_cache else flags | _FUA)

    def pass_write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        with self.door:
            node = self._check(offset, length)
            if not self._may_write:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            node.write_zeroes(offset, length, flags if self.write_cache else flags | _FUA)

    def do_read(self, offset: int, buffer: memoryview) -> None:
        if self.limiter is not None:
            self.limiter.admit(False, len(buffer))
        with self.door:
            self._check(offset, len(buffer)).read(offset, buffer)

    def do_write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if self.limiter is not None:
            self.limiter.admit(True, len(data))
        with self.door:
            node = self._check(offset, len(data))
            if not self._may_write:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            node.write(offset, data, flags if self.write_cache else flags | _FUA)

    def do_write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if self.limiter is not None:
            self.limiter.admit(True, length)
        self.pass_write_zeroes(offset, length, flags)

    def do_discard(self, offset: int, length: int) -> None:
        with self.door:
            node = self._check(offset, length)
            if not self._may_write:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            node.discard(offset, length)

    def do_flush(self) -> None:
        with self.door:
            self.node.flush()

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*; the whole range must lie inside the node."""
        started = time.monotonic_ns()
        try:
            self.do_read(offset, buffer)
        except OSError:
            self.stats.failed("rd", started)
            raise
        stats = self.stats
        stats.last_access_ns = now = time.monotonic_ns()
        stats.rd_total_time_ns += now - started
        stats.rd_operations += 1
        stats.rd_bytes += len(buffer)
        if stats.watched:
            stats.observe("rd", now - started)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        started = time.monotonic_ns()
        try:
            self.do_write(offset, data, flags)
        except OSError:
            self.stats.failed("wr", started)
            raise
        stats = self.stats
        stats.last_access_ns = now = time.monotonic_ns()
        stats.wr_total_time_ns += now - started
        stats.wr_operations += 1
        stats.wr_bytes += len(data)
        if stats.watched:
            stats.observe("wr", now - started)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        started = time.monotonic_ns()
        try:
            self.do_write_zeroes(offset, length, flags)
        except OSError:
            self.stats.failed("wr", started)
            raise
        self.stats.done("wr", length, started)

    def discard(self, offset: int, length: int) -> None:
        started = time.monotonic_ns()
        try:
            self.do_discard(offset, length)
        except OSError:
            self.stats.failed("unmap", started)
            raise
        self.stats.done("unmap", length, started)

    def flush(self) -> None:
        started = time.monotonic_ns()
        try:
            self.do_flush()
        except OSError:
            self.stats.failed("flush", started)
            raise
        self.stats.done("flush", 0, started)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        with self.door:
            node = self.node
            if offset >= node.length:
                return Extent(length, _BEYOND)
            return node.block_status(offset, length, want_zero)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        with self.door:
            self.node.truncate(length, exact=exact, prealloc=prealloc)

    def account_write(self, size: int, started: int) -> None:
        """Count a write of *size* bytes that began at *started* (nanoseconds, monotonic), however it was done."""
        self.stats.done("wr", size, started)
