"""The event log: a ring of the last events with their times, and views of it that select by text."""

from __future__ import annotations

import copy
import json
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any

from blockmon.model.format import clock_time, safe_text, size_short

CAPACITY = 100_000

_FIRST_MEMBERS = ("id", "device", "node-name", "reference", "status", "type")
_ERRORS = frozenset(
    {"BLOCK_JOB_ERROR", "BLOCK_IO_ERROR", "BLOCK_IMAGE_CORRUPTED", "QUORUM_FAILURE", "QUORUM_REPORT_BAD",
     "CONNECTION_LOST"}
)  # fmt: skip
_NOTABLE = frozenset(
    {"BLOCK_JOB_READY", "BLOCK_JOB_PENDING", "BLOCK_JOB_CANCELLED", "BLOCK_WRITE_THRESHOLD", "CONNECTION_RESTORED"}
)
_DONE = frozenset({"BLOCK_JOB_COMPLETED"})
_USUAL = frozenset({"timestamp", "event", "data"})

_NODE_MEMBERS = ("node-name", "reference", "device", "node")
_STRIDE = 64
"""Events that are looked at between two looks at the clock."""


@dataclass(frozen=True)
class LoggedEvent:
    """An event with its running number."""

    number: int
    event: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The event's name."""
        return str(self.event.get("event", "?"))

    @property
    def data(self) -> Mapping[str, Any]:
        """The event's data; empty where it has none."""
        found = self.event.get("data", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def time(self) -> float:
        """When it happened by the server's clock, in seconds since the epoch."""
        stamp = self.event.get("timestamp", {})
        return float(stamp.get("seconds", 0)) + float(stamp.get("microseconds", 0)) / 1e6

    @cached_property
    def clock(self) -> str:
        """Time of day for display."""
        return clock_time(self.time)

    @cached_property
    def severity(self) -> str:
        """One of error, notable, done, plain, and trivial for what only tells the screen to look again."""
        if self.name in _ERRORS or "error" in self.data:
            return "error"
        if self.name in _NOTABLE:
            return "notable"
        if self.name.startswith("X_"):
            return "trivial"
        return "done" if self.name in _DONE else "plain"

    @cached_property
    def summary(self) -> str:
        """The data in one line: whom it is about, the status, then the other members by name."""
        return _summary(self.data)

    @property
    def job(self) -> str | None:
        """The id of the job that it tells of; None where it tells of none."""
        return _job_of(self.name, self.data)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of nodes or devices that it tells of, the surest first."""
        if self.name.startswith(("JOB_", "BLOCK_JOB_")):
            return ()
        return _nodes_of(self.data)

    def as_json(self) -> str:
        """The event as on the wire."""
        return json.dumps(self.event, ensure_ascii=False)


def _summary(data: Mapping[str, Any]) -> str:
    rest = dict(data)
    words = [_plain(rest.pop(member)) for member in _FIRST_MEMBERS if member in rest]
    error = rest.pop("error", None)
    if error is not None:
        words.append(_plain(error))
    if isinstance(rest.get("len"), int) and isinstance(rest.get("offset"), int):
        done, total = size_short(rest.pop("offset")), size_short(rest.pop("len"))
        words.append(f"{done} of {total}" if done != total else done)
        if not rest.get("speed"):
            rest.pop("speed", None)
    words += [f"{name}={_plain(value)}" for name, value in rest.items()]
    return safe_text(" ".join(words))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _job_of(name: str, data: Mapping[str, Any]) -> str | None:
    if name.startswith("JOB_"):
        found = data.get("id")
    elif name.startswith("BLOCK_JOB_"):
        found = data.get("device", data.get("id"))
    else:
        found = None
    return str(found) if found else None


def _nodes_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(data[member]) for member in _NODE_MEMBERS if data.get(member))


class EventFilter:
    """
    What a filter's text asks for; upper and lower case are alike.

    Words stand for what an event must hold, all of them: ``WORD`` anywhere in its line, ``event:TEXT`` in its name,
    ``job:ID`` and ``node:NAME`` the job, node or device that it tells of, by its whole name. ``!`` in front of a word
    asks for events that do not hold it. Text in double quotes is one word.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._terms = [term for word in _words(text) if (term := _term(word))[2]]
        self.plain = [wanted for member, denied, wanted in self._terms if not member and not denied]
        """The words that are looked for anywhere, casefolded; what a display may mark."""

    def __bool__(self) -> bool:
        return bool(self._terms)

    def matches(self, name: str, data: Mapping[str, Any]) -> bool:
        """Whether an event of this name with these data is wanted."""
        summary: str | None = None
        for member, denied, wanted in self._terms:
            if member == "event":
                found = wanted in name.casefold()
            elif member == "job":
                found = (_job_of(name, data) or "").casefold() == wanted
            elif member == "node":
                found = any(text.casefold() == wanted for text in _nodes_of(data))
            else:
                found = wanted in name.casefold()
                if not found:
                    if summary is None:
                        summary = _summary(data).casefold()
                    found = wanted in summary
            if found == denied:
                return False
        return True


def _words(text: str) -> Iterator[str]:
    word, quoted = "", False
    for char in text:
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            yield word
            word = ""
        else:
            word += char
    yield word


def _term(word: str) -> tuple[str, bool, str]:
    """Member ("event", "job", "node" or "" for anywhere), whether it is denied, the wanted text."""
    denied = word.startswith("!")
    word = word.removeprefix("!").casefold()
    member, colon, rest = word.partition(":")
    if colon and member in ("event", "job", "node"):
        return member, denied, rest
    return "", denied, word


class EventLog:
    """
    The last *capacity* events. Numbers start at 0 and are never used twice.

    An event is kept as its time, name and data alone: the dictionaries around them would take twice the memory.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._times = array("q")
        self._names: list[str] = []
        self._data: list[Any] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._names)

    @property
    def first(self) -> int:
        """Number of the oldest event kept."""
        return self._next - len(self._names)

    @property
    def end(self) -> int:
        """One more than the number of the newest event; how many there have ever been."""
        return self._next

    def append(self, event: Mapping[str, Any]) -> LoggedEvent:
        """Log an event; the oldest one makes room for it."""
        self.extend((event,))
        return self[self._next - 1]

    def extend(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Log several events."""
        times, names, held = self._times, self._names, self._data
        for event in events:
            data: Any = event.get("data")
            stamp = event.get("timestamp")
            if (
                not isinstance(stamp, Mapping)
                or len(stamp) != 2
                or not event.keys() <= _USUAL
                or not 0 <= stamp.get("microseconds", -1) < 1_000_000
                or ("data" in event and not isinstance(data, dict))
            ):
                # Not of the usual form: kept as it is.
                moment, data = 0, _Whole(event)
            else:
                moment = stamp["seconds"] * 1_000_000 + stamp["microseconds"]
            name = intern(str(event.get("event", "?")))
            if len(names) < self.capacity:
                times.append(moment)
                names.append(name)
                held.append(data)
            else:
                place = self._next % self.capacity
                times[place], names[place], held[place] = moment, name, data
            self._next += 1

    def __getitem__(self, number: int) -> LoggedEvent:
        """The event with this number; IndexError when it is not kept (any more)."""
        if not self.first <= number < self._next:
            raise IndexError(number)
        place = number % self.capacity
        data = self._data[place]
        if isinstance(data, _Whole):
            return LoggedEvent(number, data.event)
        seconds, microseconds = divmod(self._times[place], 1_000_000)
        event: dict[str, Any] = {
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
            "event": self._names[place],
        }
        if data is not None:
            event["data"] = data
        return LoggedEvent(number, event)

    def matches(self, number: int, wanted: EventFilter) -> bool:
        """Whether the event with this number, which must be kept, is wanted."""
        place = number % self.capacity
        data = self._data[place]
        if isinstance(data, _Whole):
            data = data.event.get("data")
        return wanted.matches(self._names[place], data if isinstance(data, Mapping) else {})

    def copy(self) -> EventLog:
        """The log as it is now, which later events leave alone. It shares the data."""
        other = EventLog(self.capacity)
        other._times, other._names, other._data = self._times[:], self._names[:], self._data[:]
        other._next = self._next
        return other


class _Whole:
    """An event that is kept as it came."""

    __slots__ = ("event",)

    def __init__(self, event: Mapping[str, Any]) -> None:
        self.event = event


class EventView:
    """
    The events of a log that a filter's text asks for, in order; kept up by looking only at what is new.

    With *seconds* a look takes no longer than that, the newest events come first, and `behind` tells whether older
    ones have to be looked at yet: `refresh` goes on.
    """

    def __init__(self, log: EventLog, text: str = "", *, seconds: float | None = None) -> None:
        self.log = log
        self.text = text
        self.filter = EventFilter(text)
        # Looked at are the events from _low up to _high: from where the view began, up as they come, and down.
        self._low = self._high = log.end
        self._upper, self._lower = array("Q"), array("Q")
        self.refresh(seconds)

    @property
    def behind(self) -> bool:
        """True while there are events that have not been looked at."""
        return bool(self.filter) and (self._low > self.log.first or self._high < self.log.end)

    def refresh(self, seconds: float | None = None) -> None:
        """Take in what the log has got since, and what was left over, for so many seconds at most."""
        if not self.filter:
            return
        log, wanted = self.log, self.filter
        until = None if seconds is None else time.perf_counter() + seconds
        if self._high < log.first:
            # Overrun: nothing of what was known is kept.
            del self._upper[:], self._lower[:]
            self._low = self._high = log.first
        while self._high < log.end:
            stop = min(log.end, self._high + _STRIDE)
            self._upper.extend(number for number in range(self._high, stop) if log.matches(number, wanted))
            self._high = stop
            if until is not None and time.perf_counter() >= until:
                break
        while self._low > log.first and (until is None or time.perf_counter() < until):
            stop = max(log.first, self._low - _STRIDE)
            self._lower.extend(number for number in range(self._low - 1, stop - 1, -1) if log.matches(number, wanted))
            self._low = stop
        self._low = max(self._low, log.first)
        while self._lower and self._lower[-1] < log.first:
            self._lower.pop()
        fallen = bisect_left(self._upper, log.first)
        if fallen:
            del self._upper[:fallen]

    def __len__(self) -> int:
        return len(self._lower) + len(self._upper) if self.filter else len(self.log)

    def number(self, index: int) -> int:
        """The number of the event at *index*, counted from the oldest."""
        if not self.filter:
            return self.log.first + index
        below = len(self._lower)
        return self._lower[below - 1 - index] if index < below else self._upper[index - below]

    def __getitem__(self, index: int) -> LoggedEvent:
        """The event at *index*, counted from the oldest."""
        return self.log[self.number(index)]

    def index_of(self, number: int) -> int:
        """The index of the event numbered *number*, or of the next one after it."""
        if not self.filter:
            return min(max(0, number - self.log.first), len(self.log))
        lower = self._lower
        if not self._upper or number < self._upper[0]:
            # How many of those in _lower, which descends, are below the number.
            return len(lower) - bisect_left(lower, 1 - number, key=lambda found: -found)
        return len(lower) + bisect_left(self._upper, number)

    def frozen(self) -> EventView:
        """The view as it is now; what the log gets and loses later does not touch it."""
        view = copy.copy(self)
        view.log = self.log.copy()
        view._upper, view._lower = self._upper[:], self._lower[:]
        return view

    def search(self, wanted: EventFilter, start: int, step: int, seconds: float) -> tuple[int | None, int]:
        """
        The first index from *start* on, by *step* 1 or -1, whose event is wanted.

        Gives up after so many seconds: the answer is (None, where to go on), which is no index any more at the end.
        """
        until, log = time.perf_counter() + seconds, self.log
        index, total = start, len(self)
        while 0 <= index < total:
            if log.matches(self.number(index), wanted):
                return index, index
            index += step
            if index % _STRIDE == 0 and time.perf_counter() >= until:
                break
        return None, index


def save_events(path: str | Path, view: EventView, *, overwrite: bool = False) -> int:
    """
    Write the events of a view, the oldest first, as lines of JSON. Returns how many there were.

    Errors: FileExistsError unless *overwrite*; OSError.
    """
    with Path(path).expanduser().open("w" if overwrite else "x", encoding="utf-8") as file:
        for index in range(len(view)):
            file.write(view[index].as_json() + "\n")
    return len(view)


def newest_as_json(view: EventView, limit: int) -> tuple[str, int]:
    """The newest events of a view as lines of JSON, the oldest first, in *limit* bytes of UTF-8; and how many."""
    lines: list[str] = []
    room = limit
    for index in range(len(view) - 1, -1, -1):
        line = view[index].as_json() + "\n"
        room -= len(line.encode())
        if room < 0:
            break
        lines.append(line)
    return "".join(reversed(lines)), len(lines)
