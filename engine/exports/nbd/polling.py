"""Busy waiting for the next request of a client that answers at once.

A client with one request in flight sends the next some microseconds after it has its answer, and to sleep and be woken
up takes longer than that. So the wait is a busy one as long as that pays, for at most as long as an iothread's
poll-max-ns says; how it grows and shrinks is QEMU's rule (poll-grow, poll-shrink). An idle client costs nothing: the
first wait that was too long ends it. Where several clients are at work at a time, none is waited for busily.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

    from engine.graph.backend import BlockBackend

_MOST: Final = 100_000
"""Nanoseconds, where no iothread says anything else. QEMU's 32768 is less than a virtual machine takes to wake up."""
_FIRST: Final = 4_000
_ALONE: Final = 1_000_000
"""Nanoseconds that others must have been quiet: of two at work, a busy one takes the interpreter from the other."""


def _has_processors() -> bool:
    """Whether somebody else can run meanwhile."""
    return len(os.sched_getaffinity(0)) > 1


class _Last:
    """Whose connection was the last at work, and since when no other's has been."""

    poll: object = None
    since = 0


_last = _Last()


class BusyPoll:
    """How one connection waits. wait() is called by its thread alone."""

    def __init__(self, sock: socket.socket, backend: BlockBackend) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self._poll = poll.poll
        self._backend = backend
        self._span = 0
        """Nanoseconds that the next wait is a busy one."""

    def wait(self) -> None:
        """Return when there is something to receive, or the socket has been shut down."""
        now, poll = time.monotonic_ns, self._poll
        start = now()
        if _last.poll is not poll:
            _last.poll, _last.since = poll, start
        elif self._span and start - _last.since > _ALONE:
            until = start + self._span
            while not poll(0):
                if now() > until or _last.poll is not poll:
                    break
            else:
                return
        poll(None)
        self._learn(now() - start)

    def pass_by(self) -> None:
        """The connection is at work, but does not wait here."""
        if _last.poll is not self._poll:
            _last.poll, _last.since = self._poll, time.monotonic_ns()

    def _learn(self, waited: int) -> None:
        """Take from a wait of *waited* nanoseconds how long to be busy in the next."""
        most, grow, shrink = self._limits()
        if waited > most:
            self._span = self._span // shrink if shrink else 0
        elif waited > self._span:
            self._span = min(self._span * (grow or 2) or _FIRST, most)

    def _limits(self) -> tuple[int, int, int]:
        """poll-max-ns, poll-grow and poll-shrink of the export's iothread."""
        if not _has_processors():
            return 0, 0, 0
        iothread = self._backend.node.iothread
        if iothread is None:
            return _MOST, 0, 0
        options = iothread.options
        most = _MOST if options.poll_max_ns is None else options.poll_max_ns
        return most, options.poll_grow or 0, options.poll_shrink or 0
