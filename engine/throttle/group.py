"""Throttle groups: members that share the buckets, and take turns when requests have to wait.

In each direction one request of the whole group waits for the clock; all others wait for it, queued at their members.
Whoever is let through chooses the next: round robin over the members that have requests queued.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, cast

from engine.errors import GenericError
from engine.graph.edge import held_together
from engine.throttle.bucket import NS, Buckets
from engine.throttle.limits import Direction, ThrottleConfig

if TYPE_CHECKING:
    from engine.graph.node import Node


class Clock(Protocol):
    """Time, and how to wait for it."""

    def now(self) -> int:
        """Nanoseconds."""

    def wait(self, condition: threading.Condition, delay: int | None) -> None:
        """Wait until *condition* is notified, at most *delay* nanoseconds. It may also return early."""


class MonotonicClock:
    """The system's clock."""

    def now(self) -> int:
        return time.monotonic_ns()

    def wait(self, condition: threading.Condition, delay: int | None) -> None:
        # A day at a time: Condition can't wait as long as limits can ask for.
        condition.wait(None if delay is None else min(delay / NS, 86400.0))


class _Ticket:
    """One waiting request."""

    __slots__ = ("changed",)

    def __init__(self, lock: threading.Lock) -> None:
        self.changed = threading.Condition(lock)


class ThrottleMember:
    """One user of a group: a node, a block back end. admit() may be called in any thread."""

    def __init__(self, group: ThrottleGroup) -> None:
        self._free = 0
        self._queues: tuple[deque[_Ticket], deque[_Ticket]] = (deque(), deque())
        self.group = group
        group._join(self)

    def admit(self, writing: bool, size: int) -> None:
        """Block until a request of *size* bytes may go, and account it."""
        self.group._admit(self, Direction.WRITE if writing else Direction.READ, size)

    def pending(self, direction: Direction) -> int:
        """How many requests wait."""
        return len(self._queues[direction])

    def set_free(self) -> None:
        """Limit nothing from now on, and let those who wait through (drain, end); nests."""
        with self.group._lock:
            self._free += 1
            self.group._wake(self)

    def unset_free(self) -> None:
        """Undo one set_free()."""
        with self.group._lock:
            self._free -= 1

    def leave(self) -> None:
        """Leave the group for good; what still waits goes through. Control plane."""
        self.set_free()
        self.group._leave(self)


class _Lane:
    """One direction of a group. turn: who waits for the clock. token: the member whose request went last."""

    __slots__ = ("token", "turn")

    def __init__(self) -> None:
        self.turn: _Ticket | None = None
        self.token: ThrottleMember | None = None


class ThrottleGroup:
    """Limits shared by members. Membership and limits change on the control plane."""

    def __init__(self, groups: ThrottleGroups, name: str, config: ThrottleConfig, clock: Clock) -> None:
        self.name = name
        self.owned = False
        """There is an object for the group, which keeps it while nobody is in it."""
        self._groups = groups
        self._clock = clock
        self._lock = threading.Lock()
        self._members: list[ThrottleMember] = []
        self._lanes = (_Lane(), _Lane())
        self._buckets = Buckets(config, clock.now())

    @property
    def config(self) -> ThrottleConfig:
        return self._buckets.config

    def configure(self, config: ThrottleConfig) -> None:
        """Set other limits; the buckets are empty then. Errors: GenericError (invalid)."""
        config.check()
        with self._lock:
            self._buckets = Buckets(config, self._clock.now())
            for lane in self._lanes:
                if lane.turn is not None:
                    lane.turn.changed.notify()

    @property
    def in_use(self) -> bool:
        """Whether the group has members."""
        return bool(self._members)

    # -- members ---------------------------------------------------------------------------------------------

    def _join(self, member: ThrottleMember) -> None:
        with self._lock:
            self._members.append(member)

    def _leave(self, member: ThrottleMember) -> None:
        with self._lock:
            self._members.remove(member)
            for lane in self._lanes:
                if lane.token is member:
                    lane.token = None
        self._groups.release(self)

    def _wake(self, member: ThrottleMember) -> None:
        for queue in member._queues:
            for ticket in queue:
                ticket.changed.notify()

    # -- requests --------------------------------------------------------------------------------------------

    def _admit(self, member: ThrottleMember, direction: Direction, size: int) -> None:
        """Wait and account."""
        with self._lock:
            lane = self._lanes[direction]
            if not member._free:
                if lane.turn is not None or self._buckets.delay(direction, self._clock.now()):
                    self._queue(lane, member, direction)
                lane.token = member
            self._buckets.account(direction, size)

    def _queue(self, lane: _Lane, member: ThrottleMember, direction: Direction) -> None:
        ticket = _Ticket(self._lock)
        queue = member._queues[direction]
        queue.append(ticket)
        while not member._free:
            if lane.turn is None:
                lane.turn = ticket
            delay = self._buckets.delay(direction, self._clock.now()) if lane.turn is ticket else None
            if delay == 0:
                break
            self._clock.wait(ticket.changed, delay)
        queue.remove(ticket)
        if lane.turn is ticket:
            lane.token = member
            lane.turn = self._next(lane, direction)
            if lane.turn is not None:
                lane.turn.changed.notify()

    def _next(self, lane: _Lane, direction: Direction) -> _Ticket | None:
        """The oldest request of the next member, round robin, that has any."""
        members = self._members
        start = members.index(lane.token) + 1 if lane.token in members else 0
        for member in members[start:] + members[:start]:
            if not member._free and member._queues[direction]:
                return member._queues[direction][0]
        return None


class ThrottleGroups:
    """The groups of an engine by name: those of throttle-group objects, and those made by block_set_io_throttle."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or MonotonicClock()
        self._groups: dict[str, ThrottleGroup] = {}

    def find(self, name: str) -> ThrottleGroup:
        """The group called *name*. Errors: GenericError."""
        group = self._groups.get(name)
        if group is None:
            raise GenericError(f"Throttle group '{name}' does not exist")
        return group

    def create(self, name: str, config: ThrottleConfig) -> ThrottleGroup:
        """A group of an object. Errors: GenericError (name taken, limits invalid)."""
        if name in self._groups:
            raise GenericError("A group with this name already exists")
        config.check()
        group = self._groups[name] = ThrottleGroup(self, name, config, self._clock)
        group.owned = True
        return group

    def find_or_create(self, name: str) -> ThrottleGroup:
        """The group called *name*; one without limits, that goes with its last member, where there is none."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = ThrottleGroup(self, name, ThrottleConfig(), self._clock)
        return group

    def release(self, group: ThrottleGroup) -> None:
        """Forget *group* when nobody has it any more."""
        if not group.owned and not group.in_use and self._groups.get(group.name) is group:
            del self._groups[group.name]

    @property
    def in_use(self) -> bool:
        """Whether anything is throttled."""
        return any(group.in_use for group in self._groups.values())

    def set_free(self) -> None:
        """Let every request through: the engine ends."""
        for group in list(self._groups.values()):
            for member in list(group._members):
                member.set_free()


@contextmanager
def unthrottled(nodes: Iterable[Node], limiter: object = None) -> Iterator[None]:
    """Let the requests that wait at *limiter*, or in throttle nodes at or below *nodes*, through. Control plane.

    For whoever has to wait for the requests' end, and not as long as a limit can make it. A job above stops only when
    all its requests have ended, hence nodes below any other of its nodes belong to it.
    """
    members = [limiter] if isinstance(limiter, ThrottleMember) else []
    pending = list(nodes)
    if pending:
        pending = _with_those_of_jobs(pending) if pending[0].graph.objects.throttle_groups.in_use else []
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        member = getattr(node.driver, "throttle", None)
        if isinstance(member, ThrottleMember):
            members.append(member)
        pending.extend(edge.child for edge in node.children.values())
    for member in members:
        member.set_free()
    try:
        yield
    finally:
        for member in members:
            member.unset_free()


def _with_those_of_jobs(nodes: list[Node]) -> list[Node]:
    """*nodes*, and all nodes that jobs at or above them work on."""
    found = dict.fromkeys(nodes)
    above, seen = list(nodes), set(nodes)
    while above:
        for edge in above.pop().parents:
            if edge.parent.parent_kind == "node":
                parent = cast("Node", edge.parent)
                if parent not in seen:
                    seen.add(parent)
                    above.append(parent)
            else:
                found.update(dict.fromkeys(held_together(edge.parent)))
    return list(found)
