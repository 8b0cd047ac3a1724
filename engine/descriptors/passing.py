"""Descriptors that the client of a monitor sends along with a command (SCM_RIGHTS), and the names it gives them."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable
from contextvars import ContextVar

from engine.errors import GenericError

_MOST = 16
"""Descriptors that one message may carry, as in QEMU."""
_SPACE = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)


class PassingSocket(socket.socket):
    """A Unix socket that keeps the descriptors which come with the data.

    passed: those of the newest data that brought any, until take_passed().
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes *sock* over."""
        blocking = sock.getblocking()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.setblocking(blocking)
        self.passed: list[int] | None = None

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data, ancillary, _, _ = self.recvmsg(size, _SPACE, flags | socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                _close(self.passed or ())
                self.passed = found.tolist()
        return data

    def take_passed(self) -> list[int] | None:
        """The descriptors that came; they are the caller's. None: none came since the last call."""
        found, self.passed = self.passed, None
        return found


class Descriptors:
    """What one client has passed and not used yet. Control plane only."""

    def __init__(self) -> None:
        self._passed: list[int] = []
        self._named: dict[str, int] = {}

    def arrived(self, fds: list[int]) -> None:
        """*fds* came with the command that is executed next; earlier ones that nobody took are closed."""
        _close(self._passed)
        self._passed = fds

    def take(self) -> int:
        """The descriptor that came last; others that came with it are closed. Errors: GenericError."""
        if not self._passed:
            raise GenericError("No file descriptor supplied via SCM_RIGHTS")
        found, *others = self._passed
        self._passed = []
        _close(others)
        return found

    def name(self, name: str) -> None:
        """Give the descriptor that came a name, in place of one that had it. Errors: GenericError."""
        fd = self.take()
        if name[:1].isdecimal():
            os.close(fd)
            raise GenericError("Parameter 'fdname' expects a name not starting with a digit")
        old = self._named.pop(name, None)
        if old is not None:
            os.close(old)
        self._named[name] = fd

    def close_named(self, name: str) -> None:
        """Close a descriptor. Errors: GenericError."""
        if name not in self._named:
            raise GenericError(f"File descriptor named '{name}' not found")
        os.close(self._named.pop(name))

    def use(self, name: str) -> int:
        """A descriptor for whatever wants it; the name is free again. Errors: GenericError."""
        if name not in self._named:
            raise GenericError(f"File descriptor named '{name}' has not been found")
        return self._named.pop(name)

    def close(self) -> None:
        """Close all; the client is gone."""
        _close(self._passed)
        _close(self._named.values())
        self._passed = []
        self._named.clear()


client: ContextVar[Descriptors | None] = ContextVar("the client whose command runs", default=None)
"""None: the command comes from inside the process, where nothing can be passed."""


def of_client() -> Descriptors:
    """The descriptors of the client whose command runs."""
    return client.get() or Descriptors()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
