"""Doors and drain: the control plane changes the graph only while nothing is in flight in it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from engine.throttle.group import unthrottled

if TYPE_CHECKING:
    from engine.graph.node import Node


class Door:
    """Counts the requests in flight of one user and keeps new ones waiting while closed.

    Data-plane threads enter and leave; the control plane closes, waits and opens. The waiting in wait_idle() is
    safe because a data-plane request never waits for the control plane.
    """

    __slots__ = ("_condition", "_closed", "_retired", "in_flight")

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._closed = 0
        self._retired = False
        self.in_flight = 0

    def enter(self) -> None:
        """Wait until the door is open. Errors: OSError ESHUTDOWN at a closed door that is retired."""
        with self._condition:
            while self._closed and not self._retired:
                self._condition.wait()
            if self._closed:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            self.in_flight += 1

    def leave(self) -> None:
        with self._condition:
            self.in_flight -= 1
            if self._closed and not self.in_flight:
                self._condition.notify_all()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def close(self) -> None:
        """New requests wait from now on; closings nest."""
        with self._condition:
            self._closed += 1

    def open(self) -> None:
        """Undo one close."""
        with self._condition:
            self._closed -= 1
            if not self._closed:
                self._condition.notify_all()

    def retire(self) -> None:
        """The user is going: whoever waits at the closed door fails, so the control plane may wait for the user."""
        with self._condition:
            self._retired = True
            self._condition.notify_all()

    def wait_idle(self) -> None:
        """Block until nothing is in flight. The door is to be closed."""
        if self.in_flight:
            _call_wakes()
        with self._condition:
            while self.in_flight:
                self._condition.wait()

    @property
    def closed(self) -> bool:
        return self._closed > 0


_lock = threading.Lock()
_drains = 0
_wakes: list[Callable[[], None]] = []


def awaited(node: Node, wake: Callable[[], None]) -> bool:
    """Whether a drain waits, or may wait, for the requests in *node* to end. Any thread.

    For drivers that hold requests up on purpose: the control plane is at a standstill then, so nobody could let them
    go. When not, *wake* is called once, on the control plane, at the next drain, for the driver to ask again.
    """
    with _lock:
        # First this, then the look: a drain that begins meanwhile makes the caller ask once more.
        _wakes.append(wake)
        draining = _drains > 0
    stack, seen = [node], {node}
    while stack:
        for edge in list(stack.pop().parents):
            # A job waits for all of its requests, on whichever of its nodes the drain is.
            if edge.quiesces_parent or (draining and edge.parent.parent_kind == "job"):
                return True
            if edge.parent.parent_kind == "node":
                parent = cast("Node", edge.parent)
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
    return False


def _call_wakes() -> None:
    """Have every driver that holds requests up ask whether it still may."""
    with _lock:
        wakes = _wakes[:]
        _wakes.clear()
    for wake in wakes:
        wake()


@contextmanager
def drained(nodes: Iterable[Node]) -> Iterator[None]:
    """Keep every request out of *nodes* and whatever reaches them; control plane only.

    All doors are closed before the first wait, so that users of several of the nodes cannot block one another.
    """
    global _drains
    begun: list[Node] = []
    with _lock:
        _drains += 1
    try:
        for node in dict.fromkeys(nodes):
            node.drained_begin()
            begun.append(node)
        _call_wakes()
        with unthrottled(begun):
            for node in begun:
                node.drained_wait()
        yield
    finally:
        with _lock:
            _drains -= 1
        for node in reversed(begun):
            node.drained_end()
