"""Sets of file descriptors, which block drivers open as /dev/fdset/N instead of a file of the host.

Behaviour and error texts of QEMU 7.2's add-fd, remove-fd and query-fdsets, sampled from qemu-system-x86_64.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import GenericError, os_error_text

PREFIX = "/dev/fdset/"
_ID_MAX = (1 << 63) - 1
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT
"""Flags of an open file that may be changed later; the access mode is not one of them."""


@dataclass(slots=True)
class PassedFd:
    """One descriptor of a set. removed: it goes as soon as the guests run."""

    fd: int
    opaque: str | None
    removed: bool = False


@dataclass(slots=True)
class FdSet:
    """Descriptors of the same file, as a rule for different access modes. opened: what nodes have open from it."""

    id: int
    fds: list[PassedFd] = field(default_factory=list)
    opened: set[int] = field(default_factory=set)


class FdSets:
    """The sets of one engine. Control plane only.

    running: whether the guests run; descriptors only go while they do. monitors: open QMP connections, and front ends
    in the same process: with the last of them go the descriptors that no node has opened.
    """

    def __init__(self) -> None:
        self.running: Callable[[], bool] = lambda: True
        self.monitors = 0
        self._sets: dict[int, FdSet] = {}

    @property
    def sets(self) -> list[FdSet]:
        """All sets, the highest number first."""
        return [self._sets[number] for number in sorted(self._sets, reverse=True)]

    def add(self, fd: int, number: int | None, opaque: str | None) -> int:
        """Take *fd* over into the set *number*, or the lowest that is free; returns the set's. Errors: GenericError."""
        if number is None:
            number = 0
            while number in self._sets:
                number += 1
        elif number < 0:
            raise GenericError("Parameter 'fdset-id' expects a non-negative value")
        self._sets.setdefault(number, FdSet(number)).fds.append(PassedFd(fd, opaque))
        return number

    def remove(self, number: int, fd: int | None) -> None:
        """Remove one descriptor of a set, or all. What nodes have opened stays open. Errors: GenericError."""
        found = self._sets.get(number)
        chosen = [] if found is None else [each for each in found.fds if fd is None or each.fd == fd]
        if found is None or (fd is not None and not chosen):
            name = f"fdset-id:{number}" if fd is None else f"fdset-id:{number}, fd:{fd}"
            raise GenericError(f"File descriptor named '{name}' not found")
        for each in chosen:
            each.removed = True
        self._clean(found)

    def open(self, path: str, flags: int) -> int:
        """Open the set that *path* names, by a copy of its newest descriptor with that access mode.

        The copy shares the position, and the flags, with all others. Errors: GenericError.
        """
        text = path.removeprefix(PREFIX)
        if not text.isascii() or not text.isdecimal() or int(text) > _ID_MAX:
            raise GenericError(f"Could not parse fdset {path}")
        shown = flags & ~(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fd = self._copy(int(text), flags)
        except OSError as exc:
            raise GenericError(f"Could not dup FD for {path} flags {shown:x}: {os_error_text(exc)}") from exc
        self._sets[int(text)].opened.add(fd)
        return fd

    def _copy(self, number: int, flags: int) -> int:
        found = self._sets.get(number)
        if found is None:
            raise OSError(errno.ENOENT, "")
        for each in reversed(found.fds):
            has = fcntl.fcntl(each.fd, fcntl.F_GETFL)
            if has & os.O_ACCMODE == flags & os.O_ACCMODE:
                fd = fcntl.fcntl(each.fd, fcntl.F_DUPFD_CLOEXEC, 0)
                try:
                    fcntl.fcntl(fd, fcntl.F_SETFL, has & ~_SETTABLE | flags & _SETTABLE & ~os.O_NONBLOCK)
                except OSError:
                    os.close(fd)
                    raise
                return fd
        raise OSError(errno.EACCES, "")

    def close_fd(self, fd: int) -> None:
        """Close what open() returned."""
        os.close(fd)
        for found in tuple(self._sets.values()):
            if fd in found.opened:
                found.opened.remove(fd)
                if not found.opened:
                    self._clean(found)

    def monitor_gone(self) -> None:
        """A monitor's connection, or a front end, is gone."""
        self.monitors -= 1
        for found in tuple(self._sets.values()):
            self._clean(found)

    def close(self) -> None:
        """Close all of them; the engine ends."""
        for found in self._sets.values():
            for each in found.fds:
                os.close(each.fd)
        self._sets.clear()

    def _clean(self, found: FdSet) -> None:
        if self.running():
            unused = not found.opened and not self.monitors
            for each in [each for each in found.fds if each.removed or unused]:
                found.fds.remove(each)
                os.close(each.fd)
        if not found.fds and not found.opened:
            del self._sets[found.id]


def inherit(sets: FdSets, fd: int | None, number: int | None, opaque: str | None) -> None:
    """Put a copy of the inherited descriptor *fd* into the set *number*: --add-fd. Errors: GenericError."""
    if fd is None or fd < 0:
        raise GenericError("fd option is required and must be non-negative")
    if fd <= 2:
        raise GenericError("fd cannot be a standard I/O stream")
    try:
        # What the program itself has opened is closed when another is executed, so that one can be told from the other.
        ours = bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    except (OSError, OverflowError):
        ours = True
    if ours:
        raise GenericError("fd is not valid or already in use")
    if number is None or number < 0:
        raise GenericError("set option is required and must be non-negative")
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    except OSError as exc:
        raise GenericError(f"error duplicating fd: {os_error_text(exc)}") from exc
    sets.add(copy, number, opaque)


def is_socket(fd: int) -> bool:
    """Whether *fd* is open, and a socket."""
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
