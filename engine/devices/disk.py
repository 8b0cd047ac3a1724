"""The disk, CD or floppy drive of a guest: the guest's requests, the error policy and the tray."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.devices.events import BlockIoError, DeviceTrayMoved
from engine.graph.accounting import Kind
from engine.graph.backend import BeyondEnd, BlockBackend
from engine.graph.driver import WriteFlag
from engine.graph.permissions import Perm
from engine.jobs.types import BlockErrorAction, IoOperationType
from engine.throttle.group import unthrottled

if TYPE_CHECKING:
    from engine.devices.runstate import Execution
    from engine.engine import Engine

_FUA = int(WriteFlag.FUA)
_MAY_UNMAP = int(WriteFlag.MAY_UNMAP)
_MERGE_LIMIT = 32
"""Requests that virtio-blk makes one of at most."""
_GONE = (errno.ENOMEDIUM, errno.ESHUTDOWN)
"""Errors that say that there is nothing to do I/O on; no policy is asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """One of several requests that a guest submits together. buffer: filled by a read, written by a write."""

    operation: Literal["read", "write"]
    offset: int
    buffer: memoryview


@dataclass(frozen=True, slots=True)
class Traits:
    """What kind of drive it is.

    removable: the medium comes and goes. tray: it has one. writable: False for CDs. resizable: a change of the size
    may come from outside. stops: errors may stop the guests (all but floppy drives). merges: neighbouring requests
    that come together are made one. sector: bytes that every request is a multiple of.
    """

    removable: bool = False
    tray: bool = False
    writable: bool = True
    resizable: bool = False
    stops: bool = True
    merges: bool = False
    sector: int = 512


class Disk:
    """What a guest sees of a BlockBackend. Requests (read, write, …) come from any thread; the rest is control plane.

    A request returns when it is done, perhaps after the guests were stopped and resumed; OSError is what the guest
    is told. While the guests are stopped requests wait.
    """

    def __init__(
        self, engine: Engine, backend: BlockBackend, traits: Traits, *, label: str, title: str, share_rw: bool
    ) -> None:
        """label: of the device that does the work; title: of the one it is a part of, often the same."""
        self.label = label
        self.title = title
        self.backend = backend
        self.traits = traits
        self.closed = False
        self.eject_requested = False
        self.tray_open = False
        self.medium_locked = False
        self.on_close: list[Callable[[], None]] = []
        self._engine = engine
        self._execution: Execution = engine.machine.execution
        self._share_rw = share_rw
        self._mask = traits.sector - 1
        self._resets = 0
        self._active: list[None] = []
        """One element for each request under way; appending and popping need no lock."""
        backend.device = self
        backend.io_status_enabled = traits.stops
        backend.io_status = "ok"

    @property
    def removable_media(self) -> bool:
        return self.traits.removable

    @property
    def has_tray(self) -> bool:
        return self.traits.tray

    @property
    def length(self) -> int:
        """Bytes of the medium. Errors: OSError ENOMEDIUM."""
        return self.backend.length

    # -- requests --------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*, as a guest's read does."""
        size = len(buffer)
        limiter = self.backend.limiter
        if limiter is not None:
            limiter.admit(False, size)
        active = self._active
        active.append(None)
        try:
            if not self._execution.running or self.tray_open or (offset | size) & self._mask:
                self._admit("rd", offset, size)
            started = time.monotonic_ns()
            try:
                self.backend.pass_read(offset, buffer)
            except OSError as exc:
                self._failed("rd", exc, started, lambda: self.backend.pass_read(offset, buffer))
            self.backend.stats.done("rd", size, started)
        finally:
            active.pop()
            if not self._execution.running:
                self._execution.wake()

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        """Write *data* at *offset*. fua: it is on stable storage when the request is done."""
        flags = _FUA if fua else 0
        self._carry("wr", offset, len(data), True, lambda: self.backend.pass_write(offset, data, flags))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make *length* bytes read as zeroes. unmap: the space may be given back."""
        flags = _MAY_UNMAP if unmap else 0
        self._carry("wr", offset, length, True, lambda: self.backend.pass_write_zeroes(offset, length, flags))

    def discard(self, offset: int, length: int) -> None:
        """Say that the content of *length* bytes does not matter any more."""
        self._carry("unmap", offset, length, False, lambda: self.backend.do_discard(offset, length))

    def flush(self) -> None:
        """Return when what was written is on stable storage."""
        self._carry("flush", 0, 0, False, self.backend.do_flush)

    def submit(self, requests: Sequence[Request]) -> list[OSError | None]:
        """Carry out requests submitted together; what became of each. Neighbours may be merged (virtio-blk)."""
        results: list[OSError | None] = []
        at = 0
        while at < len(requests):
            count = self._run_length(requests, at) if self.traits.merges else 1
            results += self._merged(requests[at : at + count])
            at += count
        return results

    # -- how requests go -------------------------------------------------------------------------------------

    def _carry(self, kind: Kind, offset: int, size: int, limited: bool, attempt: Callable[[], None]) -> None:
        """One request from its beginning to its end. limited: throttling applies."""
        limiter = self.backend.limiter
        if limited and limiter is not None:
            limiter.admit(kind != "rd", size)
        active = self._active
        active.append(None)
        try:
            if not self._execution.running or self.tray_open or (offset | size) & self._mask:
                self._admit(kind, offset, size)
            started = time.monotonic_ns()
            try:
                attempt()
            except OSError as exc:
                self._failed(kind, exc, started, attempt)
            self.backend.stats.done(kind, size, started)
        finally:
            active.pop()
            if not self._execution.running:
                self._execution.wake()

    @property
    def settled(self) -> bool:
        """Whether nothing of the guest is on its way. What waits at a closed door is not."""
        return not self._active or self.backend.door.closed

    def _pause(self, ticket: int | None, resets: int) -> None:
        """Wait until the guests run, the device goes or the machine is reset. A request that waits is not active."""

        def over() -> bool:
            return self.closed or self._resets != resets

        while True:
            self._active.pop()
            self._execution.wake()
            self._execution.wait(ticket, over)
            self._active.append(None)
            # They may have been stopped once more before the request was seen to be active.
            if self._execution.running or over():
                return
            ticket = None

    def _admit(self, kind: Kind, offset: int, length: int) -> None:
        if not self._execution.running:
            resets = self._resets
            self._pause(None, resets)
            if self._resets != resets:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        if self.tray_open:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        if (offset | length) & self._mask:
            self.backend.stats.invalid(kind)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _failed(self, kind: Kind, exc: OSError, started: int, attempt: Callable[[], None]) -> None:
        """Do what the policy says: return when the request counts as done after all, raise what the guest gets."""
        stats = self.backend.stats
        resets = self._resets
        while True:
            if self.closed:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN)) from exc
            if self._resets != resets:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)) from exc
            if isinstance(exc, BeyondEnd):
                stats.invalid(kind)
                raise exc
            if exc.errno == errno.EPERM and not self.backend.perm & Perm.WRITE and kind != "rd":
                # The guest was told that the disk is read-only; it is at fault.
                raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from exc
            if exc.errno in _GONE:
                raise exc
            action = self._action(kind, exc)
            if action is BlockErrorAction.IGNORE:
                self._announce(kind, exc, action)
                return
            if action is BlockErrorAction.REPORT:
                # Who hears of it may ask for the figures.
                stats.failed(kind, started)
                self._announce(kind, exc, action)
                raise exc
            if self.backend.io_status == "ok":
                self.backend.io_status = "nospace" if exc.errno == errno.ENOSPC else "failed"
            self._announce(kind, exc, action)
            self._pause(self._execution.request_stop(), resets)
            if self.closed or self._resets != resets:
                continue
            try:
                attempt()
            except OSError as again:
                exc = again
            else:
                return

    def _action(self, kind: Kind, exc: OSError) -> BlockErrorAction:
        policy = self.backend.on_read_error if kind == "rd" else self.backend.on_write_error
        if not self.traits.stops or policy == "report":
            return BlockErrorAction.REPORT
        if policy == "ignore":
            return BlockErrorAction.IGNORE
        if policy == "stop" or exc.errno == errno.ENOSPC:
            return BlockErrorAction.STOP
        return BlockErrorAction.REPORT

    def _announce(self, kind: Kind, exc: OSError, action: BlockErrorAction) -> None:
        if not self.traits.stops:
            return  # such a controller tells its guest only
        backend = self.backend
        root = backend.root
        self._engine.emit(
            BlockIoError(
                device=backend.name,
                node_name=root.child.name if root is not None else None,
                operation=IoOperationType.READ if kind == "rd" else IoOperationType.WRITE,
                action=action,
                nospace=exc.errno == errno.ENOSPC if backend.shows_io_status else None,
                reason=os.strerror(exc.errno) if exc.errno is not None else str(exc),
            )
        )

    def _run_length(self, requests: Sequence[Request], at: int) -> int:
        first = requests[at]
        end = first.offset + len(first.buffer)
        count = 1
        for other in requests[at + 1 : at + _MERGE_LIMIT]:
            if other.operation != first.operation or other.offset != end:
                break
            end += len(other.buffer)
            count += 1
        return count

    def _merged(self, requests: Sequence[Request]) -> list[OSError | None]:
        try:
            self._carry_together(requests)
        except OSError as exc:
            return [exc] * len(requests)
        return [None] * len(requests)

    def _carry_together(self, requests: Sequence[Request]) -> None:
        first = requests[0]
        reading = first.operation == "read"
        if len(requests) == 1:
            (self.read if reading else self.write)(first.offset, first.buffer)
            return
        kind: Kind = "rd" if reading else "wr"
        sizes = [len(request.buffer) for request in requests]
        if any((request.offset | len(request.buffer)) & self._mask for request in requests):
            self.backend.stats.invalid(kind)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        stats = self.backend.stats
        stats.merged(kind, len(requests) - 1)
        started = time.monotonic_ns()
        whole = memoryview(bytearray(sum(sizes)) if reading else b"".join(request.buffer for request in requests))
        transfer = self.backend.pass_read if reading else self.backend.pass_write
        self._carry(kind, first.offset, len(whole), True, lambda: transfer(first.offset, whole))
        # That was one request; the guest's were more.
        for _ in requests[1:]:
            stats.done(kind, 0, started)
        if reading:
            at = 0
            for request, size in zip(requests, sizes, strict=True):
                request.buffer[:] = whole[at : at + size]
                at += size

    # -- the tray --------------------------------------------------------------------------------------------

    def eject_request(self, force: bool) -> None:
        """Somebody pressed the button. force: the tray opens however the guest has locked it."""
        self.eject_requested = True
        if force:
            self.medium_locked = False

    def change_media(self, load: bool) -> None:
        """The medium (or the tray) was put in or goes. Errors: GenericError (permissions of a floppy's medium)."""
        if self.traits.tray:
            self.tray_open = not load
            self.eject_requested = False
        elif load:
            self.apply_permissions()
        else:
            self.backend.take(Perm.NONE, Perm.ALL)

    def guest_lock(self, locked: bool) -> None:
        """The guest allows or prevents the removal of the medium."""
        self.medium_locked = locked

    def guest_move_tray(self, opened: bool) -> None:
        """The guest opens or closes the tray. Errors: OSError EPERM when it has locked it itself."""
        if self.tray_open == opened:
            return
        if self.medium_locked and opened:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.tray_open = opened
        self.eject_requested = False
        self.announce_tray()

    def announce_tray(self) -> None:
        """Send the event about the tray as it is now."""
        self._engine.emit(DeviceTrayMoved(device=self.backend.name, id=self.label, tray_open=self.tray_open))

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def may_write(self) -> bool:
        """Whether the guest's disk is writable: by its kind, and by the medium in it or the last one."""
        root = self.backend.root
        read_only = root.child.read_only if root is not None else self.backend.root_state.read_only
        return self.traits.writable and not read_only

    def apply_permissions(self, *, empty: bool = False) -> None:
        """Take the permissions of the device. empty: no medium yet, so that any may come. Errors: GenericError."""
        perm = Perm.CONSISTENT_READ
        if self.may_write and not empty:
            perm |= Perm.WRITE
        shared = Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
        if self.traits.resizable:
            shared |= Perm.RESIZE
        if self._share_rw:
            shared |= Perm.WRITE
        self.backend.take(perm, shared)

    def reset(self) -> None:
        """The machine is reset: requests to be retried are forgotten, the tray is closed and unlocked."""
        self._resets += 1
        self._execution.wake()
        self.medium_locked = False
        self.tray_open = False

    def retire(self) -> None:
        """Whoever waits in a request fails from now on."""
        self.closed = True
        self._execution.wake()
        self.backend.door.retire()

    def close(self) -> None:
        """End the device; what is in flight is waited for."""
        self.retire()
        root = self.backend.root
        with unthrottled([root.child] if root is not None else [], self.backend.limiter):
            for callback in self.on_close:
                callback()
            door = self.backend.door
            door.close()
            door.wait_idle()
        self.backend.device = None
