"""The rules of blkdebug: which event, in which state, makes which requests fail, or changes the state, or holds
a request up. All methods may be called in any thread.

Semantics as in QEMU 7.2: an event that has error rules for the present state replaces the set of errors in force;
one that has none leaves the set alone; a change of state takes effect after all rules of the event were looked at.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.drivers.filter.configfile import Group, read_groups
from engine.errors import GenericError
from engine.qapi import Enum, scalars

SECTOR = 512


class BlkdebugEvent(Enum):
    """Places a request passes: most in format drivers, the pwritev ones in blkdebug itself, ``none`` when opened."""

    L1_UPDATE = "l1_update"
    L1_GROW_ALLOC_TABLE = "l1_grow_alloc_table"
    L1_GROW_WRITE_TABLE = "l1_grow_write_table"
    L1_GROW_ACTIVATE_TABLE = "l1_grow_activate_table"
    L2_LOAD = "l2_load"
    L2_UPDATE = "l2_update"
    L2_UPDATE_COMPRESSED = "l2_update_compressed"
    L2_ALLOC_COW_READ = "l2_alloc_cow_read"
    L2_ALLOC_WRITE = "l2_alloc_write"
    READ_AIO = "read_aio"
    READ_BACKING_AIO = "read_backing_aio"
    READ_COMPRESSED = "read_compressed"
    WRITE_AIO = "write_aio"
    WRITE_COMPRESSED = "write_compressed"
    VMSTATE_LOAD = "vmstate_load"
    VMSTATE_SAVE = "vmstate_save"
    COW_READ = "cow_read"
    COW_WRITE = "cow_write"
    REFTABLE_LOAD = "reftable_load"
    REFTABLE_GROW = "reftable_grow"
    REFTABLE_UPDATE = "reftable_update"
    REFBLOCK_LOAD = "refblock_load"
    REFBLOCK_UPDATE = "refblock_update"
    REFBLOCK_UPDATE_PART = "refblock_update_part"
    REFBLOCK_ALLOC = "refblock_alloc"
    REFBLOCK_ALLOC_HOOKUP = "refblock_alloc_hookup"
    REFBLOCK_ALLOC_WRITE = "refblock_alloc_write"
    REFBLOCK_ALLOC_WRITE_BLOCKS = "refblock_alloc_write_blocks"
    REFBLOCK_ALLOC_WRITE_TABLE = "refblock_alloc_write_table"
    REFBLOCK_ALLOC_SWITCH_TABLE = "refblock_alloc_switch_table"
    CLUSTER_ALLOC = "cluster_alloc"
    CLUSTER_ALLOC_BYTES = "cluster_alloc_bytes"
    CLUSTER_FREE = "cluster_free"
    FLUSH_TO_OS = "flush_to_os"
    FLUSH_TO_DISK = "flush_to_disk"
    PWRITEV_RMW_HEAD = "pwritev_rmw_head"
    PWRITEV_RMW_AFTER_HEAD = "pwritev_rmw_after_head"
    PWRITEV_RMW_TAIL = "pwritev_rmw_tail"
    PWRITEV_RMW_AFTER_TAIL = "pwritev_rmw_after_tail"
    PWRITEV = "pwritev"
    PWRITEV_ZERO = "pwritev_zero"
    PWRITEV_DONE = "pwritev_done"
    EMPTY_IMAGE_PREPARE = "empty_image_prepare"
    L1_SHRINK_WRITE_TABLE = "l1_shrink_write_table"
    L1_SHRINK_FREE_L2_CLUSTERS = "l1_shrink_free_l2_clusters"
    COR_WRITE = "cor_write"
    CLUSTER_ALLOC_SPACE = "cluster_alloc_space"
    NONE = "none"


class BlkdebugIOType(Enum):
    """Kinds of requests that can fail.

    read: reads of data
    write: writes of data
    write-zeroes: zero writes
    discard: discards
    flush: flushes
    block-status: questions for what is allocated
    """

    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    BLOCK_STATUS = "block-status"


EVENTS: frozenset[str] = frozenset(item.value for item in BlkdebugEvent)
_DEFAULT_TYPES = frozenset({"read", "write", "write-zeroes", "discard", "flush"})
_READS: dict[str, frozenset[str]] = {
    "inject-error": frozenset({"event", "state", "iotype", "errno", "sector", "once", "immediately"}),
    "set-state": frozenset({"event", "state", "new_state"}),
}


@dataclass(slots=True, eq=False)
class ErrorRule:
    """Requests fail with *error* (an errno; 0: they don't). offset: the byte a request must touch, -1 for any.

    immediately: without letting other threads run first.
    """

    event: str
    state: int = 0
    error: int = errno.EIO
    types: frozenset[str] = _DEFAULT_TYPES
    offset: int = -1
    once: bool = False
    immediately: bool = False


@dataclass(slots=True, eq=False)
class StateRule:
    """The event makes *new_state* the state."""

    event: str
    state: int = 0
    new_state: int = 0


@dataclass(slots=True, eq=False)
class BreakRule:
    """The next request that gets to the event is held up, and is known by *tag* then."""

    event: str
    tag: str
    state: int = 0


Rule = ErrorRule | StateRule | BreakRule


@dataclass(slots=True, eq=False)
class _Held:
    """A request that is held up: until nothing is left of *tags*."""

    tags: list[str]


@dataclass(slots=True, eq=False)
class Rules:
    """All rules of one node, the state they are in, and the requests held up by them.

    may_hold: whether a request may be held up now; asked in the request's thread.
    """

    may_hold: Callable[[], bool] = lambda: True
    state: int = 1
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _by_event: dict[str, list[Rule]] = field(default_factory=dict)
    _active: list[ErrorRule] = field(default_factory=list)
    _held: list[_Held] = field(default_factory=list)
    _said: list[str] = field(default_factory=list)
    _closed: bool = False

    def add(self, rule: Rule) -> None:
        """One more rule; it is looked at before those there are."""
        with self._condition:
            self._by_event[rule.event] = [rule, *self._by_event.get(rule.event, [])]

    def _remove(self, rule: Rule) -> None:
        left = [other for other in self._by_event.get(rule.event, []) if other is not rule]
        if left:
            self._by_event[rule.event] = left
        else:
            self._by_event.pop(rule.event, None)

    def announce(self, event: str) -> None:
        """The thread's request has got to *event*. Returns when nothing holds it up (any more)."""
        if event not in self._by_event:
            return
        with self._condition:
            new_state = self.state
            injected = False
            tags: list[str] = []
            for rule in self._by_event.get(event, []):
                if rule.state and rule.state != self.state:
                    continue
                if isinstance(rule, StateRule):
                    new_state = rule.new_state
                elif isinstance(rule, ErrorRule):
                    self._active = [rule, *self._active] if injected else [rule]
                    injected = True
                else:
                    self._remove(rule)
                    tags.append(rule.tag)
            self.state = new_state
            if tags:
                self._hold(_Held(tags))

    def _hold(self, held: _Held) -> None:
        self._held.insert(0, held)
        self._said += [f"blkdebug: Suspended request '{tag}'\n" for tag in held.tags]
        self._condition.notify_all()
        while held.tags and not self._closed:
            if not self.may_hold():
                self._said += [f"blkdebug: Resuming request '{tag}'\n" for tag in held.tags]
                break
            self._condition.wait()
        self._held.remove(held)

    def failure(self, kind: str, offset: int, length: int) -> ErrorRule | None:
        """The rule that makes a request of *kind* (BlkdebugIOType) fail, or None. One that acts once is gone then."""
        for rule in self._active:
            if kind in rule.types and (rule.offset == -1 or (length and offset <= rule.offset < offset + length)):
                break
        else:
            return None
        if not rule.error:
            return None
        if rule.once:
            with self._condition:
                if rule not in self._active:
                    return None
                self._active = [other for other in self._active if other is not rule]
                self._remove(rule)
        return rule

    # -- breakpoints -----------------------------------------------------------------------------------------

    def remove_break(self, tag: str) -> bool:
        """Forget breakpoints called *tag* and let requests called so go on; whether there were any of the former."""
        with self._condition:
            gone = [
                rule
                for rules in self._by_event.values()
                for rule in rules
                if isinstance(rule, BreakRule) and rule.tag == tag
            ]
            for rule in gone:
                self._remove(rule)
        self.resume(tag, every=True)
        return bool(gone)

    def resume(self, tag: str, *, every: bool = False) -> bool:
        """Let the request held up last as *tag* (or *every* one) go on; whether there was any."""
        found = False
        with self._condition:
            for held in self._held:
                while tag in held.tags and (every or not found):
                    held.tags.remove(tag)
                    found = True
                    self._said.append(f"blkdebug: Resuming request '{tag}'\n")
            self._condition.notify_all()
        return found

    def wait_break(self, tag: str) -> None:
        """Block until a request is held up as *tag*, or the node is closed."""
        with self._condition:
            while not self._closed and not any(tag in held.tags for held in self._held):
                self._condition.wait()

    def wake(self) -> None:
        """Have the requests held up ask again whether they may be."""
        with self._condition:
            self._condition.notify_all()

    def close(self) -> None:
        """Nothing waits here any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def said(self) -> str:
        """What happened to requests since the last call, as QEMU prints it."""
        with self._condition:
            text = "".join(self._said)
            self._said.clear()
        return text


# -- where rules come from -----------------------------------------------------------------------------------


def config_rules(filename: str) -> tuple[list[ErrorRule], list[StateRule]]:
    """The rules in the configuration file *filename*. Errors: GenericError."""
    errors: list[ErrorRule] = []
    states: list[StateRule] = []
    groups = read_groups(filename, "blkdebug config file")
    for group in groups:
        _check_group(group)
    for group in groups:
        if group.name == "inject-error":
            errors.append(_error_rule(group.values))
    for group in groups:
        if group.name == "set-state":
            values = group.values
            states.append(StateRule(_event(values), _int(values, "state", 0), _int(values, "new_state", 0)))
    return errors, states


def _check_group(group: Group) -> None:
    known = _READS.get(group.name)
    if known is None:
        raise GenericError(f"There is no option group '{group.name}'")
    for name, value in group.values.items():
        if name not in known:
            continue
        if name in ("once", "immediately"):
            if scalars.parse_bool(value) is None:
                raise GenericError(f"Parameter '{name}' expects 'on' or 'off'")
        elif name not in ("event", "iotype") and scalars.parse_uint64(value) is None:
            if scalars.read_integer(value) is not None:
                raise GenericError(f"Value '{value}' is too large for parameter '{name}'")
            raise GenericError(f"Parameter '{name}' expects a number")
    for name in group.values:
        if name not in known and name != "id":
            raise GenericError(f"Invalid parameter '{name}'")


def _event(values: dict[str, str]) -> str:
    event = values.get("event")
    if event is None:
        raise GenericError("Missing event name for rule")
    if event not in EVENTS:
        raise GenericError(f"invalid parameter value: {event}")
    return event


def _int(values: dict[str, str], name: str, default: int) -> int:
    """A number as a C int holds it."""
    number = scalars.parse_uint64(values[name]) if name in values else default
    assert number is not None
    return _as_int(number, 32)


def _as_int(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> (bits - 1) else number


def _error_rule(values: dict[str, str]) -> ErrorRule:
    event = _event(values)
    types = _DEFAULT_TYPES
    if "iotype" in values:
        if values["iotype"] not in {item.value for item in BlkdebugIOType}:
            raise GenericError(f"invalid parameter value: {values['iotype']}")
        types = frozenset({values["iotype"]})
    sector = scalars.parse_uint64(values["sector"]) if "sector" in values else -1
    assert sector is not None
    return ErrorRule(
        event,
        _int(values, "state", 0),
        _int(values, "errno", errno.EIO),
        types,
        _offset(sector),
        bool(scalars.parse_bool(values.get("once", "off"))),
        bool(scalars.parse_bool(values.get("immediately", "off"))),
    )


def _offset(sector: int) -> int:
    sector = _as_int(sector, 64)
    return -1 if sector == -1 else _as_int(sector * SECTOR, 64)


def option_rules(errors: list[Any] | None, states: list[Any] | None) -> Iterator[Rule]:
    """The rules given as options (BlkdebugInjectErrorOptions, BlkdebugSetStateOptions)."""
    for given in errors or []:
        yield ErrorRule(
            str(given.event.value),
            _as_int(given.state or 0, 32),
            errno.EIO if given.errno is None else _as_int(given.errno, 32),
            _DEFAULT_TYPES if given.iotype is None else frozenset({str(given.iotype.value)}),
            -1 if given.sector is None else _offset(given.sector),
            bool(given.once),
            bool(given.immediately),
        )
    for given in states or []:
        yield StateRule(str(given.event.value), _as_int(given.state or 0, 32), _as_int(given.new_state, 32))


def error_of(rule: ErrorRule) -> OSError:
    """The error a request fails with by *rule*."""
    return OSError(rule.error, os.strerror(rule.error))
