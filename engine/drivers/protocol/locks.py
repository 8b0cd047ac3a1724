"""QEMU's image locks: open-file-description locks on single bytes of the image file.

Byte 100 + i read-locked: somebody holds permission i. Byte 200 + i read-locked: somebody does not share permission i.
Source: QEMU's block/file-posix.c (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE) and docs/devel/block locking notes.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from engine.errors import GenericError
from engine.graph.permissions import PERM_NAMES, Perm

_PERM_BASE = 100
_SHARED_BASE = 200
_GETLK, _SETLK = 36, 37
"""F_OFD_GETLK and F_OFD_SETLK of Linux, which the fcntl module has no names for."""
_FLOCK = struct.Struct("hhqqi4x")


def _flock(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, 0, start, length, 0)


def ofd_locks_work(fd: int) -> bool:
    """Whether the file behind *fd* takes open-file-description locks."""
    try:
        fcntl.fcntl(fd, _GETLK, _flock(fcntl.F_WRLCK, 0, 0))
    except OSError:
        return False
    return True


class ImageLock:
    """The locks one file description holds; perm and shared are what the bytes locked now say."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.perm = Perm.NONE
        self.shared = Perm.ALL

    def prepare(self, perm: Perm, shared: Perm) -> None:
        """Lock for old and new permissions together and test for conflicts. Errors: GenericError, locks as before."""
        if not perm & ~self.perm and not self.shared & ~shared:
            return
        old = (self.perm, self.shared)
        try:
            self._apply(self.perm | perm, self.shared & shared)
            self._test(perm, shared)
        except BaseException:
            self._release(*old)
            raise

    def commit(self, perm: Perm, shared: Perm) -> None:
        """Let go of what the new permissions no longer need."""
        self._apply_quietly(perm, shared)
        self._release(perm, shared)

    def move_to(self, fd: int) -> None:
        """Hold the same locks on another description of the file; the old one is about to be closed."""
        perm, shared = self.perm, self.shared
        self.fd, self.perm, self.shared = fd, Perm.NONE, Perm.ALL
        self._apply_quietly(perm, shared)

    def _apply(self, perm: Perm, shared: Perm) -> None:
        for bit, _, _ in PERM_NAMES:
            if perm & bit and not self.perm & bit:
                self._set(_PERM_BASE + _index(bit), fcntl.F_RDLCK)
                self.perm |= bit
            if not shared & bit and self.shared & bit:
                self._set(_SHARED_BASE + _index(bit), fcntl.F_RDLCK)
                self.shared &= ~bit

    def _apply_quietly(self, perm: Perm, shared: Perm) -> None:
        # A failure here leaves us unlocked rather than stopped: the conflict was tested when the lock was prepared.
        try:
            self._apply(perm, shared)
        except GenericError:
            return

    def _release(self, perm: Perm, shared: Perm) -> None:
        for bit, _, _ in PERM_NAMES:
            if self.perm & bit and not perm & bit:
                self._set(_PERM_BASE + _index(bit), fcntl.F_UNLCK)
                self.perm &= ~bit
            if not self.shared & bit and shared & bit:
                self._set(_SHARED_BASE + _index(bit), fcntl.F_UNLCK)
                self.shared |= bit

    def _set(self, byte: int, kind: int) -> None:
        try:
            fcntl.fcntl(self.fd, _SETLK, _flock(kind, byte, 1))
        except OSError as exc:
            if kind == fcntl.F_UNLCK:
                return
            raise GenericError(f"Failed to lock byte {byte}") from exc

    def _test(self, perm: Perm, shared: Perm) -> None:
        for bit, _, text in PERM_NAMES:
            if perm & bit and self._locked_elsewhere(_SHARED_BASE + _index(bit)):
                raise GenericError(f'Failed to get "{text}" lock')
            if not shared & bit and self._locked_elsewhere(_PERM_BASE + _index(bit)):
                raise GenericError(f'Failed to get shared "{text}" lock')

    def _locked_elsewhere(self, byte: int) -> bool:
        try:
            answer = fcntl.fcntl(self.fd, _GETLK, _flock(fcntl.F_WRLCK, byte, 1))
        except OSError as exc:
            return exc.errno in (errno.EAGAIN, errno.EACCES)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _index(bit: Perm) -> int:
    return int(bit).bit_length() - 1
